//! The parts of this program under the names that containerd gives their like.

use crate::services::Plugin;

const CONTENT: &str = "io.containerd.content.v1";
const EVENT: &str = "io.containerd.event.v1";
const GC: &str = "io.containerd.gc.v1";
const GRPC: &str = "io.containerd.grpc.v1";
const METADATA: &str = "io.containerd.metadata.v1";
const SERVICE: &str = "io.containerd.service.v1";
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";

/// Everything that is served.
pub(super) fn list() -> Vec<Plugin> {
    let part = |kind, id: &str, requires: &[&'static str]| Plugin {
        kind,
        id: id.to_owned(),
        requires: requires.to_vec(),
        ..Plugin::default()
    };
    let mut plugins = vec![
        part(EVENT, "exchange", &[]),
        // containerd's name for it; clients do not care which database it is.
        part(METADATA, "bolt", &[CONTENT, SNAPSHOTTER]),
        part(GC, "scheduler", &[METADATA]),
    ];
    for id in ["introspection-service", "namespaces-service"] {
        plugins.push(part(SERVICE, id, &[METADATA]));
    }
    for id in ["healthcheck", "introspection", "namespaces", "version"] {
        plugins.push(part(GRPC, id, &[SERVICE]));
    }
    plugins
}
