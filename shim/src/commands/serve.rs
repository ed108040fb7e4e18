//! Serving: what the process that `start` leaves behind does.

use std::{fs, os::unix::net::UnixListener, path::Path};

use sys::spawn::{FIRST_PASSED, take_passed_fd};

use crate::{
    args::Args,
    commands::{CommandError, TTRPC_ADDRESS},
    log::Log,
    shim::{Config, Shim},
    socket::{self, Bound},
};

/// Serves until someone shuts the shim down, and removes the socket.
///
/// The socket is inherited as descriptor 3, or made where `-socket` says.
///
/// # Errors
///
/// There is no socket, or the loop breaks.
pub fn serve(args: &Args) -> Result<(), CommandError> {
    if args.namespace.is_empty() {
        return Err(CommandError::Missing { flag: "namespace" });
    }
    let listener = listener(args).map_err(CommandError::io("listen"))?;
    let address = listener.local_addr().map_err(CommandError::io("listen"))?;
    let socket = address.as_pathname().unwrap_or(Path::new("")).to_owned();
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
        .map_err(|error| CommandError::Io { what: "become subreaper", source: error.into() })?;
    let log = Log::open(Path::new("log"), &args.namespace, args.debug);
    log.take_stderr();
    let config = Config {
        namespace: args.namespace.clone(),
        events_address: std::env::var_os(TTRPC_ADDRESS).unwrap_or_default().into(),
        socket: socket.clone(),
    };
    let served = Shim::new(config, listener, log).and_then(Shim::run);
    // Whoever starts a shim of this name next replaces what could not be removed.
    let _ = fs::remove_file(&socket);
    served.map_err(CommandError::io("serve"))
}

fn listener(args: &Args) -> std::io::Result<UnixListener> {
    let Some(path) = &args.socket else {
        return Ok(take_passed_fd(FIRST_PASSED)?.into());
    };
    match socket::bind(path)? {
        Bound::New(listener) => Ok(listener),
        Bound::Served => Err(std::io::ErrorKind::AddrInUse.into()),
    }
}
