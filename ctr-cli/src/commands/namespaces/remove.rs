//! `ctr namespaces rm`

use anyhow::Context as _;
use clap::Args;
use proto::containerd::services::namespaces::v1::DeleteNamespaceRequest;
use tonic::Code;

use crate::{cli::Global, commands::each, output::outln};

/// Remove namespaces, which must be empty
#[derive(Args, Debug)]
pub(crate) struct Remove {
    #[arg(required = true)]
    names: Vec<String>,
    /// Remove the namespace's control group too
    #[arg(long, short)]
    cgroup: bool,
}

impl Remove {
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.connect().await?;
        each(&self.names, async |name| {
            let request = DeleteNamespaceRequest { name: name.clone() };
            match client.namespaces().delete(request).await {
                Ok(_) => {}
                // Stock ctr takes a namespace that is not there as removed.
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => {
                    return Err(status).with_context(|| format!("unable to delete {name}"));
                }
            }
            if self.cgroup {
                remove_cgroups(name)?;
            }
            Ok(outln!("{name}")?)
        })
        .await
    }
}

/// Removes the namespace's directory from every hierarchy of control groups in which it is.
fn remove_cgroups(name: &str) -> anyhow::Result<()> {
    anyhow::ensure!(!name.contains('/') && !name.starts_with('.'), "namespace {name:?}");
    let root = std::path::Path::new("/sys/fs/cgroup");
    let mut candidates = vec![root.join(name)];
    if let Ok(entries) = std::fs::read_dir(root) {
        candidates.extend(entries.flatten().map(|entry| entry.path().join(name)));
    }
    for path in candidates {
        match std::fs::remove_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {}
            Err(error) => return Err(error).with_context(|| format!("remove {}", path.display())),
        }
    }
    Ok(())
}
