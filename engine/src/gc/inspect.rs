//! Says what keeps an object, and what a collection would remove, without removing anything.
//!
//! Nobody is held up for it: it looks at the last commit. What a collection does a moment later
//! may differ by what was changed in between.

mod outside;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    Snapshotters,
    collector::graph,
    graph::{By, Graph, Plan, expiry},
    object::{Kind, Object},
};
use crate::{
    content::{self, Kept},
    digest::Digest,
    error::Error,
    filter::Filter,
    metadata,
    namespace::Namespace,
};

/// For how long sizes of snapshots are asked for; those of the others are not told.
const SIZES_TIME: Duration = Duration::from_secs(10);

/// How many objects that keep another one in vain are named.
const REFERRERS_MAX: usize = 8;

/// Looks at the graph of objects.
#[derive(Clone)]
pub struct Inspector {
    content: content::Store,
    snapshotters: Arc<Snapshotters>,
}

/// An object, and why it stays or goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The object.
    pub object: Object,
    /// Whether the next collection leaves it.
    pub kept: bool,
    /// What keeps what, from a root to the object; of one that goes, what would keep it if it were
    /// kept itself.
    pub chain: Vec<Link>,
    /// Why an object without a chain stays or goes.
    pub reason: String,
}

/// An object, and how the one before it in a chain keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The object.
    pub object: Object,
    /// How it is kept.
    pub by: String,
}

/// Something that a collection would remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doomed {
    /// The object.
    pub object: Object,
    /// How much disk space that frees, in bytes, as far as it is known.
    pub bytes: u64,
}

impl Inspector {
    /// Looks at these stores.
    pub fn new(content: content::Store, snapshotters: Arc<Snapshotters>) -> Self {
        Self { content, snapshotters }
    }

    /// Explains the objects of a namespace that `text` names: a digest, `<kind>/<name>`,
    /// `snapshot/<snapshotter>/<key>`, or only a name, which objects of several kinds may have. If none has it, plugins
    /// are asked for what they have of others by that name, or by `plugin/<name>`.
    ///
    /// # Errors
    ///
    /// - `InvalidArgument`: `text` is empty.
    /// - `NotFound`: there is none.
    /// - `Database`, `Damaged`, `File`.
    pub fn explain(&self, namespace: &Namespace, text: &str) -> Result<Vec<Explanation>, Error> {
        if text.is_empty() {
            return Err(Error::InvalidArgument("object must not be empty".to_owned()));
        }
        let wanted = Wanted::parse(text);
        let mut found = Vec::new();
        let mut graph = graph(self.content.metadata(), &self.snapshotters)?;
        for object in self.named(namespace, &wanted)? {
            found.push(explain(&mut graph, object));
        }
        for lease in self.content.metadata().leases(namespace, &Filter::default())? {
            if wanted.fits(&Kind::Lease, &lease.id) {
                found.push(explain_lease(namespace, &lease));
            }
        }
        if wanted.kind.is_none_or(|kind| kind == "ingest") {
            found.extend(self.explain_ingests(namespace, &wanted)?);
        }
        if found.is_empty() {
            found = self.explain_outside(namespace, &wanted)?;
        }
        if found.is_empty() {
            let message = format!("object {text:?} in namespace {:?}", namespace.as_str());
            return Err(Error::NotFound(message));
        }
        Ok(found)
    }

    /// What a collection would remove now.
    ///
    /// # Errors
    ///
    /// `Database`, `Damaged`, `File`.
    pub fn doomed(&self) -> Result<Vec<Doomed>, Error> {
        let plan = graph(self.content.metadata(), &self.snapshotters)?.plan();
        let Plan { leases, images, content, snapshots, kept, .. } = plan;
        let mut doomed = Vec::new();
        let object = |namespace, kind, name| Object { namespace, kind, name };
        let free = |object| Doomed { object, bytes: 0 };
        doomed.extend(leases.into_iter().map(|(ns, id)| free(object(ns, Kind::Lease, id))));
        doomed.extend(images.into_iter().map(|(ns, name)| free(object(ns, Kind::Image, name))));
        let mut holders: HashMap<Digest, usize> = HashMap::new();
        for (_, digest, _) in &content {
            *holders.entry(digest.clone()).or_default() += 1;
        }
        for (namespace, digest, size) in content {
            // The bytes go with the last of the namespaces that had them.
            let left = holders.get_mut(&digest).map_or(0, |left| {
                *left -= 1;
                *left
            });
            let bytes = if left == 0 && !kept.contains(&digest) { size } else { 0 };
            let object = object(namespace, Kind::Content, digest.to_string());
            doomed.push(Doomed { object, bytes });
        }
        let until = Instant::now() + SIZES_TIME;
        let mut silent = HashSet::new();
        for (snapshotter, key) in snapshots {
            let Ok(namespace) = key.namespace().parse() else { continue };
            let mut bytes = 0;
            if Instant::now() < until && !silent.contains(&snapshotter) {
                match self.snapshotters[&snapshotter].usage(&key) {
                    Ok(usage) => bytes = usage.bytes,
                    // Another program, which would be waited for again and again.
                    Err(snapshotter::Error::External { .. }) => {
                        silent.insert(snapshotter.clone());
                    }
                    // It is gone meanwhile, and takes no space.
                    Err(_) => {}
                }
            }
            let object = object(namespace, Kind::Snapshot(snapshotter), key.name().to_owned());
            doomed.push(Doomed { object, bytes });
        }
        doomed.extend(self.doomed_ingests()?);
        Ok(doomed)
    }

    fn doomed_ingests(&self) -> Result<Vec<Doomed>, Error> {
        let mut doomed = Vec::new();
        for (folder, status) in self.content.ingests()? {
            let Some((namespace, name)) = status.reference.split_once('/') else { continue };
            let Ok(namespace) = namespace.parse() else { continue };
            if self.content.kept(&folder, &status, SystemTime::now())?.is_none() {
                let object = Object { namespace, kind: Kind::Ingest, name: name.to_owned() };
                doomed.push(Doomed { object, bytes: status.offset });
            }
        }
        Ok(doomed)
    }

    /// The objects of the graph that are wanted, and exist.
    fn named(&self, namespace: &Namespace, wanted: &Wanted<'_>) -> Result<Vec<Object>, Error> {
        let mut found = Vec::new();
        let mut add = |kind: Kind, name: &str| {
            if wanted.fits(&kind, name) {
                found.push(Object { namespace: namespace.clone(), kind, name: name.to_owned() });
            }
        };
        let metadata = self.content.metadata();
        metadata.read(|view| {
            metadata::each(view, &mut |of, object| {
                use metadata::Object as O;
                if of != *namespace {
                    return Ok(());
                }
                match object {
                    O::Lease(_) | O::Leased { .. } => {}
                    O::Image(image) => add(Kind::Image, &image.name),
                    O::Container(container) => add(Kind::Container, &container.id),
                    O::Sandbox(sandbox) => add(Kind::Sandbox, &sandbox.id),
                    O::Content(info) => add(Kind::Content, &info.digest.to_string()),
                }
                Ok(())
            })
        })?;
        for (name, snapshotter) in self.snapshotters.iter() {
            snapshotter.walk_records(Some(namespace.as_str()), &mut |info| {
                add(Kind::Snapshot(name.clone()), info.key.name());
                std::ops::ControlFlow::Continue(())
            })?;
        }
        Ok(found)
    }

    fn explain_ingests(
        &self,
        namespace: &Namespace,
        wanted: &Wanted<'_>,
    ) -> Result<Vec<Explanation>, Error> {
        let mut found = Vec::new();
        for (folder, status) in self.content.ingests()? {
            let Some((of, name)) = status.reference.split_once('/') else { continue };
            if of != namespace.as_str() || !wanted.fits(&Kind::Ingest, name) {
                continue;
            }
            let kept = self.content.kept(&folder, &status, SystemTime::now())?;
            let reason = match &kept {
                Some(Kept::Open) => "somebody is writing it".to_owned(),
                Some(Kept::Leased(leases)) => format!("held by lease {}", leases.join(", ")),
                Some(Kept::Until(time)) => format!("until {}, unless it grows", text(*time)),
                None => "nobody writes it, and no lease holds it".to_owned(),
            };
            let (namespace, name) = (namespace.clone(), name.to_owned());
            let object = Object { namespace, kind: Kind::Ingest, name };
            found.push(Explanation { object, kept: kept.is_some(), chain: Vec::new(), reason });
        }
        Ok(found)
    }
}

/// What a client asks for.
struct Wanted<'a> {
    kind: Option<&'a str>,
    name: &'a str,
    text: &'a str,
}

impl<'a> Wanted<'a> {
    fn parse(text: &'a str) -> Self {
        const KINDS: [&str; 8] =
            ["lease", "image", "container", "sandbox", "content", "snapshot", "ingest", "plugin"];
        match text.split_once('/') {
            Some((kind, name)) if KINDS.contains(&kind) => Self { kind: Some(kind), name, text },
            _ => Self { kind: None, name: text, text },
        }
    }

    /// Whether an object of this kind and name is meant. An image may well be called
    /// `content/name`, so the whole text is a name, too.
    fn fits(&self, kind: &Kind, name: &str) -> bool {
        if name == self.text {
            return true;
        }
        let Some(word) = self.kind else { return false };
        let rest = match (kind, self.name.split_once('/')) {
            (Kind::Snapshot(snapshotter), Some((prefix, rest))) if prefix == snapshotter => rest,
            _ => self.name,
        };
        word == kind.word() && (rest == name || self.name == name)
    }
}

fn explain(graph: &mut Graph, object: Object) -> Explanation {
    let link = |(object, by): (Object, By)| Link { object, by: words(&by) };
    if let Some(chain) = graph.chain(&object) {
        let chain = chain.into_iter().map(link).collect();
        return Explanation { object, kept: true, chain, reason: String::new() };
    }
    let mut chain: Vec<Link> = graph.referrers(&object).into_iter().map(link).collect();
    chain.truncate(REFERRERS_MAX);
    let reason = match (&object.kind, chain.is_empty()) {
        (Kind::Image, _) => "it has expired, and nothing that stays refers to it",
        (_, true) => "nothing refers to it",
        (_, false) => "only what goes itself refers to it",
    };
    Explanation { object, kept: false, chain, reason: reason.to_owned() }
}

fn explain_lease(namespace: &Namespace, lease: &metadata::Lease) -> Explanation {
    let expiry = expiry(&lease.labels);
    let kept = expiry.is_none_or(|expiry| expiry >= SystemTime::now());
    let reason = match expiry {
        None => "it does not expire".to_owned(),
        Some(expiry) if kept => format!("it expires at {}", text(expiry)),
        Some(expiry) => format!("it expired at {}", text(expiry)),
    };
    let (namespace, name) = (namespace.clone(), lease.id.clone());
    let object = Object { namespace, kind: Kind::Lease, name };
    Explanation { object, kept, chain: Vec::new(), reason }
}

fn words(by: &By) -> String {
    match by {
        By::Itself => "for its own sake".to_owned(),
        By::Lease(id) => format!("lease {id}"),
        By::Target => "target".to_owned(),
        By::Rootfs => "root filesystem".to_owned(),
        By::Parent => "parent".to_owned(),
        By::Label(label) => format!("label {label}"),
        By::Back(label) => format!("label {label} of its own"),
    }
}

fn text(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests;
