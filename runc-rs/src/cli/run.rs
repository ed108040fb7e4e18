//! `run` and `start`.

use super::{
    create,
    flags::{ANYWHERE, Flag, Parsed, switch},
};
use crate::{create as creation, error::Error, log, process::Waiter, seal, settings::Settings};

const FLAGS: [Flag; 3] = [switch("detach", "d"), switch("keep", ""), switch("no-subreaper", "")];

pub(super) fn run(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let flags = [create::FLAGS.as_slice(), &FLAGS].concat();
    let parsed = Parsed::new(words, &flags, ANYWHERE)?;
    parsed.expect("run", 1, 1)?;
    seal::seal()?;
    let detach = parsed.is_on("detach")?;
    let id = super::id(&parsed)?;
    let options = create::options(&parsed, detach)?;
    if detach {
        let new = creation::create(settings, &id, options)?;
        return match new.container.start() {
            Ok(()) => Ok(0),
            Err(error) => {
                new.container.kill()?;
                new.container.destroy()?;
                Err(error)
            }
        };
    }
    let waiter = Waiter::new(!parsed.is_on("no-subreaper")?)?;
    let new = creation::create(settings, &id, options)?;
    let status = new.container.start().and_then(|()| waiter.wait(&new.init));
    if status.is_err() {
        new.container.kill()?;
    }
    if parsed.is_on("keep")? {
        return status;
    }
    if let Err(error) = new.container.destroy() {
        log::warn(&format!("delete container: {}", sys::error::Chain(&error)));
    }
    status
}

pub(super) fn start(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &[], ANYWHERE)?;
    parsed.expect("start", 1, 1)?;
    super::container(settings, &parsed)?.start()?;
    Ok(0)
}
