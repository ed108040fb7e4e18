//! What bad input gets: an error that names the thing, and nothing left behind.

use std::fs;

use anyhow::Result;
use integration::{
    cell::{Cell, Client, IMAGE},
    image::{self, Flavour, Layer},
};
use serde_json::json;

use super::{Case, has, has_not, needs_own_client};

pub(crate) const CASES: &[Case] = &[
    Case { name: "bad_unknown_image", run: unknown_image },
    Case { name: "bad_short_image_name", run: short_name },
    Case { name: "bad_unknown_container", run: unknown_container },
    Case { name: "bad_unknown_task", run: unknown_task },
    Case { name: "bad_unknown_exec", run: unknown_exec },
    Case { name: "bad_unknown_snapshotter", run: unknown_snapshotter },
    Case { name: "bad_unknown_runtime", run: unknown_runtime },
    Case { name: "bad_command_not_found", run: command_not_found },
    Case { name: "bad_command_not_executable", run: command_not_executable },
    Case { name: "bad_exec_not_found", run: exec_not_found },
    Case { name: "bad_mount_source", run: mount_source },
    Case { name: "bad_container_id", run: container_id },
    Case { name: "bad_archive_garbage", run: |cell| archive(cell, &[b'x'; 5000]) },
    Case { name: "bad_archive_truncated", run: truncated_archive },
    Case { name: "bad_archive_digest", run: wrong_blob },
    Case { name: "bad_layer", run: bad_layer },
    Case { name: "bad_diff_id", run: bad_diff_id },
];

fn unknown_image(cell: &mut Cell) -> Result<()> {
    let name = "nowhere.test/nothing:1";
    let id = cell.id();
    let said = cell.refused(&["run", "--rm", name, &id, "true"])?;
    has(&said, name)?;
    has(&said, "not found")?;
    has_not(&cell.ok(&["containers", "ls", "-q"])?, &id)
}

fn short_name(cell: &mut Cell) -> Result<()> {
    needs_own_client(cell, "Debian's ctr takes full references only")?;
    let id = cell.id();
    let said = cell.refused(&["run", "--rm", "nothing:1.21.6", &id, "true"])?;
    has(&said, "docker.io/library/nothing:1.21.6")
}

fn unknown_container(cell: &mut Cell) -> Result<()> {
    for words in [["containers", "info", "nobody"], ["tasks", "start", "nobody"]] {
        let said = cell.refused(&words)?;
        has(&said, "nobody")?;
        has(&said, "not found")?;
    }
    Ok(())
}

fn unknown_task(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    cell.ok(&["containers", "create", IMAGE, &id, "true"])?;
    let said = cell.refused(&["tasks", "kill", &id])?;
    cell.ok(&["containers", "rm", &id])?;
    has(&said, &id)?;
    has(&said, "not found")
}

fn unknown_exec(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let said = cell.ctr(&["tasks", "kill", "--exec-id", "nothing", &id])?;
    cell.remove(&id)?;
    has(&said.refused()?, "not found")
}

fn unknown_snapshotter(cell: &mut Cell) -> Result<()> {
    let said = cell.run(&["--snapshotter", "nothing"], &cell.id(), &["true"])?.refused()?;
    has(&said, "nothing")?;
    has(&said, "not")
}

fn unknown_runtime(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    let runtime = "io.containerd.nothing.v1";
    let said = cell.refused(&["run", "--rm", "--runtime", runtime, IMAGE, &id, "true"])?;
    has(&said, "containerd-shim-nothing-v1")?;
    has_not(&cell.ok(&["containers", "ls", "-q"])?, &id)
}

fn command_not_found(cell: &mut Cell) -> Result<()> {
    for flags in [&["--rm"][..], &["--rm", "-t"]] {
        let id = cell.id();
        let flags: Vec<&str> = flags.iter().copied().filter(|flag| *flag != "-t").collect();
        let said = cell.run(&flags, &id, &["no-such-command"])?.refused()?;
        has(&said, "no-such-command")?;
        has(&said, "not found")?;
        has_not(&cell.ok(&["tasks", "ls", "-q"])?, &id)?;
        has_not(&cell.ok(&["containers", "ls", "-q"])?, &id)?;
    }
    Ok(())
}

fn command_not_executable(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    let said = cell.run(&["--rm"], &id, &["/etc/passwd"])?.refused()?;
    has(&said.to_lowercase(), "permission denied")?;
    has_not(&cell.ok(&["containers", "ls", "-q"])?, &id)
}

fn exec_not_found(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let said = cell.ctr(&["tasks", "exec", "--exec-id", "e", &id, "no-such-command"])?;
    let after = cell.ctr(&["tasks", "exec", "--exec-id", "e", &id, "echo", "fine"])?;
    cell.remove(&id)?;
    has(&said.refused()?, "no-such-command")?;
    has(&after.ok()?, "fine")
}

fn mount_source(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    let mount = "type=bind,src=/no/such/place,dst=/data,options=rbind";
    let said = cell.run(&["--rm", "--mount", mount], &id, &["true"])?.refused()?;
    has(&said, "/no/such/place")?;
    has_not(&cell.ok(&["containers", "ls", "-q"])?, &id)
}

fn container_id(cell: &mut Cell) -> Result<()> {
    let long = "x".repeat(77);
    for id in ["with/slash", "..", "-dash-", long.as_str()] {
        let said = cell.ctr(&["containers", "create", "--", IMAGE, id, "true"])?.refused()?;
        has(&said, id)?;
    }
    Ok(())
}

fn archive(cell: &Cell, bytes: &[u8]) -> Result<()> {
    let images = cell.ok(&["images", "ls", "-q"])?;
    let file = cell.file("bad.tar");
    fs::write(&file, bytes)?;
    cell.refused(&["images", "import", &file.display().to_string()])?;
    if cell.choice().client == Client::Debian {
        // It names an image before it has looked into its layers.
        let all = cell.ok(&["images", "ls", "-q"])?;
        for name in all.lines().filter(|name| !images.contains(name)) {
            cell.ok(&["images", "rm", "--sync", name])?;
        }
    }
    super::same(cell.ok(&["images", "ls", "-q"])?, images)
}

fn truncated_archive(cell: &mut Cell) -> Result<()> {
    let whole =
        image::oci_archive(&image::layered(Flavour::Oci, "bad_input-1")?, "bad.test/truncated:1");
    archive(cell, &whole[..whole.len() / 2])
}

fn wrong_blob(cell: &mut Cell) -> Result<()> {
    let mut image = image::layered(Flavour::Oci, "bad_input-2")?;
    for layer in image.layers_mut() {
        layer.bytes[20] ^= 1;
    }
    archive(cell, &image::oci_archive(&image, "bad.test/blob:1"))
}

/// A layer whose bytes are what they should be, but no archive.
fn bad_layer(cell: &mut Cell) -> Result<()> {
    let mut image = image::Image::new(
        Flavour::Oci,
        "amd64",
        &[Layer::default().file("hello", 0o644, "hello\n")],
        &json!({}),
    );
    spoil(&mut image, image::gzip(b"this is no archive, whatever it is called"))?;
    refused_import(cell, &image, "bad.test/layer:1")
}

/// A good layer that is not the one which the config names.
fn bad_diff_id(cell: &mut Cell) -> Result<()> {
    let mut image = image::Image::new(
        Flavour::Oci,
        "amd64",
        &[Layer::default().file("hello", 0o644, "hello\n")],
        &json!({}),
    );
    spoil(&mut image, image::gzip(&Layer::default().file("other", 0o644, "other\n").tar()))?;
    refused_import(cell, &image, "bad.test/diff-id:1")
}

fn refused_import(cell: &Cell, image: &image::Image, name: &str) -> Result<()> {
    let snapshots = cell.ok(&["snapshots", "ls"])?;
    let file = cell.file("bad.tar");
    fs::write(&file, image::oci_archive(image, name))?;
    cell.refused(&["images", "import", &file.display().to_string()])?;
    super::same(cell.ok(&["snapshots", "ls"])?, snapshots)?;
    cell.ctr(&["images", "rm", "--sync", name]).map(drop)
}

/// Replaces the only layer of `image` by `bytes`, under a manifest that agrees with them.
fn spoil(image: &mut image::Image, bytes: Vec<u8>) -> Result<()> {
    let layer = image::Blob::new(image.blobs[0].media_type, bytes);
    let top = image.top();
    let mut manifest: serde_json::Value = serde_json::from_slice(&top.bytes)?;
    manifest["layers"][0]["digest"] = json!(layer.digest);
    manifest["layers"][0]["size"] = json!(layer.bytes.len());
    let top = image::Blob::new(top.media_type, manifest.to_string().into_bytes());
    let last = image.blobs.len() - 1;
    image.blobs[0] = layer;
    image.blobs[last] = top;
    Ok(())
}
