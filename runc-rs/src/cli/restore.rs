//! `restore`.

use std::path::PathBuf;

use super::{
    checkpoint,
    flags::{ANYWHERE, Flag, Parsed, switch, value},
};
use crate::{
    error::Error,
    log,
    process::Waiter,
    restore::{Options, restore},
    settings::Settings,
};

const FLAGS: [Flag; 9] = [
    checkpoint::AUTO_DEDUP,
    value("bundle", "b"),
    value("console-socket", ""),
    value("pid-file", ""),
    switch("detach", "d"),
    switch("no-subreaper", ""),
    switch("no-pivot", ""),
    value("lsm-profile", ""),
    value("lsm-mount-context", ""),
];

pub(super) fn run(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let flags = [checkpoint::SHARED.as_slice(), &FLAGS].concat();
    let parsed = Parsed::new(words, &flags, ANYWHERE)?;
    parsed.expect("restore", 1, 1)?;
    checkpoint::warn_rootless();
    let id = super::id(&parsed)?;
    let detach = parsed.is_on("detach")?;
    // Taken for runc's sake: how the root was entered is in the images.
    parsed.is_on("no-pivot")?;
    let text = |name| parsed.value(name).filter(|text| !text.is_empty()).map(str::to_owned);
    let options = Options {
        shared: checkpoint::shared(&parsed)?,
        bundle: PathBuf::from(text("bundle").unwrap_or_else(|| ".".to_owned())),
        process: super::process_options(&parsed, detach)?,
        lsm_profile: text("lsm-profile"),
        lsm_mount_context: text("lsm-mount-context"),
    };
    if detach {
        restore(settings, &id, options)?;
        return Ok(0);
    }
    let waiter = Waiter::new(!parsed.is_on("no-subreaper")?)?;
    let new = restore(settings, &id, options)?;
    let status = waiter.wait(&new.init);
    if status.is_err() {
        new.container.kill()?;
    }
    if let Err(error) = new.container.destroy() {
        log::warn(&format!("delete container: {}", sys::error::Chain(&error)));
    }
    status
}
