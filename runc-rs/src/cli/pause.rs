//! `pause` and `resume`.

use super::flags::{ANYWHERE, Parsed};
use crate::{container::Status, error::Error, settings::Settings};

pub(super) fn pause(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &[], ANYWHERE)?;
    parsed.expect("pause", 1, 1)?;
    let container = super::container(settings, &parsed)?;
    match container.status()? {
        Status::Running | Status::Created => container.cgroup().freeze()?,
        _ => return Err(Error::Status("container not running".to_owned())),
    }
    Ok(0)
}

pub(super) fn resume(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &[], ANYWHERE)?;
    parsed.expect("resume", 1, 1)?;
    let container = super::container(settings, &parsed)?;
    if container.status()? != Status::Paused {
        return Err(Error::Status("container not paused".to_owned()));
    }
    container.cgroup().thaw()?;
    Ok(0)
}
