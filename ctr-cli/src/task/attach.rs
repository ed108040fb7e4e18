//! Stays with a process until it ends.

use std::future::Future;

use super::{Console, Process, Pump, Signals};
use crate::error::{text, warn};

/// Copies streams, passes on signals and window sizes, and returns the exit status that `wait`
/// gives.
pub(crate) async fn supervise(
    process: &Process,
    pump: &mut Pump,
    signals: &mut Signals,
    console: Option<&Console>,
    wait: impl Future<Output = anyhow::Result<u32>>,
) -> anyhow::Result<u32> {
    let mut wait = std::pin::pin!(wait);
    resize(process, console).await;
    // The process may have ended before its input.
    let close = async || drop(process.close_stdin().await);
    loop {
        tokio::select! {
            status = &mut wait => return status,
            result = pump.run(&close) => result?,
            number = signals.next() => {
                if number == libc::SIGWINCH {
                    resize(process, console).await;
                } else if let Ok(signal) = u32::try_from(number)
                    && let Err(error) = process.kill(signal, false).await
                {
                    warn(&format!("pass on signal {signal}: {}", text(&error)));
                }
            }
        }
    }
}

/// Gives the process's terminal the size of this program's.
async fn resize(process: &Process, console: Option<&Console>) {
    let Some((width, height)) = console.and_then(|console| console.size().ok()) else { return };
    if let Err(error) = process.resize(width, height).await {
        warn(&format!("resize the terminal: {}", text(&error)));
    }
}
