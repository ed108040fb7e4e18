//! `ctr images label`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::images::v1::{Image, UpdateImageRequest};

use crate::{cli::Global, image::find_image, names, output::outln};

/// Set and clear labels of an image
#[derive(Args, Debug)]
pub(crate) struct Label {
    name: String,
    /// Labels, as key=value; an empty value clears the label
    labels: Vec<String>,
    /// Replace all labels
    #[arg(long, short)]
    replace_all: bool,
}

impl Label {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let mut labels = names::labels(&self.labels);
        let paths =
            if self.replace_all { vec!["labels".to_owned()] } else { names::label_paths(&labels) };
        if paths.is_empty() {
            let image = find_image(&client, &self.name).await?;
            return Ok(outln!("{}", names::label_text(&image.labels))?);
        }
        if self.replace_all {
            labels.retain(|_, value| !value.is_empty());
        }
        // Whole, although only labels change: containerd 2 ends when an image has no target.
        let image = find_image(&client, &self.name).await?;
        let request = UpdateImageRequest {
            image: Some(Image { labels, ..image }),
            update_mask: Some(prost_types::FieldMask { paths }),
            source_date_epoch: None,
        };
        let updated = client.images().update(request).await?.into_inner().image;
        let updated = updated.context("daemon returned no image")?;
        Ok(outln!("{}", names::label_text(&updated.labels))?)
    }
}
