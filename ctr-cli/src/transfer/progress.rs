//! Shows how far a transfer is: bars on a terminal, lines elsewhere, and the total at the end.

use std::{
    collections::HashMap,
    io::{self, IsTerminal as _},
    time::Instant,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use prost_types::Any;
use proto::containerd::types::transfer::Progress as Message;

use crate::output::{binary_size, outln};

/// Events after which nothing happens to an item.
const FINAL: [&str; 7] =
    ["complete", "done", "extracted", "already exists", "exists", "saved", "uploaded"];

/// The progress of one transfer.
pub(crate) struct Progress {
    started: Instant,
    bars: Option<MultiProgress>,
    items: HashMap<String, Item>,
    /// The last message about the transfer as a whole.
    status: String,
}

struct Item {
    event: String,
    bytes: i64,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let bars = io::stdout()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stdout_with_hz(10)));
        Self { started: Instant::now(), bars, items: HashMap::new(), status: String::new() }
    }

    /// Takes a message from the daemon.
    pub(crate) fn update(&mut self, any: &Any) -> anyhow::Result<()> {
        let Some(message) = proto::any::unpack::<Message>(any)? else { return Ok(()) };
        if message.name.is_empty() {
            if self.bars.is_none() && self.status != message.event {
                outln!("{}", message.event)?;
            }
            self.status = message.event;
            return Ok(());
        }
        let bars = self.bars.as_ref();
        let item = self.items.entry(message.name.clone()).or_insert_with(|| Item {
            event: String::new(),
            bytes: 0,
            bar: bars.map(|bars| bars.add(new_bar(&shorten(&message.name)))),
        });
        let changed = item.event != message.event;
        item.bytes = item.bytes.max(message.progress);
        item.event.clone_from(&message.event);
        match &item.bar {
            Some(bar) => draw(bar, &message),
            None if changed && is_final(&message.event) => {
                outln!("{} {}", shorten(&message.name), message.event)?;
            }
            None => {}
        }
        Ok(())
    }

    /// Shows the total.
    pub(crate) fn finish(&self) {
        for bar in self.items.values().filter_map(|item| item.bar.as_ref()) {
            bar.finish();
        }
        let total: i64 = self.items.values().map(|item| item.bytes).sum();
        let elapsed = self.started.elapsed();
        let millis = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX).max(1);
        let rate = total.saturating_mul(1000) / millis;
        // Output that is gone is no reason to fail a transfer that is done.
        let _ = outln!(
            "elapsed: {:.1}s\ttotal: {}\t({}/s)",
            elapsed.as_secs_f64(),
            binary_size(total),
            binary_size(rate)
        );
    }
}

fn is_final(event: &str) -> bool {
    FINAL.contains(&event)
}

fn new_bar(name: &str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_prefix(name.to_owned());
    let template = "{prefix:40!} {msg:12} {wide_bar} {bytes:>11}/{total_bytes:<11}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn draw(bar: &ProgressBar, message: &Message) {
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    if message.total > 0 {
        bar.set_length(number(message.total));
    }
    bar.set_position(number(message.progress));
    bar.set_message(message.event.clone());
    if is_final(&message.event) {
        bar.set_position(bar.length().unwrap_or(0));
    }
}

/// A name with its digest cut to what people compare.
fn shorten(name: &str) -> String {
    match name.split_once("-sha256:") {
        Some((kind, hex)) if hex.len() == 64 && hex.is_ascii() => {
            format!("{kind} ({})", &hex[..12])
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(shorten(&format!("layer-{digest}")), "layer (aaaaaaaaaaaa)");
        assert_eq!(shorten("docker.io/library/a-b:c"), "docker.io/library/a-b:c");
    }
}
