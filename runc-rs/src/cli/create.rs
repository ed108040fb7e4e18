//! `create`.

use std::path::PathBuf;

use super::flags::{ANYWHERE, Flag, Parsed, switch, value};
use crate::{create, error::Error, notify, seal, settings::Settings};

/// The flags that `create` and `run` have in common.
pub(super) const FLAGS: [Flag; 7] = [
    value("bundle", "b"),
    value("console-socket", ""),
    value("pidfd-socket", ""),
    value("pid-file", ""),
    switch("no-pivot", ""),
    switch("no-new-keyring", ""),
    value("preserve-fds", ""),
];

pub(super) fn run(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &FLAGS, ANYWHERE)?;
    parsed.expect("create", 1, 1)?;
    seal::seal()?;
    let options = create::Options { waits: true, ..options(&parsed, true)? };
    create::create(settings, &super::id(&parsed)?, options)?;
    Ok(0)
}

/// What the common flags say.
pub(super) fn options(parsed: &Parsed, detach: bool) -> Result<create::Options, Error> {
    let bundle = parsed.value("bundle").filter(|path| !path.is_empty()).unwrap_or(".");
    Ok(create::Options {
        bundle: PathBuf::from(bundle),
        process: super::process_options(parsed, detach)?,
        notify: notify::host_socket().is_some(),
        no_pivot: parsed.is_on("no-pivot")?,
        no_new_keyring: parsed.is_on("no-new-keyring")?,
        waits: false,
    })
}
