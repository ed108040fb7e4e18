//! `ctr images export`

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use proto::containerd::types::transfer::{ImageExportStream, ImageReference, ImageStore};

use crate::{
    cli::Global,
    image::find_image,
    platform::Platform,
    transfer::{Stream, receive, transfer},
};

/// Export images to an archive
#[derive(Args, Debug)]
pub(crate) struct Export {
    /// Archive to write, or - for standard output
    archive: PathBuf,
    #[arg(required = true)]
    images: Vec<String>,
    /// Leave out the manifest.json that docker reads
    #[arg(long)]
    skip_manifest_json: bool,
    /// Leave out layers that must not be distributed
    #[arg(long)]
    skip_non_distributable: bool,
    /// Platforms to export (default: this host's)
    #[arg(long)]
    platform: Vec<Platform>,
    /// Export all platforms, which must all be there
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// Accepted because stock ctr has it
    #[arg(long, hide = true)]
    local: bool,
}

impl Export {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let mut references = Vec::new();
        for name in &self.images {
            let name = find_image(&client, name).await?.name;
            references.push(ImageReference { name, ..Default::default() });
        }
        let mut stream = Stream::open(&client, "export").await.context("Transfer service")?;
        let mut platforms = self.platform.clone();
        if platforms.is_empty() && !self.all_platforms {
            platforms.push(Platform::host());
        }
        let store = ImageStore { extra_references: references, ..Default::default() };
        let export = ImageExportStream {
            stream: stream.id().to_owned(),
            platforms: platforms.into_iter().map(Into::into).collect(),
            all_platforms: self.all_platforms,
            skip_compatibility_manifest: self.skip_manifest_json,
            skip_non_distributable: self.skip_non_distributable,
            ..Default::default()
        };
        let (output, partial) = create(&self.archive)?;
        let (store, export) = (proto::any::pack(&store), proto::any::pack(&export));
        transfer(&client, store, export, receive(&mut stream, output)).await?;
        match partial {
            Some(partial) => std::fs::rename(&partial.0, &self.archive)
                .with_context(|| format!("write {}", self.archive.display())),
            None => Ok(()),
        }
    }
}

/// A file that is removed unless it got its name in the end.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // It has been renamed, or the error that left it says more.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Opens the output: a file beside the one that is asked for, so that what has the name is whole.
fn create(path: &Path) -> anyhow::Result<(Box<dyn Write>, Option<Partial>)> {
    if path == Path::new("-") {
        return Ok((Box::new(std::io::stdout()), None));
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(partial);
    let file = File::create(&partial).with_context(|| format!("create {}", partial.display()))?;
    Ok((Box::new(file), Some(Partial(partial))))
}
