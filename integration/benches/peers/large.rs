//! A large image, and its import.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Result;
use integration::{
    cell::Cell,
    image::{self, Flavour, Image, Layer},
};
use serde_json::json;

use crate::{milliseconds, side, table::Table};

/// The row about it alone.
pub(crate) const ROW: &str = "import and unpack 500 MB in 10 layers";

const NAME: &str = "bench.test/large:1";

/// How many layers there are, each of 50 MB.
const LAYERS: usize = 10;

/// The image in a cell's directory, for a client to import.
pub(crate) struct Large(PathBuf);

impl Large {
    /// Writes `archive`, which is [`archive()`]'s.
    pub(crate) fn new(cell: &Cell, archive: &[u8]) -> Result<Self> {
        let file = cell.file("large.tar");
        fs::write(&file, archive)?;
        Ok(Self(file))
    }

    /// The client's command.
    pub(crate) fn command(&self, cell: &Cell) -> Command {
        cell.command(&["images", "import", &self.0.display().to_string()])
    }

    /// Adds one import to its row.
    pub(crate) fn import(&self, cell: &Cell, table: &mut Table) -> Result<()> {
        table.add(ROW, "ms", side(cell), milliseconds(&mut self.command(cell))?);
        self.forget(cell)
    }

    /// Removes what was imported, however long that takes.
    pub(crate) fn forget(&self, cell: &Cell) -> Result<()> {
        milliseconds(&mut cell.command(&["images", "rm", "--sync", NAME])).map(drop)
    }
}

/// Layers in files of 16 KiB, half of them words, half of them noise.
pub(crate) fn archive() -> Vec<u8> {
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let layers: Vec<Layer> = (0..LAYERS)
        .map(|layer| {
            (0..3200).fold(Layer::default(), |all, file| {
                let mut content: Vec<u8> = std::iter::repeat_with(&mut noise).take(8192).collect();
                let words = format!("layer {layer} file {file} says the same again and again\n");
                content.extend(words.bytes().cycle().take(8192));
                all.file(&format!("l{layer}/d{}/f{file}", file / 100), 0o644, content)
            })
        })
        .collect();
    image::oci_archive(&Image::new(Flavour::Oci, "amd64", &layers, &json!({})), NAME)
}
