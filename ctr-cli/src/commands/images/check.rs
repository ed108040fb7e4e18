//! `ctr images check`

use clap::Args;
use proto::containerd::services::images::v1::Image;

use super::list_images;
use crate::{
    cli::Global,
    client::Client,
    image::{Descriptor, blob_exists, contents, resolve, resolve_snapshotter, snapshot_exists},
    output::{Table, binary_size, outln},
    platform::Platform,
};

/// Check whether images are complete and unpacked
#[derive(Args, Debug)]
pub(crate) struct Check {
    /// Check only images that match one of these
    filters: Vec<String>,
    /// Print only the names of images that can be run
    #[arg(long, short)]
    quiet: bool,
    /// Snapshotter (empty: the namespace's default)
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER")]
    snapshotter: Option<String>,
}

impl Check {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let snapshotter = resolve_snapshotter(&client, self.snapshotter.as_deref()).await?;
        let mut table =
            Table::new(&["REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED"]).ragged();
        let images = list_images(&client, self.filters).await?;
        if images.is_empty() {
            return Ok(());
        }
        for image in images {
            let state = State::of(&client, &image, &snapshotter).await?;
            if self.quiet {
                if state.complete && state.unpacked {
                    outln!("{}", image.name)?;
                }
                continue;
            }
            let target = image.target.unwrap_or_default();
            let unpacked = state.unpacked.to_string();
            let cells = [image.name, target.media_type, target.digest, state.status];
            let [name, media_type, digest, status] = cells;
            table.row([name, media_type, digest, status, state.size, unpacked]);
        }
        if self.quiet { Ok(()) } else { Ok(table.print()?) }
    }
}

struct State {
    status: String,
    size: String,
    complete: bool,
    unpacked: bool,
}

impl State {
    async fn of(client: &Client, image: &Image, snapshotter: &str) -> anyhow::Result<Self> {
        let target = image.target.clone().unwrap_or_default().into();
        let platform = Platform::host();
        let Ok(parts) = contents(client, &target, &platform).await else {
            let status = "unavailable (0/?)".to_owned();
            return Ok(Self {
                status,
                size: "0.0 B/?".to_owned(),
                complete: false,
                unpacked: false,
            });
        };
        // The documents have been read, so they are there; configuration and layers count.
        let is_document = |part: &&Descriptor| {
            part.media_type.contains("manifest") || part.media_type.contains("index")
        };
        let needed: Vec<_> = parts.iter().filter(|part| !is_document(part)).collect();
        let (mut present, mut present_bytes) = (0, 0);
        let total: i64 = needed.iter().map(|own| own.size).sum();
        for blob in &needed {
            if blob_exists(client, &blob.digest).await? {
                (present, present_bytes) = (present + 1, present_bytes + blob.size);
            }
        }
        let complete = present == needed.len();
        let unpacked = match resolve(client, &target, &platform).await {
            Ok(resolved) => match resolved.chain_id() {
                Some(name) => snapshot_exists(client, snapshotter, &name).await?,
                None => true,
            },
            Err(_) => false,
        };
        let word = if complete { "complete" } else { "incomplete" };
        Ok(Self {
            status: format!("{word} ({present}/{})", needed.len()),
            size: format!("{}/{}", binary_size(present_bytes), binary_size(total)),
            complete,
            unpacked,
        })
    }
}
