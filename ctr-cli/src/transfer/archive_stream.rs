//! Archives, sent and received in pieces under the receiver's control.
//!
//! The receiver grants a number of bytes (`WindowUpdate`), the sender sends no more than that
//! (`Data`). Source: containerd, `core/transfer/streaming/stream.go`.

use std::io::Write;

use anyhow::Context as _;
use proto::containerd::types::transfer::{Data, WindowUpdate};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::Stream;

/// The most that is sent in one message.
const PIECE_BYTES: usize = 32 << 10;

/// What the receiver grants at a time.
const WINDOW_BYTES: i32 = 64 << 10;

/// Sends all that `reader` has, then closes this side.
pub(crate) async fn send(
    stream: &mut Stream,
    mut reader: impl AsyncRead + Unpin,
) -> anyhow::Result<()> {
    let mut granted: usize = 0;
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        while granted == 0 {
            let Some(any) = stream.next().await? else { return Ok(()) };
            if let Some(update) = proto::any::unpack::<WindowUpdate>(&any)? {
                granted += usize::try_from(update.update).context("window update")?;
            }
        }
        let most = granted.min(PIECE_BYTES);
        let count = reader.read(&mut buffer[..most]).await.context("read the archive")?;
        if count == 0 {
            stream.close();
            // The stream lives as long as the daemon reads it.
            while stream.next().await?.is_some() {}
            return Ok(());
        }
        granted -= count;
        let data = Data { data: buffer[..count].to_vec().into() };
        if !stream.send(proto::any::pack(&data)).await {
            return Ok(());
        }
    }
}

/// Writes all that the daemon sends.
pub(crate) async fn receive(stream: &mut Stream, mut writer: impl Write) -> anyhow::Result<()> {
    let mut window: i32 = 0;
    loop {
        if window < WINDOW_BYTES {
            let update = WindowUpdate { update: WINDOW_BYTES };
            if stream.send(proto::any::pack(&update)).await {
                window += WINDOW_BYTES;
            }
        }
        let Some(any) = stream.next().await? else { break };
        if let Some(data) = proto::any::unpack::<Data>(&any)? {
            writer.write_all(&data.data).context("write the archive")?;
            window -= i32::try_from(data.data.len()).unwrap_or(i32::MAX);
        }
    }
    writer.flush().context("write the archive")
}
