//! The kernel of emulated machines: Debian's for clouds, whose package is unpacked into the target
//! directory. Installing it would make it this machine's own.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use integration::vm::emulated;

/// The package that depends on the newest such kernel.
pub(super) const PACKAGE: &str = "linux-image-cloud-amd64";

/// What the kernels' packages are called, without their versions.
const PREFIX: &str = "linux-image-";

pub(super) fn is_there() -> bool {
    emulated::directory().join("boot").is_dir()
}

/// Fetches the kernel and unpacks it, if it is not there.
pub(super) fn fetch() -> Result<()> {
    if is_there() {
        return Ok(());
    }
    let target = emulated::directory();
    let scratch = target.with_extension("new");
    // What an earlier try has left.
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch)?;
    let tree = scratch.join("tree");
    let depends = output(&scratch, &["apt-cache", "depends", PACKAGE])?;
    let package = newest(&depends).with_context(|| format!("{PACKAGE} is not to be had"))?;
    println!("needs: fetching {package}");
    output(&scratch, &["apt-get", "download", package])?;
    let archive = fs::read_dir(&scratch)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get has left no {package}"))?;
    let (archive, tree_name) = (archive.display().to_string(), tree.display().to_string());
    output(&scratch, &["dpkg-deb", "--extract", &archive, &tree_name])?;
    let version = package.trim_start_matches(PREFIX);
    output(&scratch, &["busybox", "depmod", "-b", &tree_name, version])?;
    // All of it, or nothing.
    fs::rename(&tree, &target).with_context(|| target.display().to_string())?;
    fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())
}

/// The kernel's package, in what `apt-cache depends` says.
fn newest(text: &str) -> Option<&str> {
    let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    lines.find(|package| package.starts_with(PREFIX))
}

/// Runs a program in a directory, and gives its output.
fn output(directory: &Path, words: &[&str]) -> Result<String> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", words[0]))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", words.join(" "), errors.trim());
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_kernels_package() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-1-cloud-amd64\n";
        assert_eq!(newest(text), Some("linux-image-6.1.0-1-cloud-amd64"));
        assert_eq!(newest("linux-image-cloud-amd64\n"), None);
    }
}
