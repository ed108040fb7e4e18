//! The parts of this program under the names that containerd gives their like.

use std::path::Path;

use snapshotter::{Images, Remap};

use crate::{
    config::{Config, OWN_DIFFER, Paths, ProxyKind, SharingPolicy},
    restart::POLICIES,
    services::{self, Plugin},
};

const CONTENT: &str = "io.containerd.content.v1";
const DIFFER: &str = "io.containerd.differ.v1";
const EVENT: &str = "io.containerd.event.v1";
const GC: &str = "io.containerd.gc.v1";
const GRPC: &str = "io.containerd.grpc.v1";
const LEASE: &str = "io.containerd.lease.v1";
const METADATA: &str = "io.containerd.metadata.v1";
const MONITOR: &str = "io.containerd.monitor.container.v1";
const SANDBOX_CONTROLLER: &str = "io.containerd.sandbox.controller.v1";
const SANDBOX_STORE: &str = "io.containerd.sandbox.store.v1";
const SERVICE: &str = "io.containerd.service.v1";
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
const STREAMING: &str = "io.containerd.streaming.v1";
const TRANSFER: &str = "io.containerd.transfer.v1";

/// What containerd has as plugins below those that speak gRPC.
const SERVICES: &[&str] = &[
    "containers",
    "content",
    "diff",
    "images",
    "introspection",
    "namespaces",
    "snapshots",
    "tasks",
];

/// The services that speak gRPC.
const GRPC_SERVICES: &[&str] = &[
    "containers",
    "content",
    "diff",
    "events",
    "healthcheck",
    "images",
    "introspection",
    "leases",
    "namespaces",
    "sandbox-controllers",
    "sandboxes",
    "snapshots",
    "streaming",
    "tasks",
    "transfer",
    "version",
];

/// Everything that is served, by this program and by others. Blocks.
pub(super) fn list(config: &Config, paths: &Paths, remap: &Remap) -> Vec<Plugin> {
    let mut plugins = built_in(&paths.root, remap);
    let policy = match config.content.sharing_policy {
        SharingPolicy::Shared => "shared",
        SharingPolicy::Isolated => "isolated",
    };
    for plugin in plugins.iter_mut().filter(|plugin| plugin.kind == METADATA) {
        plugin.exports.insert("policy".to_owned(), policy.to_owned());
    }
    if config.proxy_plugins.values().any(|proxy| proxy.kind == ProxyKind::Content) {
        // It has the place of our own.
        plugins.retain(|plugin| plugin.kind != CONTENT);
    }
    plugins.extend(config.proxy_plugins.iter().map(|(name, proxy)| {
        let mut exports = proxy.exports.clone();
        exports.insert("address".to_owned(), proxy.address.clone());
        Plugin {
            kind: match proxy.kind {
                ProxyKind::Snapshot => SNAPSHOTTER,
                ProxyKind::Diff => DIFFER,
                ProxyKind::Content => CONTENT,
            },
            id: name.clone(),
            has_platform: true,
            platform: proxy.platform.clone(),
            exports,
            capabilities: proxy.capabilities.clone(),
            ..Plugin::default()
        }
    }));
    plugins
}

fn built_in(root: &Path, remap: &Remap) -> Vec<Plugin> {
    let part = |kind, id: &str, requires: &[&'static str]| Plugin {
        kind,
        id: id.to_owned(),
        requires: requires.to_vec(),
        ..Plugin::default()
    };
    let rooted = |mut plugin: Plugin, folder: &str| {
        let folder = root.join(folder).display().to_string();
        plugin.exports.insert("root".to_owned(), folder);
        plugin
    };
    let snapshotter = |id: &str, capabilities: &[&str]| {
        let mut plugin = rooted(part(SNAPSHOTTER, id, &[]), &format!("snapshots/{id}"));
        plugin.has_platform = true;
        plugin.capabilities = capabilities.iter().map(|&name| name.to_owned()).collect();
        plugin
    };
    let mut differ = part(DIFFER, OWN_DIFFER, &[METADATA]);
    differ.has_platform = true;
    // What a client has to know before it asks for other owners: that they are never made by copying.
    let mut overlayfs = vec!["only-remap-ids", "rebase"];
    if remap.is_possible() {
        overlayfs.insert(0, "remap-ids");
    }
    let mut plugins = vec![
        rooted(part(CONTENT, "content", &[]), "content"),
        snapshotter("native", &[]),
        snapshotter("overlayfs", &overlayfs),
        part(EVENT, "exchange", &[]),
        // containerd's name for it; clients do not care which database it is.
        part(METADATA, "bolt", &[CONTENT, SNAPSHOTTER]),
        part(GC, "scheduler", &[METADATA]),
        part(LEASE, "manager", &[METADATA]),
        differ,
    ];
    if Images::is_supported() {
        plugins.push(snapshotter("erofs", &overlayfs));
    }
    if super::state::has_btrfs(root) {
        plugins.push(snapshotter("btrfs", &[]));
    }
    plugins.push(part(STREAMING, "manager", &[]));
    plugins.push(part(TRANSFER, "local", &[CONTENT, METADATA, SNAPSHOTTER]));
    let mut tasks = part(services::TASKS.0, services::TASKS.1, &[EVENT, METADATA]);
    tasks.has_platform = true;
    plugins.push(tasks);
    plugins.push(part(SANDBOX_STORE, "local", &[METADATA]));
    plugins.push(part(SANDBOX_CONTROLLER, "shim", &[EVENT]));
    let mut restart = part(MONITOR, "restart", &[EVENT, SERVICE]);
    restart.capabilities = POLICIES.map(str::to_owned).into();
    plugins.push(restart);
    for name in SERVICES {
        plugins.push(part(SERVICE, &format!("{name}-service"), &[METADATA]));
    }
    for id in GRPC_SERVICES {
        plugins.push(part(GRPC, id, &[SERVICE]));
    }
    plugins
}
