//! `delete`.

use super::flags::{ANYWHERE, Parsed, switch};
use crate::{
    container::{Container, Status},
    error::Error,
    settings::Settings,
};

pub(super) fn run(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &[switch("force", "f")], ANYWHERE)?;
    parsed.expect("delete", 1, 1)?;
    let force = parsed.is_on("force")?;
    let id = super::id(&parsed)?;
    let container = match Container::load(&settings.root, &id) {
        Ok(container) => container,
        Err(Error::NoSuchContainer) => {
            // What a create left that was cut short before there was a record.
            settings.root.entry(&id).remove()?;
            return if force { Ok(0) } else { Err(Error::NoSuchContainer) };
        }
        Err(error) => return Err(error),
    };
    if force {
        let killed = container.kill();
        container.destroy()?;
        killed?;
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
