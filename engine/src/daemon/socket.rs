//! The socket that clients connect to.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener as StdListener, UnixStream},
    },
    path::Path,
};

use tokio::net::UnixListener;

use crate::error::Error;

/// Listens on `path` for clients of `uid`, and of `gid` if that is not 0. A socket that nobody
/// listens on any more is replaced.
///
/// The socket is made under another name and renamed when it has its owner and mode, so nobody
/// else can connect in between.
pub(super) fn bind(path: &Path, uid: u32, gid: u32) -> Result<UnixListener, Error> {
    if UnixStream::connect(path).is_ok() {
        return Err(Error::Unavailable(format!("somebody serves {}", path.display())));
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = Path::new(&fresh);
    // What an earlier daemon may have left when it was killed here.
    let _ = fs::remove_file(fresh);
    let listener = StdListener::bind(fresh).map_err(Error::file("bind", fresh))?;
    let mode = if gid == 0 { 0o600 } else { 0o660 };
    fs::set_permissions(fresh, Permissions::from_mode(mode))
        .map_err(Error::file("set permissions of", fresh))?;
    std::os::unix::fs::chown(fresh, Some(uid), Some(gid))
        .map_err(Error::file("change owner of", fresh))?;
    fs::rename(fresh, path).map_err(Error::file("rename", path))?;
    listener.set_nonblocking(true).map_err(Error::file("set up", path))?;
    UnixListener::from_std(listener).map_err(Error::file("listen on", path))
}
