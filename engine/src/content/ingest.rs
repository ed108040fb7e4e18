//! The files of an unfinished write.

use std::{fs, io, path::Path, time::SystemTime};

use super::WriteStatus;
use crate::error::Error;

/// Makes the folder of a new write, with everything but its data.
pub(super) fn create(
    folder: &Path,
    reference: &str,
    total: u64,
    lease: Option<&str>,
) -> Result<(), Error> {
    let now = text(SystemTime::now());
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(Error::file("write", path))
    };
    fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    put("startedat", &now)?;
    put("updatedat", &now)?;
    if total > 0 {
        put("total", &total.to_string())?;
    }
    if let Some(lease) = lease {
        put("lease", lease)?;
    }
    // Last, for a folder without it is no write yet.
    put("ref", reference)
}

/// Notes when the write was last changed.
pub(super) fn touch(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("updatedat"), text(SystemTime::now()))
}

/// How far the write has come; nothing when there is none. The ref starts with the namespace.
pub(super) fn status(folder: &Path) -> Result<Option<WriteStatus>, Error> {
    let Some(reference) = read(folder, "ref")? else { return Ok(None) };
    let path = folder.join("data");
    let data = match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        data => Some(data.map_err(Error::file("stat", path))?),
    };
    let time = |name: &str| -> Result<SystemTime, Error> {
        let time = read(folder, name)?.and_then(|text| text.parse::<jiff::Timestamp>().ok());
        Ok(time.map_or(SystemTime::UNIX_EPOCH, Into::into))
    };
    let written = data.as_ref().and_then(|data| data.modified().ok());
    Ok(Some(WriteStatus {
        reference,
        offset: data.map_or(0, |data| data.len()),
        total: read(folder, "total")?.and_then(|text| text.parse().ok()).unwrap_or(0),
        expected: None,
        started: time("startedat")?,
        updated: time("updatedat")?.max(written.unwrap_or(SystemTime::UNIX_EPOCH)),
    }))
}

/// The leases that keep the write.
pub(super) fn leases(folder: &Path) -> Vec<String> {
    let text = read(folder, "lease").ok().flatten().unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Adds a lease to those that keep the write.
pub(super) fn add_lease(folder: &Path, lease: &str) -> Result<(), Error> {
    let mut leases = leases(folder);
    if leases.iter().any(|known| known == lease) {
        return Ok(());
    }
    leases.push(lease.to_owned());
    let path = folder.join("lease");
    fs::write(&path, leases.join("\n")).map_err(Error::file("write", path))
}

fn read(folder: &Path, name: &str) -> Result<Option<String>, Error> {
    let path = folder.join(name);
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Cut short by a crash: as good as absent.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        text => Ok(Some(text.map_err(Error::file("read", path))?).filter(|text| !text.is_empty())),
    }
}

fn text(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}
