//! Makes a container: its snapshot, its specification, its record.
//!
//! Every call to the daemon is waited for, so calls that do not depend on each other are made at
//! the same time, and none is made only to learn what the next would say anyway: the snapshot is
//! prepared without asking whether the image is unpacked, and if it is not, that is what the
//! answer says.

use std::{cell::Cell, collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, bail};
use prost_types::Any;
use proto::containerd::{
    runc::v1::Options,
    services::{
        containers::v1::{Container, CreateContainerRequest, DeleteContainerRequest, container},
        diff::v1::ApplyRequest,
        snapshots::v1::{PrepareSnapshotRequest, RemoveSnapshotRequest},
    },
    types::{Descriptor, Mount},
};
use proto::runtimeoptions;
use tonic::Code;

use super::{
    flags::{ContainerFlags, RuntimeFlags},
    specify::{Base, annotate, read_spec, specify},
};
use crate::{
    client::Client,
    error::{has_code, text, warn},
    image::{
        Digest, Lease, Resolved, directory_accounts, find_image, resolve, resolve_snapshotter,
        snapshot_accounts, unpack,
    },
    names,
    platform::Platform,
    spec::{AccountFiles, ImageConfig, Spec, User, UserSpec, container_labels},
};

/// A container that was made, and what its task needs to know.
pub(crate) struct Created {
    pub(crate) id: String,
    pub(crate) terminal: bool,
    pub(crate) spec: Spec,
    /// The mounts of its snapshot; none for a directory.
    pub(crate) rootfs: Vec<Mount>,
    /// The runtime's options, if they are runc's.
    pub(crate) options: Option<Options>,
    /// The processes that it goes on with, as an archive of criu's.
    pub(crate) checkpoint: Option<Descriptor>,
}

/// What was made and would have to be removed.
#[derive(Default)]
pub(crate) struct Undo {
    container: Cell<bool>,
    /// Snapshotter and key.
    snapshot: Cell<Option<(String, String)>>,
    /// Keeps the snapshot until the record does.
    lease: Cell<Option<Lease>>,
}

impl Undo {
    /// Ends the lease, which nothing needs once the container is made.
    pub(crate) async fn end_lease(&self) {
        if let Some(lease) = self.lease.take() {
            // It expires by itself if it cannot be deleted, or was never made.
            let _ = lease.delete().await;
        }
    }

    /// Removes what was made. Failures are printed: there is an error already that says more.
    pub(crate) async fn run(&self, client: &Client, id: &str) {
        let container = async {
            if self.container.take() {
                let request = DeleteContainerRequest { id: id.to_owned() };
                report(id, client.containers().delete(request).await.err());
            }
        };
        let snapshot = async {
            if let Some((snapshotter, key)) = self.snapshot.take() {
                let request = RemoveSnapshotRequest { snapshotter, key };
                report(id, client.snapshots().remove(request).await.err());
            }
        };
        tokio::join!(container, snapshot, self.end_lease());
    }
}

fn report(id: &str, error: Option<tonic::Status>) {
    if let Some(status) = error.filter(|status| status.code() != Code::NotFound) {
        warn(&format!("remove container {id}: {}", text(&status.into())));
    }
}

impl ContainerFlags {
    /// The container's name, after a check that image and name are there as they must be.
    pub(crate) fn container_id(&self) -> anyhow::Result<&str> {
        match (&self.storage.config, &self.image, &self.id) {
            (Some(_), Some(id), None) => Ok(id),
            (Some(_), Some(_), Some(_)) => {
                bail!(
                    "with --config only the container's name is given, no image: invalid argument"
                )
            }
            (_, None, _) => bail!("an image and a container name must be given: invalid argument"),
            (None, Some(_), None) => bail!("a container name must be given: invalid argument"),
            (None, Some(_), Some(id)) => Ok(id),
        }
    }

    fn has_config(&self) -> bool {
        self.storage.config.is_some()
    }
}

/// Makes the container that the flags describe. What was made before an error is in `undo`.
pub(crate) async fn create(
    client: &Client,
    flags: &ContainerFlags,
    undo: &Undo,
) -> anyhow::Result<Created> {
    let id = flags.container_id()?.to_owned();
    let runtime = runtime(&flags.runtime, &flags.limits.cgroup, flags)?;
    if flags.has_config() || flags.storage.rootfs {
        return create_without_image(client, flags, &id, runtime, undo).await;
    }
    let lease = Lease::named(client)?;
    undo.lease.set(Some(lease.clone()));
    create_from_image(client, &lease, flags, &id, runtime, undo).await
}

async fn create_from_image(
    client: &Client,
    lease: &Lease,
    flags: &ContainerFlags,
    id: &str,
    runtime: Runtime,
    undo: &Undo,
) -> anyhow::Result<Created> {
    let name = flags.image.as_deref().unwrap_or_default();
    let platform = flags.storage.platform.clone().unwrap_or_else(Platform::host);
    let (registered, snapshotter, image) = tokio::join!(
        lease.register(),
        resolve_snapshotter(client, flags.storage.snapshotter.as_deref()),
        async {
            let image = find_image(client, name).await?;
            let target = image.target.clone().unwrap_or_default().into();
            anyhow::Ok((image, resolve(client, &target, &platform).await?))
        }
    );
    let (image, resolved) = image?;
    registered?;
    let snapshotter = snapshotter?;
    let labels = snapshot_labels(flags);
    let snapshot = Snapshot { snapshotter: &snapshotter, key: id, labels };
    let rootfs = snapshot.prepare(lease.client(), &resolved).await?;
    undo.snapshot.set(Some((snapshotter.clone(), id.to_owned())));

    let config = resolved.config.config.clone().unwrap_or_default();
    let user = user(flags, &config, || snapshot_accounts(&rootfs))?;
    let namespace = client.namespace();
    let base = Base { namespace, id, image: Some(&config), user, rootfs: None };
    let spec = specify(flags, base)?;
    let record = Container {
        id: id.to_owned(),
        image: image.name,
        labels: container_labels(&config, names::labels(&flags.storage.label)),
        snapshotter,
        snapshot_key: id.to_owned(),
        ..record(flags, &runtime, &spec)?
    };
    register(client, record, undo).await?;
    let terminal = spec.process.terminal;
    let options = runtime.options;
    Ok(Created { id: id.to_owned(), terminal, spec, rootfs, options, checkpoint: None })
}

/// Makes a container whose record is known, on a snapshot of the image that the record names, with
/// `changes` on top. What was made before an error is in `undo`.
pub(crate) async fn recreate(
    client: &Client,
    record: &Container,
    changes: Option<Descriptor>,
    undo: &Undo,
) -> anyhow::Result<()> {
    let lease = Lease::create(client).await?;
    undo.lease.set(Some(lease.clone()));
    let client = lease.client();
    let image = find_image(client, &record.image).await?;
    let target = image.target.unwrap_or_default().into();
    let resolved = resolve(client, &target, &Platform::host()).await?;
    let Container { snapshotter, snapshot_key: key, .. } = record;
    let snapshot = Snapshot { snapshotter, key, labels: BTreeMap::new() };
    let mounts = snapshot.prepare(client, &resolved).await?;
    undo.snapshot.set(Some((snapshotter.clone(), key.clone())));
    if changes.is_some() {
        let request = ApplyRequest { diff: changes, mounts, ..Default::default() };
        client.diff().apply(request).await?;
    }
    register(client, record.clone(), undo).await
}

/// Makes a container of a directory, or of a specification that names its own.
async fn create_without_image(
    client: &Client,
    flags: &ContainerFlags,
    id: &str,
    runtime: Runtime,
    undo: &Undo,
) -> anyhow::Result<Created> {
    let spec = match &flags.storage.config {
        Some(path) => {
            let mut spec = read_spec(path)?;
            annotate(&mut spec, flags)?;
            spec
        }
        None => {
            let given = PathBuf::from(flags.image.as_deref().unwrap_or_default());
            let path = std::path::absolute(&given)
                .with_context(|| format!("root filesystem {}", given.display()))?;
            let user = user(flags, &ImageConfig::default(), || directory_accounts(&path))?;
            let rootfs = path.to_str().context("the root filesystem's path is not UTF-8")?;
            let namespace = client.namespace();
            specify(flags, Base { namespace, id, image: None, user, rootfs: Some(rootfs) })?
        }
    };
    let labels = names::labels(&flags.storage.label);
    let record = Container { id: id.to_owned(), labels, ..record(flags, &runtime, &spec)? };
    register(client, record, undo).await?;
    let terminal = spec.process.terminal;
    let options = runtime.options;
    let rootfs = Vec::new();
    Ok(Created { id: id.to_owned(), terminal, spec, rootfs, options, checkpoint: None })
}

/// Who the process is, by the flag or the image.
fn user(
    flags: &ContainerFlags,
    config: &ImageConfig,
    accounts: impl FnOnce() -> anyhow::Result<AccountFiles>,
) -> anyhow::Result<User> {
    let text = flags.process.user.as_deref().unwrap_or(&config.user);
    let spec = if text.is_empty() { UserSpec::root() } else { text.parse()? };
    Ok(spec.resolve(&accounts()?)?)
}

fn record(flags: &ContainerFlags, runtime: &Runtime, spec: &Spec) -> anyhow::Result<Container> {
    Ok(Container {
        runtime: Some(container::Runtime {
            name: runtime.name.clone(),
            options: runtime.any.clone(),
        }),
        spec: Some(Any {
            type_url: proto::any::RUNTIME_SPEC.to_owned(),
            value: serde_json::to_vec(spec).context("specification")?,
        }),
        sandbox: flags.storage.sandbox.clone().unwrap_or_default(),
        ..Default::default()
    })
}

async fn register(client: &Client, record: Container, undo: &Undo) -> anyhow::Result<()> {
    let request = CreateContainerRequest { container: Some(record) };
    client.containers().create(request).await?;
    undo.container.set(true);
    Ok(())
}

/// The labels of the container's snapshot, with the mapping of ids for snapshotters that do it.
fn snapshot_labels(flags: &ContainerFlags) -> BTreeMap<String, String> {
    let mut labels = names::labels(&flags.storage.snapshotter_label);
    let maps = [("uidmapping", &flags.isolation.uidmap), ("gidmapping", &flags.isolation.gidmap)];
    for (name, mappings) in maps {
        if !mappings.is_empty() {
            let ranges = mappings
                .iter()
                .map(|map| format!("{}:{}:{}", map.container_id, map.host_id, map.size));
            let ranges: Vec<_> = ranges.collect();
            labels.insert(format!("containerd.io/snapshot/{name}"), ranges.join(","));
        }
    }
    labels
}

/// The snapshot of a container.
struct Snapshot<'a> {
    snapshotter: &'a str,
    key: &'a str,
    labels: BTreeMap<String, String>,
}

impl Snapshot<'_> {
    /// Prepares it on the image's layers, which are unpacked if need be.
    async fn prepare(&self, client: &Client, image: &Resolved) -> anyhow::Result<Vec<Mount>> {
        let parent = image.chain_id();
        match self.attempt(client, parent.as_ref()).await {
            Err(error) if has_code(&error, Code::NotFound) && parent.is_some() => {
                unpack(client, image, self.snapshotter).await?;
                self.attempt(client, parent.as_ref()).await
            }
            result => result,
        }
    }

    async fn attempt(
        &self,
        client: &Client,
        parent: Option<&Digest>,
    ) -> anyhow::Result<Vec<Mount>> {
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.to_owned(),
            key: self.key.to_owned(),
            parent: parent.map_or_else(String::new, Digest::to_string),
            labels: self.labels.clone(),
        };
        Ok(client.snapshots().prepare(request).await?.into_inner().mounts)
    }
}

/// A runtime with its options.
struct Runtime {
    name: String,
    any: Option<Any>,
    options: Option<Options>,
}

fn runtime(
    flags: &RuntimeFlags,
    cgroup: &Option<String>,
    container: &ContainerFlags,
) -> anyhow::Result<Runtime> {
    let is_runc = flags.runtime.starts_with("io.containerd.runc");
    let is_named = flags.runc_binary.is_some() || flags.runc_systemd_cgroup;
    if is_named && !is_runc {
        bail!(
            "--runc-binary and --runc-systemd-cgroup are for runc's runtimes, not {}",
            flags.runtime
        );
    }
    if flags.runc_systemd_cgroup && cgroup.as_deref().unwrap_or_default().is_empty() {
        bail!("--runc-systemd-cgroup needs --cgroup, as in machine.slice:foo:deadbeef");
    }
    let host_id = |maps: &[crate::spec::IdMapping]| maps.first().map_or(0, |map| map.host_id);
    let options = is_runc.then(|| Options {
        binary_name: flags.runc_binary.clone().unwrap_or_default(),
        root: flags.runc_root.clone().unwrap_or_default(),
        systemd_cgroup: flags.runc_systemd_cgroup,
        io_uid: host_id(&container.isolation.uidmap),
        io_gid: host_id(&container.isolation.gidmap),
        ..Default::default()
    });
    let any = match (&options, &flags.runtime_config_path) {
        (Some(options), _) => Some(proto::any::pack(options)),
        (None, Some(path)) => {
            let options =
                runtimeoptions::v1::Options { config_path: path.clone(), ..Default::default() };
            Some(proto::any::pack(&options))
        }
        (None, None) => None,
    };
    Ok(Runtime { name: flags.runtime.clone(), any, options })
}
