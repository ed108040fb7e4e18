//! The filesystem that a machine begins with: busybox, the first program, and modules.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// The machine's first program.
const INIT: &str = include_str!("../../vm/init");

/// The shell and everything else that the first program uses.
pub(super) const BUSYBOX: &str = "/bin/busybox";

const APPLETS: &str =
    "sh mount umount mkdir rmdir insmod cat echo switch_root poweroff ln hostname chmod cp";

/// Checks that one can be made.
pub(super) fn check() -> Result<()> {
    ensure!(Path::new(BUSYBOX).is_file(), "{BUSYBOX} is missing: install busybox-static");
    Ok(())
}

/// Packs it, by way of the directory `tree`; modules are loaded in the order given.
pub(super) fn make(tree: &Path, file: &Path, modules: &[PathBuf]) -> Result<()> {
    for name in ["bin", "dev", "proc", "sys", "modules"] {
        fs::create_dir_all(tree.join(name))?;
    }
    fs::copy(BUSYBOX, tree.join("bin/busybox"))?;
    for applet in APPLETS.split(' ') {
        symlink("busybox", tree.join("bin").join(applet))?;
    }
    fs::write(tree.join("init"), INIT)?;
    fs::set_permissions(tree.join("init"), PermissionsExt::from_mode(0o755))?;
    for (place, module) in modules.iter().enumerate() {
        // The first program takes them by their names' order.
        let name = format!("{place:03}.ko");
        fs::copy(module, tree.join("modules").join(name))
            .with_context(|| module.display().to_string())?;
    }
    let mut packer = Command::new(BUSYBOX)
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(File::create(file)?)
        .stderr(Stdio::null())
        .spawn()?;
    let mut names = String::new();
    list(tree, Path::new(""), &mut names)?;
    packer.stdin.take().expect("is piped").write_all(names.as_bytes())?;
    ensure!(packer.wait()?.success(), "pack the initramfs: busybox cpio failed");
    Ok(())
}

/// The names of what is in a directory, those of directories first, as cpio wants them.
fn list(tree: &Path, below: &Path, names: &mut String) -> Result<()> {
    for entry in fs::read_dir(tree.join(below))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        *names += &format!("{}\n", name.display());
        if entry.file_type()?.is_dir() {
            list(tree, &name, names)?;
        }
    }
    Ok(())
}
