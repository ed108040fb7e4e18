//! `ctr images import`

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use proto::containerd::types::transfer::{
    ImageImportStream, ImageReference, ImageStore, UnpackConfiguration,
};
use tokio::io::AsyncRead;
use tonic::Code;

use crate::{
    cli::Global,
    client::Client,
    error::has_code,
    image::{self, ImportOptions, Naming, resolve_snapshotter},
    names,
    platform::Platform,
    transfer::{self, Stream},
};

/// Import images from an archive
#[derive(Args, Debug)]
pub(crate) struct Import {
    /// Archive in the layout of OCI or `docker save`, or - for standard input
    archive: PathBuf,
    /// Name for images of which the archive has only tags
    #[arg(long, default_value = "")]
    base_name: String,
    /// Name images by digest too
    #[arg(long)]
    digests: bool,
    /// Do not name by digest what has a name
    #[arg(long, requires = "digests")]
    skip_digest_for_named: bool,
    /// Keep the archive's index as an image of this name
    #[arg(long)]
    index_name: Option<String>,
    /// Take the content of all platforms
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// Platform of the content (default: this host's)
    #[arg(long)]
    platform: Option<Platform>,
    /// Do not unpack the images
    #[arg(long)]
    no_unpack: bool,
    /// Compress layers that are not compressed
    #[arg(long)]
    compress_blobs: bool,
    /// Snapshotter (empty: the namespace's default)
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER")]
    snapshotter: Option<String>,
    /// Labels of the images, as key=value
    #[arg(long)]
    label: Vec<String>,
    /// Do the work in this client even if the daemon could
    #[arg(long)]
    local: bool,
    /// Write the files to disk before the end (the daemon decides)
    #[arg(long, hide = true)]
    sync_fs: bool,
}

impl Import {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        let reader = open(&self.archive).await?;
        let stream = match self.local {
            true => None,
            false => match Stream::open(&client, "import").await {
                Ok(stream) => Some(stream),
                // The daemon is older than the service.
                Err(error) if has_code(&error, Code::Unimplemented) => None,
                Err(error) => return Err(error),
            },
        };
        match stream {
            Some(stream) => self.by_daemon(&client, stream, reader).await,
            None => self.by_client(&client, reader).await,
        }
    }

    async fn by_daemon(
        &self,
        client: &Client,
        mut stream: Stream,
        reader: impl AsyncRead + Unpin,
    ) -> anyhow::Result<()> {
        let source = ImageImportStream {
            stream: stream.id().to_owned(),
            force_compress: self.compress_blobs,
            ..Default::default()
        };
        let platform = self.platform.clone().unwrap_or_else(Platform::host);
        let unpack = UnpackConfiguration {
            platform: Some(platform.clone().into()),
            snapshotter: self.snapshotter.clone().unwrap_or_default(),
        };
        let reference = ImageReference {
            name: self.base(),
            is_prefix: true,
            allow_overwrite: self.base_name.is_empty(),
            add_digest: self.digests,
            skip_named_digest: self.skip_digest_for_named,
        };
        let store = ImageStore {
            name: self.index_name.clone().unwrap_or_default(),
            labels: names::labels(&self.label),
            platforms: if self.all_platforms { Vec::new() } else { vec![platform.into()] },
            extra_references: vec![reference],
            unpacks: if self.no_unpack { Vec::new() } else { vec![unpack] },
            ..Default::default()
        };
        let (source, store) = (proto::any::pack(&source), proto::any::pack(&store));
        let sending = transfer::send(&mut stream, reader);
        transfer::transfer(client, source, store, sending).await
    }

    async fn by_client(
        &self,
        client: &Client,
        reader: impl AsyncRead + Unpin,
    ) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.compress_blobs,
            "--compress-blobs needs a daemon with a Transfer service: not implemented"
        );
        let snapshotter = match self.no_unpack {
            true => None,
            false => Some(resolve_snapshotter(client, self.snapshotter.as_deref()).await?),
        };
        let options = ImportOptions {
            naming: Naming {
                base: self.base(),
                only_base: !self.base_name.is_empty(),
                digests: self.digests,
                skip_named: self.skip_digest_for_named,
            },
            index_name: self.index_name.clone(),
            labels: self.label.clone(),
            platform: self.platform.clone().unwrap_or_else(Platform::host),
            snapshotter,
        };
        image::import(client, reader, &options).await
    }

    /// The name that tags are put behind.
    fn base(&self) -> String {
        if self.base_name.is_empty() {
            jiff::Zoned::now().strftime("import-%Y-%m-%d").to_string()
        } else {
            self.base_name.clone()
        }
    }
}

/// Opens an archive, or standard input.
async fn open(path: &Path) -> anyhow::Result<Box<dyn AsyncRead + Unpin>> {
    if path == Path::new("-") {
        return Ok(Box::new(tokio::io::stdin()));
    }
    let file = tokio::fs::File::open(path).await;
    Ok(Box::new(file.with_context(|| format!("open {}", path.display()))?))
}
