//! `run` and `start`.

use super::{
    create,
    flags::{ANYWHERE, Flag, Parsed, switch},
};
use std::os::fd::AsFd as _;

use crate::{
    container::{Container, Status},
    create as creation,
    error::Error,
    log,
    notify::{self, Notify},
    process::Waiter,
    seal,
    settings::Settings,
};

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
        return match start_and_notify(&new.container) {
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
    let notify = notify(&new.container);
    let status = notify.and_then(|notify| {
        new.container.start()?;
        waiter.wait_and_notify(&new.init, notify.as_ref())
    });
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
    start_and_notify(&super::container(settings, &parsed)?)?;
    Ok(0)
}

/// The socket by which the container says that it is ready, where somebody wants to know.
fn notify(container: &Container) -> Result<Option<Notify>, Error> {
    let host = notify::host_socket();
    host.map(|host| Notify::new(&container.entry, host)).transpose()
}

/// Starts a container for which nobody waits, but for its word that it is ready.
fn start_and_notify(container: &Container) -> Result<(), Error> {
    if container.status()? != Status::Created {
        return container.start();
    }
    let notify = notify(container)?;
    let init = container.init()?;
    container.start()?;
    match (notify, init) {
        (Some(notify), Some(init)) => notify.wait(init.as_fd(), container.state.init_process_pid),
        _ => Ok(()),
    }
}
