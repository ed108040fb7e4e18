//! Random objects, against a model that is too simple to be wrong, and too slow to be used.
//!
//! The model goes over all objects again and again, and keeps what it finds a reason for, until it
//! finds none. It reads labels in its own way.

use std::{
    collections::BTreeSet,
    fmt::Write,
    time::{Duration, UNIX_EPOCH},
};

use super::*;
use crate::{
    metadata::{Container, ContentInfo, Image, Lease, Runtime, Sandbox},
    oci::Descriptor,
};

/// How many graphs are tried.
const GRAPHS: u64 = 300;

/// How many objects of a kind there are at most.
const NAMES: u64 = 5;

const NOW: Duration = Duration::from_secs(1000);

/// One object, in a form that can be printed and taken apart.
#[derive(Clone, Debug, PartialEq)]
struct Item {
    kind: &'static str,
    namespace: &'static str,
    name: u64,
    /// An image's target, a container's snapshot, a snapshot's parent.
    link: Option<u64>,
    labels: Vec<(String, String)>,
    /// What a lease holds.
    held: Vec<(&'static str, u64)>,
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let index = self.below(from.len() as u64);
        from[usize::try_from(index).expect("below the length")]
    }
}

const KINDS: [&str; 6] = ["lease", "image", "container", "sandbox", "content", "snapshot"];

fn digest(name: u64) -> Digest {
    full_name("content", name).parse().expect("a digest")
}

fn full_name(kind: &str, name: u64) -> String {
    if kind == "content" { format!("sha256:{name:064x}") } else { format!("{kind}{name}") }
}

fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).expect("a time").to_string()
}

fn random_labels(random: &mut Random) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    while random.one_in(2) {
        let kind = random.pick(&["content", "image", "container", "snapshot.s", "snapshot.t"]);
        let direction = random.pick(&["ref", "ref", "bref"]);
        let suffix = random.pick(&["", "/x", ".y", "z", "/x"]);
        // The model knows no snapshots of other snapshotters, to which something could refer back.
        let known = kind != "snapshot.t" && (kind != "snapshot.s" || !matches!(suffix, ".y" | "z"));
        let direction = if known { direction } else { "ref" };
        let target = kind.split('.').next().expect("one");
        let value = full_name(target, random.below(NAMES));
        labels.push(match random.below(8) {
            0 => ("containerd.io/gc.root".to_owned(), "1".to_owned()),
            1 => {
                let text = if random.one_in(4) {
                    "soon".to_owned()
                } else {
                    time(random.pick(&[900, 1100]))
                };
                ("containerd.io/gc.expire".to_owned(), text)
            }
            2 => ("containerd.io/gc.flat".to_owned(), String::new()),
            3 => {
                let used = time(random.pick(&[500, 900, 1100]));
                ("containerd.io/gc.cond.value-usedat".to_owned(), used)
            }
            4 => {
                let value = full_name("snapshot", random.below(NAMES));
                let condition =
                    random.pick(&["usedat<200s", "usedat>3m", "usedat<=1h", "x=y,usedat>1h"]);
                ("containerd.io/gc.cond.snapshot.s".to_owned(), format!("{condition}|{value}"))
            }
            _ => (format!("containerd.io/gc.{direction}.{kind}{suffix}"), value),
        });
    }
    labels
}

fn random_items(random: &mut Random) -> Vec<Item> {
    let mut items = Vec::new();
    for namespace in ["a", "b"] {
        for kind in KINDS {
            for name in 0..random.below(NAMES + 1) {
                let link = match kind {
                    "image" => Some(random.below(NAMES)),
                    "container" => (!random.one_in(3)).then(|| random.below(NAMES)),
                    // A parent is older, and has its record.
                    "snapshot" if name > 0 => (!random.one_in(3)).then(|| random.below(name)),
                    _ => None,
                };
                let mut held = Vec::new();
                while kind == "lease" && !random.one_in(3) {
                    held.push((
                        random.pick(&["content", "image", "snapshot"]),
                        random.below(NAMES),
                    ));
                }
                let labels = random_labels(random);
                items.push(Item { kind, namespace, name, link, labels, held });
            }
        }
    }
    items
}

fn label<'a>(item: &'a Item, key: &str) -> Option<&'a str> {
    // As in a map, the last one counts.
    item.labels.iter().rev().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
}

fn expired(item: &Item) -> bool {
    let expiry = label(item, "containerd.io/gc.expire")
        .and_then(|text| text.parse::<jiff::Timestamp>().ok());
    expiry.is_some_and(|expiry| expiry.as_second() < 1000)
}

/// Whether `from` has a label that makes it refer to `to`, by one of these prefixes.
fn names(from: &Item, direction: &str, to: &Item) -> bool {
    if from.labels.is_empty() || from.namespace != to.namespace {
        return false;
    }
    let value = full_name(to.kind, to.name);
    let fits = |key: &str| {
        let Some(rest) = key.strip_prefix(&format!("containerd.io/gc.{direction}.")) else {
            return false;
        };
        match to.kind {
            "snapshot" => rest == "snapshot.s" || rest.starts_with("snapshot.s/"),
            "container" if direction == "ref" => false,
            "content" | "image" | "container" => rest
                .strip_prefix(to.kind)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/'])),
            _ => false,
        }
    };
    from.labels.iter().any(|(key, _)| fits(key) && label(from, key) == Some(&value))
}

/// Whether `from` keeps `to` for how lately that was used.
fn conditional(from: &Item, to: &Item) -> bool {
    let Some(text) = label(from, "containerd.io/gc.cond.snapshot.s") else { return false };
    let Some(used) = label(to, "containerd.io/gc.cond.value-usedat") else { return false };
    let age = 1000 - used.parse::<jiff::Timestamp>().expect("a time").as_second();
    let (condition, name) = text.split_once('|').expect("a condition");
    let holds = match condition {
        "usedat<200s" => age < 200,
        "usedat>3m" => age > 180,
        _ => false,
    };
    holds
        && matches!(from.kind, "content" | "image")
        && to.kind == "snapshot"
        && from.namespace == to.namespace
        && name == full_name("snapshot", to.name)
}

/// What the model keeps: by its place, and whether in full.
fn model(items: &[Item]) -> BTreeSet<usize> {
    // What does not exist can be referred to, and be referred back to.
    let mut all: Vec<Item> = items.to_vec();
    for namespace in ["a", "b"] {
        for kind in &KINDS[1..] {
            for name in 0..NAMES {
                if !items.iter().any(|i| (i.kind, i.namespace, i.name) == (*kind, namespace, name))
                {
                    let (link, labels, held) = (None, Vec::new(), Vec::new());
                    all.push(Item { kind, namespace, name, link, labels, held });
                }
            }
        }
    }
    let root = |place: usize, item: &Item| match item.kind {
        "lease" => !expired(item),
        _ if place >= items.len() => false,
        "container" | "sandbox" => true,
        "image" => !expired(item),
        _ => item.labels.iter().any(|(key, _)| key.starts_with("containerd.io/gc.root")),
    };
    let mut kept: BTreeSet<(usize, bool)> = BTreeSet::new();
    loop {
        let mut more = kept.clone();
        for (place, item) in all.iter().enumerate() {
            if root(place, item) {
                more.insert((place, true));
            }
            // Nothing refers to leases, nor do they refer back.
            if item.kind == "lease" {
                continue;
            }
            for &(by, full) in &kept {
                let keeper = &all[by];
                let same = keeper.namespace == item.namespace;
                if keeper.kind == "lease" {
                    if same && keeper.held.contains(&(item.kind, item.name)) {
                        more.insert((place, label(keeper, "containerd.io/gc.flat").is_none()));
                    }
                    continue;
                }
                let needed = match keeper.kind {
                    "image" => item.kind == "content",
                    "container" => full && item.kind == "snapshot",
                    "snapshot" => item.kind == "snapshot",
                    _ => false,
                };
                if needed && same && keeper.link == Some(item.name) {
                    more.insert((place, full));
                }
                let refers = || {
                    names(keeper, "ref", item)
                        || names(item, "bref", keeper)
                        || conditional(keeper, item)
                };
                if full && !more.contains(&(place, true)) && refers() {
                    more.insert((place, true));
                }
            }
        }
        if more == kept {
            return kept
                .into_iter()
                .map(|(place, _)| place)
                .filter(|place| *place < items.len())
                .collect();
        }
        kept = more;
    }
}

fn subject(items: &[Item]) -> BTreeSet<usize> {
    let mut graph = Graph::new(UNIX_EPOCH + NOW);
    // Snapshots first, as the collector does it, and leases before what they hold.
    for item in items.iter().filter(|item| item.kind == "snapshot") {
        graph.add_snapshot("s", info(item));
    }
    for kind in ["lease", "leased", "image", "container", "sandbox", "content"] {
        for item in items {
            let namespace: Namespace = item.namespace.parse().expect("a namespace");
            if kind == "leased" && item.kind == "lease" {
                for (held, name) in &item.held {
                    let resource = match *held {
                        "content" => Resource::content(&digest(*name)),
                        "image" => Resource::image(&full_name("image", *name)),
                        _ => Resource::snapshot("s", &full_name("snapshot", *name)),
                    };
                    let lease = full_name("lease", item.name);
                    graph.add(namespace.clone(), metadata::Object::Leased { lease, resource });
                }
            } else if kind == item.kind {
                graph.add(namespace, object(item));
            }
        }
    }
    let plan = graph.plan();
    let is_kept = |item: &Item| {
        let (namespace, name) = (item.namespace, full_name(item.kind, item.name));
        let same = |(of, id): &(Namespace, String)| of.as_str() == namespace && *id == name;
        !match item.kind {
            "lease" => plan.leases.iter().any(same),
            "image" => plan.images.iter().any(same),
            "content" => {
                plan.content.iter().any(|(of, digest, _)| same(&(of.clone(), digest.to_string())))
            }
            "snapshot" => plan
                .snapshots
                .iter()
                .any(|(_, key)| key.namespace() == namespace && key.name() == name),
            _ => false,
        }
    };
    (0..items.len()).filter(|place| is_kept(&items[*place])).collect()
}

fn labels(item: &Item) -> Labels {
    item.labels.iter().cloned().collect()
}

fn info(item: &Item) -> Info {
    let key = |name| Key::new(item.namespace, &full_name("snapshot", name)).expect("a key");
    let kind = snapshotter::Kind::Committed;
    let parent = item.link.map(key);
    let (created, updated) = (UNIX_EPOCH, UNIX_EPOCH);
    Info { key: key(item.name), kind, parent, labels: labels(item), created, updated }
}

fn object(item: &Item) -> metadata::Object {
    use metadata::Object as O;
    let (created, updated) = (UNIX_EPOCH, UNIX_EPOCH);
    let (id, labels) = (full_name(item.kind, item.name), labels(item));
    let link = |kind: &str| item.link.map(|name| full_name(kind, name)).unwrap_or_default();
    match item.kind {
        "lease" => O::Lease(Lease { id, labels, created }),
        "image" => {
            let target = Descriptor {
                digest: digest(item.link.expect("a target")),
                ..Descriptor::of("x", b"")
            };
            O::Image(Image { name: id, labels, target, created, updated })
        }
        "container" => O::Container(Container {
            id,
            labels,
            image: String::new(),
            runtime: Runtime::default(),
            spec: None,
            snapshotter: if item.link.is_some() { "s".to_owned() } else { String::new() },
            snapshot_key: link("snapshot"),
            created,
            updated,
            extensions: std::collections::BTreeMap::new(),
            sandbox: String::new(),
        }),
        "sandbox" => O::Sandbox(Sandbox {
            id,
            labels,
            runtime: Runtime::default(),
            spec: None,
            sandboxer: String::new(),
            created,
            updated,
            extensions: std::collections::BTreeMap::new(),
        }),
        _ => {
            O::Content(ContentInfo { digest: digest(item.name), size: 1, labels, created, updated })
        }
    }
}

fn differs(items: &[Item]) -> bool {
    model(items) != subject(items)
}

/// Leaves out whatever can be left out with a difference still to be seen.
fn shrink(mut items: Vec<Item>) -> Vec<Item> {
    loop {
        let mut smaller = Vec::new();
        for place in 0..items.len() {
            let mut fewer = items.clone();
            let item = fewer.remove(place);
            smaller.push(fewer);
            for label in 0..item.labels.len() {
                let mut fewer = items.clone();
                fewer[place].labels.remove(label);
                smaller.push(fewer);
            }
            for held in 0..item.held.len() {
                let mut fewer = items.clone();
                fewer[place].held.remove(held);
                smaller.push(fewer);
            }
        }
        match smaller.into_iter().find(|fewer| differs(fewer)) {
            Some(fewer) => items = fewer,
            None => return items,
        }
    }
}

fn show(items: &[Item]) -> String {
    let (model, subject) = (model(items), subject(items));
    let mut text = String::new();
    for (place, item) in items.iter().enumerate() {
        let verdict =
            |kept: &BTreeSet<usize>| if kept.contains(&place) { "keeps" } else { "removes" };
        let (model, subject) = (verdict(&model), verdict(&subject));
        writeln!(text, "the model {model}, the graph {subject}: {item:?}").expect("writes");
    }
    text
}

#[test]
fn graphs_are_as_the_model() {
    let mut verdicts = [0_usize; 2];
    for seed in 0..GRAPHS {
        let items = random_items(&mut Random(seed));
        if differs(&items) {
            panic!("seed {seed}\n{}", show(&shrink(items)));
        }
        let kept = model(&items);
        for (place, item) in items.iter().enumerate() {
            if matches!(item.kind, "content" | "snapshot") {
                verdicts[usize::from(!kept.contains(&place))] += 1;
            }
        }
    }
    // Graphs in which all that is no root stays, or goes, would show nothing.
    let least = verdicts[0].min(verdicts[1]) * 4;
    assert!(least > verdicts[0].max(verdicts[1]), "{verdicts:?}");
}
