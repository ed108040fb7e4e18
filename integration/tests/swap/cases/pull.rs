//! Pulls from a registry on loopback, good ones and spoilt ones.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use integration::{
    cell::Cell,
    image::{self, Flavour, Image},
    registry::Registry,
};

use super::{Case, has, has_not, needs_transfer};

pub(crate) const CASES: &[Case] = &[
    Case { name: "pull_oci", run: |cell| pull(cell, &image::layered(Flavour::Oci, "pull-1")?) },
    Case {
        name: "pull_docker",
        run: |cell| pull(cell, &image::layered(Flavour::Docker, "pull-2")?),
    },
    Case { name: "pull_index_oci", run: |cell| pull(cell, &image::multi_platform(Flavour::Oci)?) },
    Case {
        name: "pull_index_docker",
        run: |cell| pull(cell, &image::multi_platform(Flavour::Docker)?),
    },
    Case { name: "pull_all_platforms", run: all_platforms },
    Case { name: "pull_by_digest", run: by_digest },
    Case { name: "pull_unknown_tag", run: unknown },
    Case { name: "pull_digest_mismatch", run: |cell| spoilt(cell, "flip", |bytes| bytes[20] ^= 1) },
    Case { name: "pull_truncated", run: |cell| spoilt(cell, "cut", |bytes| bytes.truncate(50)) },
    Case { name: "content_fetch", run: fetch },
];

fn with_registry(cell: &Cell, act: impl FnOnce(&Registry, &Path) -> Result<()>) -> Result<()> {
    needs_transfer(cell)?;
    let directory = cell.file("registry");
    let result = Registry::start(&directory).and_then(|registry| act(&registry, &directory));
    let _ = fs::remove_dir_all(&directory);
    result
}

fn pull(cell: &Cell, image: &Image) -> Result<()> {
    with_registry(cell, |registry, _| {
        let name = registry.push(image, "some/image", "1.0")?;
        cell.ok(&["images", "pull", "--plain-http", &name])?;
        has(&cell.ok(&["images", "ls"])?, &image.top().digest)?;
        let id = cell.id();
        has(&cell.ok(&["run", "--rm", &name, &id, "echo", "pulled"])?, "pulled")?;
        cell.ok(&["images", "rm", "--sync", &name]).map(drop)
    })
}

fn all_platforms(cell: &mut Cell) -> Result<()> {
    with_registry(cell, |registry, _| {
        let image = image::multi_platform(Flavour::Oci)?;
        let name = registry.push(&image, "some/image", "1.0")?;
        cell.ok(&["content", "fetch", "--plain-http", "--all-platforms", &name])?;
        let listed = cell.ok(&["content", "ls", "-q"])?;
        for blob in &image.blobs {
            has(&listed, &blob.digest)?;
        }
        cell.ok(&["images", "rm", "--sync", &name]).map(drop)
    })
}

fn by_digest(cell: &mut Cell) -> Result<()> {
    with_registry(cell, |registry, _| {
        let image = image::layered(Flavour::Oci, "pull-3")?;
        registry.push(&image, "some/image", "1.0")?;
        let name = format!("{}/some/image@{}", registry.address(), image.top().digest);
        cell.ok(&["images", "pull", "--plain-http", &name])?;
        has(&cell.ok(&["images", "ls", "-q"])?, &name)?;
        cell.ok(&["images", "rm", "--sync", &name]).map(drop)
    })
}

fn unknown(cell: &mut Cell) -> Result<()> {
    with_registry(cell, |registry, _| {
        let name = format!("{}/some/image:nothing", registry.address());
        let said = cell.refused(&["images", "pull", "--plain-http", &name])?;
        has(&said, &name)?;
        has(&said, "not found")
    })
}

/// Pulls an image of which the registry serves one layer otherwise than it should.
fn spoilt(cell: &Cell, salt: &str, spoil: impl Fn(&mut Vec<u8>)) -> Result<()> {
    with_registry(cell, |registry, directory| {
        let image = image::layered(Flavour::Oci, salt)?;
        let name = registry.push(&image, "some/image", "1.0")?;
        let layers = image.layers();
        let layer = layers.last().context("it has layers")?;
        let hex = layer.digest.trim_start_matches("sha256:");
        let stored = directory
            .join("data/docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data");
        let mut bytes = fs::read(&stored)?;
        spoil(&mut bytes);
        fs::write(&stored, bytes)?;
        cell.refused(&["images", "pull", "--plain-http", &name])?;
        has_not(&cell.ok(&["images", "ls", "-q"])?, &name)?;
        has_not(&cell.ok(&["content", "ls", "-q"])?, &layer.digest)
    })
}

fn fetch(cell: &mut Cell) -> Result<()> {
    with_registry(cell, |registry, _| {
        let image = image::layered(Flavour::Docker, "pull-5")?;
        let name = registry.push(&image, "some/image", "1.0")?;
        cell.ok(&["content", "fetch", "--plain-http", &name])?;
        let listed = cell.ok(&["content", "ls", "-q"])?;
        for blob in &image.blobs {
            has(&listed, &blob.digest)?;
        }
        cell.ok(&["images", "rm", "--sync", &name]).map(drop)
    })
}
