//! `ctr images ls`

use std::collections::BTreeSet;

use clap::Args;
use proto::containerd::services::images::v1::Image;
use serde_json::json;

use super::list_images;
use crate::{
    cli::Global,
    client::Client,
    error::{text, warn},
    image::{contents, platforms},
    names,
    output::{self, Format, ListFormat, Table, binary_size, outln, timestamp},
    platform::Platform,
};

/// List images
#[derive(Args, Debug)]
pub(crate) struct List {
    /// Show only images that match one of these, names or filters as in name~=busybox
    filters: Vec<String>,
    #[command(flatten)]
    format: ListFormat,
}

impl List {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let images = list_images(&client, self.filters).await?;
        if self.format.quiet {
            return Ok(images.iter().try_for_each(|image| outln!("{}", image.name))?);
        }
        let mut rows = Vec::new();
        for image in &images {
            rows.push(Row::new(&client, image).await);
        }
        if self.format.format == Format::Json {
            let pairs = images.iter().zip(&rows);
            return output::json(
                &pairs.map(|(image, row)| row.document(image)).collect::<Vec<_>>(),
            );
        }
        let mut table = Table::new(&["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]);
        for (image, row) in images.into_iter().zip(rows) {
            let target = image.target.unwrap_or_default();
            let size = binary_size(row.size);
            let labels = names::label_cell(&image.labels);
            let platforms = match row.platforms.as_slice() {
                [] => "-".to_owned(),
                list => list.join(","),
            };
            table.row([image.name, target.media_type, target.digest, size, platforms, labels]);
        }
        Ok(table.print()?)
    }
}

/// What is not in an image's record.
struct Row {
    /// Bytes of all documents and layers for this host's platform.
    size: i64,
    platforms: Vec<String>,
}

impl Row {
    /// Reads the image's documents. An image of which parts are missing is listed all the same.
    async fn new(client: &Client, image: &Image) -> Self {
        let target = image.target.clone().unwrap_or_default().into();
        let size = match contents(client, &target, &Platform::host()).await {
            Ok(contents) => contents.iter().map(|own| own.size).sum(),
            Err(error) => {
                warn(&format!("size of image {}: {}", image.name, text(&error)));
                0
            }
        };
        let platforms = match platforms(client, &target).await {
            Ok(list) => list.iter().map(Platform::to_string).collect::<BTreeSet<_>>(),
            Err(error) => {
                warn(&format!("platforms of image {}: {}", image.name, text(&error)));
                BTreeSet::new()
            }
        };
        Self { size, platforms: platforms.into_iter().collect() }
    }

    fn document(&self, image: &Image) -> serde_json::Value {
        let target = image.target.clone().unwrap_or_default();
        json!({
            "name": image.name,
            "media_type": target.media_type,
            "digest": target.digest,
            "size": self.size,
            "platforms": self.platforms,
            "labels": image.labels,
            "created_at": timestamp(image.created_at.as_ref()),
            "updated_at": timestamp(image.updated_at.as_ref()),
        })
    }
}
