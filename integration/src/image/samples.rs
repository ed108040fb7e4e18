//! The images that the tests, the benches and the demo run.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Flavour, Image, Layer};
use crate::programs;

/// The names under which busybox is linked into the image.
const APPLETS: &[&str] = &[
    "cat", "chmod", "cut", "date", "dd", "df", "echo", "env", "expr", "false", "grep", "head",
    "hostname", "id", "kill", "ls", "mkdir", "mount", "nproc", "ps", "pwd", "readlink", "rm",
    "seq", "sh", "sleep", "sort", "stat", "stty", "tail", "test", "top", "touch", "tr", "true",
    "tty", "uname", "wc", "whoami", "yes",
];

/// Makes the image that most tests run: busybox, two users, and the usual directories.
///
/// # Errors
///
/// There is no busybox on this machine, or it cannot be read.
pub fn busybox(flavour: Flavour) -> Result<Image> {
    Ok(Image::new(flavour, "amd64", &busybox_layers()?, &busybox_config()))
}

/// Makes an image with one program of this project's, which is its entry point.
///
/// # Errors
///
/// The program was not built, or cannot be read.
pub fn probe(flavour: Flavour) -> Result<Image> {
    let program = programs::own("probe")?;
    let content = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    let layer = Layer::default().file("probe", 0o755, content);
    let config = json!({"Entrypoint": ["/probe"], "Env": ["PATH=/"], "WorkingDir": "/"});
    Ok(Image::new(flavour, "amd64", &[layer], &config))
}

/// Makes an image of three layers in which upper layers change, remove and hide lower files.
///
/// What must be seen: `/kept` says `lower`, `/changed` says `upper`, `/removed` is not there,
/// `/opaque` has only `new`, `/linked` and `/sticky-too` are what they link to. Images of
/// different `salt` differ in the upper two layers.
///
/// # Errors
///
/// Those of [`busybox`].
pub fn layered(flavour: Flavour, salt: &str) -> Result<Image> {
    let mut layers = busybox_layers()?;
    layers.push(
        Layer::default()
            .file("kept", 0o644, "lower\n")
            .file("salt-lower", 0o644, salt)
            .file("changed", 0o644, "lower\n")
            .file("removed", 0o644, "lower\n")
            .directory("opaque", 0o755)
            .file("opaque/old", 0o644, "lower\n"),
    );
    layers.push(
        Layer::default()
            .file("changed", 0o600, "upper\n")
            .file("salt-upper", 0o644, salt)
            .whiteout("removed")
            .directory("opaque", 0o755)
            .opaque("opaque")
            .file("opaque/new", 0o644, "upper\n")
            .symlink("linked", "changed")
            .file("sticky", 0o1755, "mode\n")
            .hard_link("sticky-too", "sticky"),
    );
    Ok(Image::new(flavour, "amd64", &layers, &busybox_config()))
}

/// Makes an index of two platforms, of which this machine has one.
///
/// # Errors
///
/// Those of [`busybox`].
pub fn multi_platform(flavour: Flavour) -> Result<Image> {
    let foreign = Layer::default().file("bin/sh", 0o755, "not for this machine\n");
    let foreign = Image::new(flavour, "s390x", &[foreign], &busybox_config());
    Ok(Image::index(flavour, &[("s390x", foreign), ("amd64", busybox(flavour)?)]))
}

fn busybox_config() -> Value {
    json!({
        "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "FROM_IMAGE=yes"],
        "Cmd": ["sh"], "WorkingDir": "/", "Labels": {"made": "here"},
    })
}

/// Makes the layers of [`busybox`], for archives that have them uncompressed.
///
/// # Errors
///
/// Those of [`busybox`].
pub fn busybox_layers() -> Result<Vec<Layer>> {
    let program = programs::debian("busybox")?;
    let content = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    let mut layer = ["bin", "dev", "etc", "proc", "root", "sys", "run"]
        .iter()
        .fold(Layer::default(), |layer, directory| layer.directory(directory, 0o755))
        .directory("tmp", 0o1777)
        .file("bin/busybox", 0o755, content);
    for applet in APPLETS {
        layer = layer.hard_link(&format!("bin/{applet}"), "bin/busybox");
    }
    let accounts = Layer::default()
        .file("etc/passwd", 0o644, "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")
        .file("etc/group", 0o644, "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n");
    Ok(vec![layer, accounts])
}
