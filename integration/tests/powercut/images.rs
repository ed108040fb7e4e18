//! The images that are imported, and what must be seen of them.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use integration::image::{Flavour, Image, Layer, digest, oci_archive};
use serde_json::{Value, json};

use crate::Numbers;

/// How many images there are. The first is never removed, for containers are made of it.
pub(crate) const COUNT: usize = 6;

const LAYERS: u64 = 2;
const FILES: u64 = 40;
const FILE_LEN_MAX: u64 = 24 << 10;

/// An image, and the snapshots that it is unpacked to.
pub(crate) struct Known {
    pub(crate) name: String,
    /// The archive's file.
    pub(crate) file: String,
    /// For each layer, from the lowest, the name of its snapshot and what is seen in it.
    pub(crate) layers: Vec<(String, BTreeMap<String, String>)>,
}

/// Bytes that look random, and are the same for the same seed.
pub(crate) fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    (0..len).map(|_| u8::try_from(numbers.below(256)).expect("below")).collect()
}

/// Writes the archives, and what is in them.
pub(crate) fn write(share: &Path) -> Result<()> {
    let mut list = Vec::new();
    for number in 0..COUNT {
        let name = format!("example.com/powercut:{number}");
        let mut layers = Vec::new();
        let mut seen = serde_json::Map::new();
        let mut snapshots: Vec<Value> = Vec::new();
        let mut chain: Option<String> = None;
        for level in 0..LAYERS {
            let mut layer = Layer::default();
            for file in 0..FILES {
                let seed = number as u64 * 10_000 + level * 1000 + file;
                let bytes = noise(seed, 1 + Numbers::new(seed).below(FILE_LEN_MAX));
                let path = format!("file-{level}-{file}");
                seen.insert(path.clone(), digest(&bytes).into());
                layer = layer.file(&path, 0o644, bytes);
            }
            let diff_id = digest(&layer.tar());
            let id = match chain {
                None => diff_id,
                Some(below) => digest(format!("{below} {diff_id}").as_bytes()),
            };
            snapshots.push(json!({ "name": id, "seen": seen }));
            chain = Some(id);
            layers.push(layer);
        }
        let image = Image::new(Flavour::Oci, "amd64", &layers, &json!({"Cmd": ["x"]}));
        let file = format!("image-{number}.tar");
        fs::write(share.join(&file), oci_archive(&image, &name))?;
        list.push(json!({ "name": name, "file": file, "layers": snapshots }));
    }
    fs::write(share.join("images.json"), Value::from(list).to_string())?;
    Ok(())
}

/// What [`write`] has written.
pub(crate) fn read(share: &Path) -> Result<Vec<Known>> {
    let list: Vec<Value> = serde_json::from_slice(&fs::read(share.join("images.json"))?)?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
    let mut known = Vec::new();
    for image in list {
        let mut layers = Vec::new();
        for layer in image["layers"].as_array().context("a list")? {
            let seen = layer["seen"].as_object().context("an object")?;
            let seen = seen.iter().map(|(path, sum)| Ok((path.clone(), text(sum)?)));
            layers.push((text(&layer["name"])?, seen.collect::<Result<_>>()?));
        }
        known.push(Known { name: text(&image["name"])?, file: text(&image["file"])?, layers });
    }
    Ok(known)
}
