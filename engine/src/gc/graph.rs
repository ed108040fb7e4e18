//! Decides what goes, and says why.
//!
//! Objects become nodes, and what one keeps becomes an edge; whatever is not reached from a root
//! goes. An edge may point to an object that does not exist: it may come later, and an object that
//! refers back to it is reached through it all the same.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    rc::Rc,
    time::SystemTime,
};

use snapshotter::{Info, Key};

use super::{
    EXPIRE, FLAT, ROOT,
    label::{Condition, Label},
    object::{Kind, Object},
};
use crate::{
    digest::Digest,
    labels::Labels,
    metadata::{self, Resource, ResourceKind},
    namespace::Namespace,
};

/// What goes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) leases: Vec<(Namespace, String)>,
    pub(super) images: Vec<(Namespace, String)>,
    /// With their sizes, in bytes.
    pub(super) content: Vec<(Namespace, Digest, u64)>,
    /// By snapshotter; children before their parents.
    pub(super) snapshots: Vec<(String, Key)>,
    /// The blobs that some namespace has after that.
    pub(super) kept: HashSet<Digest>,
    /// When the next lease or image expires.
    pub(super) next_expiry: Option<SystemTime>,
}

/// How a node is reached: flat, it keeps only what it cannot be without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reach {
    Flat,
    Full,
}

/// Why something is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum By {
    /// For its own sake, as all objects of its kind.
    Itself,
    /// By a lease.
    Lease(Rc<str>),
    /// As an image's target.
    Target,
    /// As a container's root filesystem.
    Rootfs,
    /// As a snapshot's parent.
    Parent,
    /// By a label of what keeps it, or for its own sake by one of its own.
    Label(Rc<str>),
    /// By a label of its own that refers back.
    Back(Rc<str>),
}

/// That one node keeps another.
#[derive(Clone, Debug)]
struct Edge {
    to: usize,
    by: By,
    /// Also when it is reached flat.
    needs: bool,
}

/// Something that goes if its node is not reached.
enum Candidate {
    Image(Namespace, String),
    Content(Namespace, Digest, u64),
    Snapshot { snapshotter: String, key: Key, parent: Option<usize> },
}

/// The objects so far.
pub(super) struct Graph {
    now: SystemTime,
    ids: HashMap<Rc<Object>, usize>,
    objects: Vec<Rc<Object>>,
    edges: Vec<Vec<Edge>>,
    roots: Vec<(usize, Reach, By)>,
    /// Leases that have not expired, and whether each is flat.
    leases: HashMap<(Namespace, String), Reach>,
    candidates: Vec<(usize, Candidate)>,
    /// Snapshots that a node keeps if they were used at a time that fits.
    conditions: Vec<(usize, usize, Condition, Rc<str>)>,
    used: HashMap<usize, Vec<SystemTime>>,
    labels: HashSet<Rc<str>>,
    plan: Plan,
}

impl Graph {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            now,
            ids: HashMap::new(),
            objects: Vec::new(),
            edges: Vec::new(),
            roots: Vec::new(),
            leases: HashMap::new(),
            candidates: Vec::new(),
            conditions: Vec::new(),
            used: HashMap::new(),
            labels: HashSet::new(),
            plan: Plan::default(),
        }
    }

    /// Adds an object; leases come before what they hold.
    pub(super) fn add(&mut self, namespace: Namespace, object: metadata::Object) {
        use metadata::Object as O;
        match object {
            O::Lease(lease) => {
                if self.is_expired(&lease.labels) {
                    self.plan.leases.push((namespace, lease.id));
                } else {
                    let flat = lease.labels.contains_key(FLAT);
                    let reach = if flat { Reach::Flat } else { Reach::Full };
                    self.leases.insert((namespace, lease.id), reach);
                }
            }
            O::Leased { lease, resource } => self.add_leased(namespace, lease, resource),
            O::Image(image) => {
                let id = self.id(&namespace, Kind::Image, &image.name);
                let target = self.id(&namespace, Kind::Content, &image.target.digest.to_string());
                self.edges[id].push(Edge { to: target, by: By::Target, needs: true });
                self.follow(&namespace, id, &image.labels);
                if !self.is_expired(&image.labels) {
                    self.roots.push((id, Reach::Full, By::Itself));
                }
                self.candidates.push((id, Candidate::Image(namespace, image.name)));
            }
            O::Container(container) => {
                let id = self.id(&namespace, Kind::Container, &container.id);
                self.roots.push((id, Reach::Full, By::Itself));
                if !container.snapshotter.is_empty() {
                    let kind = Kind::Snapshot(container.snapshotter);
                    let to = self.id(&namespace, kind, &container.snapshot_key);
                    self.edges[id].push(Edge { to, by: By::Rootfs, needs: false });
                }
                self.follow(&namespace, id, &container.labels);
            }
            O::Sandbox(sandbox) => {
                let id = self.id(&namespace, Kind::Sandbox, &sandbox.id);
                self.roots.push((id, Reach::Full, By::Itself));
                self.follow(&namespace, id, &sandbox.labels);
            }
            O::Content(info) => {
                let id = self.id(&namespace, Kind::Content, &info.digest.to_string());
                self.root_and_follow(&namespace, id, &info.labels);
                let candidate = Candidate::Content(namespace, info.digest, info.size);
                self.candidates.push((id, candidate));
            }
        }
    }

    fn add_leased(&mut self, namespace: Namespace, lease: String, resource: Resource) {
        let by = By::Lease(lease.as_str().into());
        let Some(&reach) = self.leases.get(&(namespace.clone(), lease)) else { return };
        let kind = match resource.kind {
            ResourceKind::Content => Kind::Content,
            ResourceKind::Image => Kind::Image,
            ResourceKind::Snapshot(snapshotter) => Kind::Snapshot(snapshotter),
            // The content store asks about their leases itself.
            ResourceKind::Ingest => return,
        };
        let id = self.id(&namespace, kind, &resource.id);
        self.roots.push((id, reach, by));
    }

    /// Adds a snapshot. One of a namespace that is none is left alone.
    pub(super) fn add_snapshot(&mut self, snapshotter: &str, info: Info) {
        let key = info.key.clone();
        if let Some((id, parent)) = self.enter_snapshot(snapshotter, info) {
            let snapshotter = snapshotter.to_owned();
            self.candidates.push((id, Candidate::Snapshot { snapshotter, key, parent }));
        }
    }

    /// Adds a snapshot of a snapshotter that is not loaded, so that nobody can remove it: what keeps it keeps by it
    /// what it refers to.
    pub(super) fn add_out_of_reach(&mut self, snapshotter: &str, info: Info) {
        self.enter_snapshot(snapshotter, info);
    }

    /// The node of a snapshot and of its parent, with what their records say.
    fn enter_snapshot(&mut self, snapshotter: &str, info: Info) -> Option<(usize, Option<usize>)> {
        let namespace = info.key.namespace().parse().ok()?;
        let kind = Kind::Snapshot(snapshotter.to_owned());
        let id = self.id(&namespace, kind.clone(), info.key.name());
        let parent = info.parent.map(|parent| self.id(&namespace, kind, parent.name()));
        let edge = parent.map(|to| Edge { to, by: By::Parent, needs: true });
        self.edges[id].extend(edge);
        self.root_and_follow(&namespace, id, &info.labels);
        let times = info.labels.iter().filter_map(|(key, value)| super::label::used(key, value));
        let times: Vec<SystemTime> = times.collect();
        if !times.is_empty() {
            self.used.insert(id, times);
        }
        Some((id, parent))
    }

    /// Decides.
    pub(super) fn plan(mut self) -> Plan {
        let reached = self.reach();
        let mut snapshots = Vec::new();
        let parents: HashMap<usize, usize> = self
            .candidates
            .iter()
            .filter_map(|(id, candidate)| match candidate {
                Candidate::Snapshot { parent: Some(parent), .. } => Some((*id, *parent)),
                _ => None,
            })
            .collect();
        for (id, candidate) in self.candidates {
            match candidate {
                Candidate::Content(_, digest, _) if reached[id].is_some() => {
                    self.plan.kept.insert(digest);
                }
                _ if reached[id].is_some() => {}
                Candidate::Image(namespace, name) => self.plan.images.push((namespace, name)),
                Candidate::Content(namespace, digest, size) => {
                    self.plan.content.push((namespace, digest, size));
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

    /// The shortest way from a root to `object`, which is the last; nothing if none leads there.
    pub(super) fn chain(&mut self, object: &Object) -> Option<Vec<(Object, By)>> {
        let id = *self.ids.get(object)?;
        let reached = self.reach();
        let mut chain = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            let step = reached[id].as_ref()?;
            chain.push((Object::clone(&self.objects[id]), step.by.clone()));
            next = step.from;
        }
        chain.reverse();
        Some(chain)
    }

    /// What keeps `object` as far as it is kept itself.
    pub(super) fn referrers(&mut self, object: &Object) -> Vec<(Object, By)> {
        let Some(&id) = self.ids.get(object) else { return Vec::new() };
        self.connect();
        let of = |(from, edges): (usize, &Vec<Edge>)| {
            let edge = edges.iter().find(|edge| edge.to == id)?;
            Some((Object::clone(&self.objects[from]), edge.by.clone()))
        };
        self.edges.iter().enumerate().filter_map(of).collect()
    }

    /// How the roots reach the nodes, by the shortest way of those that reach most.
    fn reach(&mut self) -> Vec<Option<Step>> {
        self.connect();
        let mut reached: Vec<Option<Step>> = self.edges.iter().map(|_| None).collect();
        let step = |(id, reach, by): &(usize, Reach, By)| {
            (*id, Step { reach: *reach, from: None, by: by.clone() })
        };
        let mut grey: VecDeque<(usize, Step)> = self.roots.iter().map(step).collect();
        while let Some((id, step)) = grey.pop_front() {
            let known = reached[id].as_ref().map(|step| step.reach);
            if known == Some(Reach::Full) || known == Some(step.reach) {
                continue;
            }
            let reach = step.reach;
            reached[id] = Some(step);
            let edges = self.edges[id].iter();
            let edges = edges.filter(|edge| reach == Reach::Full || edge.needs);
            grey.extend(
                edges.map(|edge| (edge.to, Step { reach, from: Some(id), by: edge.by.clone() })),
            );
        }
        reached
    }

    /// Makes edges of the conditions that hold.
    fn connect(&mut self) {
        for (from, to, condition, label) in std::mem::take(&mut self.conditions) {
            let holds = |time: &SystemTime| condition.holds(*time, self.now);
            if self.used.get(&to).is_some_and(|times| times.iter().any(holds)) {
                self.edges[from].push(Edge { to, by: By::Label(label), needs: false });
            }
        }
    }

    fn id(&mut self, namespace: &Namespace, kind: Kind, name: &str) -> usize {
        let object = Object { namespace: namespace.clone(), kind, name: name.to_owned() };
        if let Some(&id) = self.ids.get(&object) {
            return id;
        }
        let (object, id) = (Rc::new(object), self.edges.len());
        self.ids.insert(Rc::clone(&object), id);
        self.objects.push(object);
        self.edges.push(Vec::new());
        id
    }

    fn root_and_follow(&mut self, namespace: &Namespace, id: usize, labels: &Labels) {
        if let Some(label) = labels.keys().find(|key| key.starts_with(ROOT)) {
            let by = By::Label(self.intern(label));
            self.roots.push((id, Reach::Full, by));
        }
        self.follow(namespace, id, labels);
    }

    /// Adds the edges that labels make.
    fn follow(&mut self, namespace: &Namespace, id: usize, labels: &Labels) {
        for (key, value) in labels {
            let Some(label) = Label::parse(key, value) else { continue };
            let text = self.intern(key);
            match label {
                Label::Reference(kind) => {
                    let to = self.id(namespace, kind, value);
                    self.edges[id].push(Edge { to, by: By::Label(text), needs: false });
                }
                Label::Back(kind) => {
                    let from = self.id(namespace, kind, value);
                    self.edges[from].push(Edge { to: id, by: By::Back(text), needs: false });
                }
                Label::Conditional { kind, name, conditions } => {
                    // As containerd: of content and images only.
                    if !matches!(self.objects[id].kind, Kind::Content | Kind::Image) {
                        continue;
                    }
                    let to = self.id(namespace, kind, name);
                    let all = conditions.into_iter();
                    self.conditions.extend(all.map(|one| (id, to, one, Rc::clone(&text))));
                }
            }
        }
    }

    /// The same text for the same label, of which there are few.
    fn intern(&mut self, label: &str) -> Rc<str> {
        if let Some(known) = self.labels.get(label) {
            return Rc::clone(known);
        }
        let label: Rc<str> = label.into();
        self.labels.insert(Rc::clone(&label));
        label
    }

    /// Whether the label says that the object's time is over; a time that cannot be read never
    /// comes.
    fn is_expired(&mut self, labels: &Labels) -> bool {
        let Some(expiry) = expiry(labels) else { return false };
        if expiry < self.now {
            return true;
        }
        let next = self.plan.next_expiry.map_or(expiry, |next| next.min(expiry));
        self.plan.next_expiry = Some(next);
        false
    }
}

/// How a node was reached.
struct Step {
    reach: Reach,
    from: Option<usize>,
    by: By,
}

/// When the label says that the object's time is over.
pub(super) fn expiry(labels: &Labels) -> Option<SystemTime> {
    let text = labels.get(EXPIRE)?;
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => Some(time.into()),
        Err(error) => {
            tracing::info!(%error, "ignoring an expiration that is no time: {text:?}");
            None
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
