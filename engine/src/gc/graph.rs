//! Decides what goes.
//!
//! Objects become nodes, and what one keeps becomes an edge; whatever is not reached from a root
//! goes. An edge may point to an object that does not exist: it may come later.

use std::{
    collections::{HashMap, HashSet},
    time::SystemTime,
};

use snapshotter::{Info, Key};

use super::{EXPIRE, FLAT, ROOT};
use crate::{
    digest::Digest,
    labels::Labels,
    metadata::{Object, Resource, ResourceKind},
    namespace::Namespace,
};

/// What goes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) leases: Vec<(Namespace, String)>,
    pub(super) images: Vec<(Namespace, String)>,
    pub(super) content: Vec<(Namespace, Digest)>,
    /// By snapshotter; children before their parents.
    pub(super) snapshots: Vec<(String, Key)>,
    /// The blobs that some namespace has after that.
    pub(super) kept: HashSet<Digest>,
    /// When the next lease or image expires.
    pub(super) next_expiry: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Content,
    Image,
    Container,
    Sandbox,
    Snapshot(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    namespace: Namespace,
    kind: Kind,
    name: String,
}

/// How a node is reached: flat, it keeps only what it cannot be without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reach {
    Flat,
    Full,
}

/// Something that goes if its node is not reached.
enum Candidate {
    Image(Namespace, String),
    Content(Namespace, Digest),
    Snapshot { snapshotter: String, key: Key, depth_from: Option<usize> },
}

/// The objects so far.
pub(super) struct Graph {
    now: SystemTime,
    ids: HashMap<Node, usize>,
    /// What a node keeps however it is reached.
    needs: Vec<Vec<usize>>,
    /// What it keeps only when it is reached in full.
    refers: Vec<Vec<usize>>,
    roots: Vec<(usize, Reach)>,
    /// Leases that have not expired, and whether each is flat.
    leases: HashMap<(Namespace, String), Reach>,
    candidates: Vec<(usize, Candidate)>,
    plan: Plan,
}

impl Graph {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            now,
            ids: HashMap::new(),
            needs: Vec::new(),
            refers: Vec::new(),
            roots: Vec::new(),
            leases: HashMap::new(),
            candidates: Vec::new(),
            plan: Plan::default(),
        }
    }

    /// Adds an object; leases come before what they hold.
    pub(super) fn add(&mut self, namespace: Namespace, object: Object) {
        match object {
            Object::Lease(lease) => {
                if self.is_expired(&lease.labels) {
                    self.plan.leases.push((namespace, lease.id));
                } else {
                    let flat = lease.labels.contains_key(FLAT);
                    let reach = if flat { Reach::Flat } else { Reach::Full };
                    self.leases.insert((namespace, lease.id), reach);
                }
            }
            Object::Leased { lease, resource } => self.add_leased(namespace, lease, resource),
            Object::Image(image) => {
                let id = self.id(&namespace, Kind::Image, &image.name);
                let target = self.id(&namespace, Kind::Content, &image.target.digest.to_string());
                self.needs[id].push(target);
                self.follow(&namespace, id, &image.labels);
                if !self.is_expired(&image.labels) {
                    self.roots.push((id, Reach::Full));
                }
                self.candidates.push((id, Candidate::Image(namespace, image.name)));
            }
            Object::Container(container) => {
                let id = self.id(&namespace, Kind::Container, &container.id);
                self.roots.push((id, Reach::Full));
                if !container.snapshotter.is_empty() {
                    let kind = Kind::Snapshot(container.snapshotter);
                    let snapshot = self.id(&namespace, kind, &container.snapshot_key);
                    self.refers[id].push(snapshot);
                }
                self.follow(&namespace, id, &container.labels);
            }
            Object::Sandbox(sandbox) => {
                let id = self.id(&namespace, Kind::Sandbox, &sandbox.id);
                self.roots.push((id, Reach::Full));
                self.follow(&namespace, id, &sandbox.labels);
            }
            Object::Content(info) => {
                let id = self.id(&namespace, Kind::Content, &info.digest.to_string());
                self.root_and_follow(&namespace, id, &info.labels);
                self.candidates.push((id, Candidate::Content(namespace, info.digest)));
            }
        }
    }

    fn add_leased(&mut self, namespace: Namespace, lease: String, resource: Resource) {
        let Some(&reach) = self.leases.get(&(namespace.clone(), lease)) else { return };
        let kind = match resource.kind {
            ResourceKind::Content => Kind::Content,
            ResourceKind::Image => Kind::Image,
            ResourceKind::Snapshot(snapshotter) => Kind::Snapshot(snapshotter),
            // The content store asks about their leases itself.
            ResourceKind::Ingest => return,
        };
        let id = self.id(&namespace, kind, &resource.id);
        self.roots.push((id, reach));
    }

    /// Adds a snapshot. One of a namespace that is none is left alone.
    pub(super) fn add_snapshot(&mut self, snapshotter: &str, info: Info) {
        let Ok(namespace) = info.key.namespace().parse() else { return };
        let kind = Kind::Snapshot(snapshotter.to_owned());
        let id = self.id(&namespace, kind.clone(), info.key.name());
        let parent = info.parent.map(|parent| self.id(&namespace, kind, parent.name()));
        self.needs[id].extend(parent);
        self.root_and_follow(&namespace, id, &info.labels);
        let snapshotter = snapshotter.to_owned();
        let candidate = Candidate::Snapshot { snapshotter, key: info.key, depth_from: parent };
        self.candidates.push((id, candidate));
    }

    /// Decides.
    pub(super) fn plan(mut self) -> Plan {
        let reached = self.reach();
        let mut snapshots = Vec::new();
        let parents: HashMap<usize, usize> = self
            .candidates
            .iter()
            .filter_map(|(id, candidate)| match candidate {
                Candidate::Snapshot { depth_from: Some(parent), .. } => Some((*id, *parent)),
                _ => None,
            })
            .collect();
        for (id, candidate) in self.candidates {
            match candidate {
                Candidate::Content(_, digest) if reached[id] => {
                    self.plan.kept.insert(digest);
                }
                _ if reached[id] => {}
                Candidate::Image(namespace, name) => self.plan.images.push((namespace, name)),
                Candidate::Content(namespace, digest) => {
                    self.plan.content.push((namespace, digest));
                }
                Candidate::Snapshot { snapshotter, key, .. } => {
                    let ancestors = std::iter::successors(Some(id), |id| parents.get(id).copied());
                    // No chain is longer than there are snapshots, whatever a damaged record says.
                    snapshots.push((ancestors.take(parents.len() + 1).count(), snapshotter, key));
                }
            }
        }
        snapshots.sort_by_key(|(depth, ..)| std::cmp::Reverse(*depth));
        self.plan.snapshots = snapshots.into_iter().map(|(_, name, key)| (name, key)).collect();
        self.plan
    }

    /// Which nodes the roots reach.
    fn reach(&self) -> Vec<bool> {
        let mut best: Vec<Option<Reach>> = vec![None; self.needs.len()];
        let mut grey = self.roots.clone();
        while let Some((id, reach)) = grey.pop() {
            if best[id] == Some(Reach::Full) || best[id] == Some(reach) {
                continue;
            }
            best[id] = Some(reach);
            grey.extend(self.needs[id].iter().map(|&next| (next, reach)));
            if reach == Reach::Full {
                grey.extend(self.refers[id].iter().map(|&next| (next, reach)));
            }
        }
        best.into_iter().map(|reach| reach.is_some()).collect()
    }

    fn id(&mut self, namespace: &Namespace, kind: Kind, name: &str) -> usize {
        let node = Node { namespace: namespace.clone(), kind, name: name.to_owned() };
        *self.ids.entry(node).or_insert_with(|| {
            self.needs.push(Vec::new());
            self.refers.push(Vec::new());
            self.needs.len() - 1
        })
    }

    fn root_and_follow(&mut self, namespace: &Namespace, id: usize, labels: &Labels) {
        if labels.keys().any(|key| key.starts_with(ROOT)) {
            self.roots.push((id, Reach::Full));
        }
        self.follow(namespace, id, labels);
    }

    /// Adds the edges that labels make.
    fn follow(&mut self, namespace: &Namespace, id: usize, labels: &Labels) {
        for (key, name) in labels {
            let Some((is_back, kind)) = reference(key) else { continue };
            let other = self.id(namespace, kind, name);
            if is_back { self.refers[other].push(id) } else { self.refers[id].push(other) }
        }
    }

    /// Whether the label says that the object's time is over; a time that cannot be read never
    /// comes.
    fn is_expired(&mut self, labels: &Labels) -> bool {
        let Some(expiry) = labels.get(EXPIRE).and_then(|text| time(text)) else { return false };
        if expiry < self.now {
            return true;
        }
        let next = self.plan.next_expiry.map_or(expiry, |next| next.min(expiry));
        self.plan.next_expiry = Some(next);
        false
    }
}

fn time(text: &str) -> Option<SystemTime> {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => Some(time.into()),
        Err(error) => {
            tracing::info!(%error, "ignoring an expiration that is no time: {text:?}");
            None
        }
    }
}

/// What kind of object a label refers to, and whether back.
fn reference(label: &str) -> Option<(bool, Kind)> {
    let (is_back, rest) = match label.strip_prefix("containerd.io/gc.ref.") {
        Some(rest) => (false, rest),
        None => (true, label.strip_prefix("containerd.io/gc.bref.")?),
    };
    if let Some(snapshotter) = rest.strip_prefix("snapshot.") {
        let name = snapshotter.split_once('/').map_or(snapshotter, |(name, _)| name);
        return Some((is_back, Kind::Snapshot(name.to_owned())));
    }
    // What follows the kind only makes the label's key unique.
    let kind = rest.split_once(['.', '/']).map_or(rest, |(kind, _)| kind);
    match kind {
        "content" => Some((is_back, Kind::Content)),
        "image" => Some((is_back, Kind::Image)),
        "container" if is_back => Some((is_back, Kind::Container)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
