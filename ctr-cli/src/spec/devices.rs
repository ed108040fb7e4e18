//! The host's device nodes.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use anyhow::Context as _;

use super::{Device, DeviceRule, Spec};

/// Directories below `/dev` whose nodes belong to the host's instance of a filesystem.
const SKIPPED: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// How deep a tree of devices is followed.
const DEPTH_MAX: usize = 16;

/// All devices of the host.
pub(crate) fn host_devices() -> anyhow::Result<Vec<Device>> {
    device_at(Path::new("/dev"))
}

/// The device at `path`, or all that are below it if it is a directory.
///
/// # Errors
///
/// There is nothing, or something that is neither a device nor a directory.
pub(crate) fn device_at(path: &Path) -> anyhow::Result<Vec<Device>> {
    let metadata = fs::metadata(path).with_context(|| format!("device {}", path.display()))?;
    let mut found = Vec::new();
    if metadata.is_dir() {
        walk(path, DEPTH_MAX, &mut found)?;
    } else {
        let device = node(path)?.with_context(|| format!("{} is not a device", path.display()))?;
        found.push(device);
    }
    Ok(found)
}

fn walk(directory: &Path, depth: usize, found: &mut Vec<Device>) -> anyhow::Result<()> {
    let context = || format!("read {}", directory.display());
    for entry in fs::read_dir(directory).with_context(context)? {
        let entry = entry.with_context(context)?;
        let name = entry.file_name();
        if entry.file_type().with_context(context)?.is_dir() {
            if depth > 0 && !SKIPPED.iter().any(|skipped| name == *skipped) {
                walk(&entry.path(), depth - 1, found)?;
            }
        } else if name != "console" {
            found.extend(node(&entry.path())?.filter(|device| device.kind != "p"));
        }
    }
    Ok(())
}

/// The device node at `path`; symbolic links are none.
fn node(path: &Path) -> anyhow::Result<Option<Device>> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("stat {}", path.display())),
    };
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => "b",
        kind if kind.is_char_device() => "c",
        kind if kind.is_fifo() => "p",
        _ => return Ok(None),
    };
    Ok(Some(Device {
        path: path.to_string_lossy().into_owned(),
        kind: kind.to_owned(),
        major: i64::from(rustix::fs::major(metadata.rdev())),
        minor: i64::from(rustix::fs::minor(metadata.rdev())),
        file_mode: Some(metadata.mode() & 0o7777),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
    }))
}

impl Spec {
    /// Makes devices appear in the container and lets it use them.
    pub(crate) fn add_devices(&mut self, devices: Vec<Device>) {
        let rule = |device: &Device| DeviceRule {
            allow: true,
            kind: device.kind.clone(),
            major: Some(device.major),
            minor: Some(device.minor),
            access: "rwm".to_owned(),
        };
        self.linux.resources.devices.extend(devices.iter().map(rule));
        self.linux.devices.extend(devices);
    }

    /// Lets the container use every device, and makes those of the host appear in it.
    pub(crate) fn add_host_devices(&mut self, devices: Vec<Device>) {
        let allow_all =
            DeviceRule { allow: true, access: "rwm".to_owned(), ..DeviceRule::default() };
        self.linux.resources.devices = vec![allow_all];
        self.linux.devices.extend(devices);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null() {
        let found = device_at(Path::new("/dev/null")).expect("is on every host");
        assert_eq!(found.len(), 1);
        let device = &found[0];
        assert_eq!((device.kind.as_str(), device.major, device.minor), ("c", 1, 3));
    }

    #[test]
    fn refused() {
        for path in ["/dev/does-not-exist", "/etc/passwd"] {
            let error = device_at(Path::new(path)).expect_err("not a device");
            assert!(error.to_string().contains(path), "{error}");
        }
    }
}
