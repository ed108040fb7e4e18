//! `delete`.

use sys::error::Chain;

use super::flags::{ANYWHERE, Parsed, switch};
use crate::{
    container::{Container, Status},
    error::Error,
    log,
    settings::Settings,
};

pub(super) fn run(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &[switch("force", "f")], ANYWHERE)?;
    parsed.expect("delete", 1, 1)?;
    let force = parsed.is_on("force")?;
    let id = super::id(&parsed)?;
    let container = match Container::load(&settings.root, &id) {
        Ok(container) => container,
        // What a create left that was cut short before there was a record.
        Err(Error::NoSuchContainer) => {
            let removed = match Container::remains(&settings.root, &id) {
                Ok(remains) => remove(remains),
                Err(error) => Err(error),
            };
            return match removed {
                Ok(()) | Err(Error::NoSuchContainer) if force => Ok(0),
                Ok(()) => Err(Error::NoSuchContainer),
                Err(error) => Err(error),
            };
        }
        Err(error) if force => {
            log::warn(&Chain(&error).to_string());
            Container::remains(&settings.root, &id)?
        }
        Err(error) => return Err(error),
    };
    if force {
        remove(container)?;
        return Ok(0);
    }
    match container.status()? {
        Status::Stopped => {}
        Status::Created => container.kill()?,
        status => {
            return Err(Error::Status(format!(
                "cannot delete container {id} that is not stopped: {status}"
            )));
        }
    }
    container.destroy()?;
    Ok(0)
}

/// Kills and removes, whatever the status.
fn remove(container: Container) -> Result<(), Error> {
    match container.kill() {
        // What still runs stays on record.
        Err(error @ Error::Status(_)) => Err(error),
        killed => container.destroy().and(killed),
    }
}
