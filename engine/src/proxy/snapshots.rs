//! Snapshots that a plugin keeps, over containerd's snapshots service.

use proto::containerd::services::snapshots::v1::{
    self as api, CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest,
    UsageRequest, ViewSnapshotRequest, snapshots_client::SnapshotsClient,
};
use snapshotter::{
    Key, Kind, Labels, Mount, Usage,
    external::{Backend, Outside, Reason, Refused},
};
use tonic::{Status, transport::Channel};

use super::{LIST_LEN_MAX, MESSAGE_LEN_MAX, Plugin};
use crate::services::mounts_from_wire;

/// The snapshots of a plugin.
#[derive(Clone, Debug)]
pub struct Remote {
    plugin: Plugin,
}

impl Remote {
    /// The snapshots that `plugin` keeps under its own name.
    pub fn new(plugin: Plugin) -> Self {
        Self { plugin }
    }

    fn client(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.plugin.channel.clone()).max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    fn snapshotter(&self) -> String {
        self.plugin.name.clone()
    }

    fn shown(&self, info: api::Info) -> Result<Outside, Refused> {
        let kind = match api::Kind::try_from(info.kind) {
            Ok(api::Kind::View) => Kind::View,
            Ok(api::Kind::Active) => Kind::Active,
            Ok(api::Kind::Committed) => Kind::Committed,
            _ => {
                let why = format!("snapshot {:?} is of unknown kind {}", info.name, info.kind);
                return Err(Refused { reason: Reason::Other, message: self.plugin.message(&why) });
            }
        };
        let parent = Some(info.parent).filter(|parent| !parent.is_empty());
        Ok(Outside { name: info.name, parent, kind, labels: info.labels })
    }
}

impl Backend for Remote {
    fn create(
        &self,
        kind: Kind,
        key: &Key,
        parent: Option<&Key>,
        labels: &Labels,
    ) -> Result<Vec<Mount>, Refused> {
        let mut client = self.client();
        let (snapshotter, labels) = (self.snapshotter(), labels.clone());
        let namespace = key.namespace();
        let (key, parent) = (key.name().to_owned(), name_of(parent));
        let within = self.plugin.deadlines.long;
        let mounts = if kind == Kind::View {
            let message = ViewSnapshotRequest { snapshotter, key, parent, labels };
            let request = self.plugin.request(namespace, message);
            self.plugin.wait(within, async move {
                client.view(request).await.map(|answer| answer.into_inner().mounts)
            })?
        } else {
            let message = PrepareSnapshotRequest { snapshotter, key, parent, labels };
            let request = self.plugin.request(namespace, message);
            self.plugin.wait(within, async move {
                client.prepare(request).await.map(|answer| answer.into_inner().mounts)
            })?
        };
        Ok(mounts_from_wire(mounts))
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>, Refused> {
        let mut client = self.client();
        let message = MountsRequest { snapshotter: self.snapshotter(), key: key.name().to_owned() };
        let request = self.plugin.request(key.namespace(), message);
        let answer = self
            .plugin
            .wait(self.plugin.deadlines.short, async move { client.mounts(request).await })?;
        Ok(mounts_from_wire(answer.into_inner().mounts))
    }

    fn commit(
        &self,
        name: &Key,
        key: &Key,
        parent: Option<&Key>,
        labels: &Labels,
    ) -> Result<(), Refused> {
        let mut client = self.client();
        let message = CommitSnapshotRequest {
            snapshotter: self.snapshotter(),
            name: name.name().to_owned(),
            key: key.name().to_owned(),
            labels: labels.clone(),
            parent: name_of(parent),
        };
        let request = self.plugin.request(key.namespace(), message);
        self.plugin
            .wait(self.plugin.deadlines.long, async move { client.commit(request).await })?;
        Ok(())
    }

    fn remove(&self, key: &Key) -> Result<(), Refused> {
        let mut client = self.client();
        let message =
            RemoveSnapshotRequest { snapshotter: self.snapshotter(), key: key.name().to_owned() };
        let request = self.plugin.request(key.namespace(), message);
        self.plugin
            .wait(self.plugin.deadlines.long, async move { client.remove(request).await })?;
        Ok(())
    }

    fn stat(&self, key: &Key) -> Result<Outside, Refused> {
        let mut client = self.client();
        let message =
            StatSnapshotRequest { snapshotter: self.snapshotter(), key: key.name().to_owned() };
        let request = self.plugin.request(key.namespace(), message);
        let answer = self
            .plugin
            .wait(self.plugin.deadlines.short, async move { client.stat(request).await })?;
        let info = answer.into_inner().info;
        self.shown(info.ok_or_else(|| self.plugin.away("its answer lacks the snapshot"))?)
    }

    fn update(&self, key: &Key, labels: &Labels, changed: &[String]) -> Result<(), Refused> {
        let mut client = self.client();
        let info = api::Info {
            name: key.name().to_owned(),
            labels: labels.clone(),
            ..api::Info::default()
        };
        let paths = changed.iter().map(|name| format!("labels.{name}")).collect();
        let message = UpdateSnapshotRequest {
            snapshotter: self.snapshotter(),
            info: Some(info),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let request = self.plugin.request(key.namespace(), message);
        self.plugin
            .wait(self.plugin.deadlines.short, async move { client.update(request).await })?;
        Ok(())
    }

    fn usage(&self, key: &Key) -> Result<Usage, Refused> {
        let mut client = self.client();
        let message = UsageRequest { snapshotter: self.snapshotter(), key: key.name().to_owned() };
        let request = self.plugin.request(key.namespace(), message);
        let answer = self
            .plugin
            .wait(self.plugin.deadlines.long, async move { client.usage(request).await })?
            .into_inner();
        let count = |number| u64::try_from(number).unwrap_or_default();
        Ok(Usage { inodes: count(answer.inodes), bytes: count(answer.size) })
    }

    fn list(&self) -> Result<Vec<Outside>, Refused> {
        let mut client = self.client();
        let message = ListSnapshotsRequest { snapshotter: self.snapshotter(), filters: Vec::new() };
        // Not in the name of any namespace: all are meant.
        let listed = self.plugin.wait(self.plugin.deadlines.short, async move {
            let mut messages = client.list(message).await?.into_inner();
            let mut found = Vec::new();
            while let Some(message) = messages.message().await? {
                found.extend(message.info);
                if found.len() > LIST_LEN_MAX {
                    let text = format!("it lists more than {LIST_LEN_MAX} snapshots");
                    return Err(Status::resource_exhausted(text));
                }
            }
            Ok(found)
        })?;
        listed.into_iter().map(|info| self.shown(info)).collect()
    }

    fn cleanup(&self) -> Result<(), Refused> {
        let mut client = self.client();
        let message = CleanupRequest { snapshotter: self.snapshotter() };
        self.plugin
            .wait(self.plugin.deadlines.long, async move { client.cleanup(message).await })?;
        Ok(())
    }
}

fn name_of(key: Option<&Key>) -> String {
    key.map(|key| key.name().to_owned()).unwrap_or_default()
}
