//! What the store means, as simply as it can be said.

use std::collections::{BTreeMap, BTreeSet};

use super::{Choices, digest};

/// The namespaces, names and resources that operations are about: few, so that they meet.
pub(super) const NAMESPACES: [&str; 2] = ["one", "two"];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Namespace,
    Image,
    Container,
    Sandbox,
    Lease,
    /// What a lease holds.
    Leased,
    Content,
}

const KINDS: [Kind; 7] = [
    Kind::Namespace,
    Kind::Image,
    Kind::Container,
    Kind::Sandbox,
    Kind::Lease,
    Kind::Leased,
    Kind::Content,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Create,
    Update,
    Delete,
}

/// How an operation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Done,
    NotFound,
    AlreadyExists,
    FailedPrecondition,
}

/// A call.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) action: Action,
    pub(super) kind: Kind,
    pub(super) namespace: &'static str,
    pub(super) name: &'static str,
    /// Zero for none.
    pub(super) label: u8,
    /// The lease in whose name it is made.
    pub(super) lease: Option<&'static str>,
    pub(super) resource: &'static str,
}

impl Operation {
    pub(super) fn choose(choices: &mut Choices<'_>) -> Self {
        let pick = |choices: &mut Choices<'_>| NAMES[usize::from(choices.below(4))];
        let kind = KINDS[usize::from(choices.below(7))];
        let action = [Action::Create, Action::Create, Action::Update, Action::Delete];
        let action = action[usize::from(choices.below(4))];
        // Leases hold images only that expire, which these do not.
        let leases = action == Action::Create && kind == Kind::Content;
        Self {
            action,
            kind,
            namespace: NAMESPACES[usize::from(choices.below(2))],
            name: pick(choices),
            label: choices.below(3),
            lease: (leases && choices.below(3) == 0).then(|| pick(choices)),
            resource: pick(choices),
        }
    }
}

/// All objects: what, in which namespace, under which name, with which label.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    objects: BTreeMap<(Kind, &'static str, &'static str), u8>,
    leased: BTreeSet<(&'static str, &'static str, String)>,
}

impl Model {
    pub(super) fn perform(&mut self, operation: &Operation) -> Ending {
        match (operation.kind, operation.action) {
            (Kind::Namespace, _) => self.namespace(operation),
            (Kind::Leased, _) => self.leased(operation),
            (_, Action::Create) => self.create(operation),
            // There is no such call.
            (Kind::Lease, Action::Update) => Ending::Done,
            (_, Action::Update) => match self.objects.get_mut(&place(operation)) {
                None => Ending::NotFound,
                Some(label) => {
                    *label = operation.label;
                    Ending::Done
                }
            },
            (_, Action::Delete) => {
                if self.objects.remove(&place(operation)).is_none() {
                    return Ending::NotFound;
                }
                if operation.kind == Kind::Lease {
                    self.leased.retain(|(namespace, lease, _)| {
                        (*namespace, *lease) != (operation.namespace, operation.name)
                    });
                }
                Ending::Done
            }
        }
    }

    fn create(&mut self, operation: &Operation) -> Ending {
        let Operation { namespace, name, kind, .. } = *operation;
        if let Some(lease) = operation.lease
            && !self.objects.contains_key(&(Kind::Lease, namespace, lease))
        {
            return Ending::NotFound;
        }
        let is_there = self.objects.contains_key(&place(operation));
        // A blob that is there is leased all the same.
        if is_there && kind != Kind::Content {
            return Ending::AlreadyExists;
        }
        self.objects.entry((Kind::Namespace, namespace, "")).or_insert(0);
        if let Some(lease) = operation.lease {
            self.leased.insert((namespace, lease, digest(name).to_string()));
        }
        if is_there {
            return Ending::AlreadyExists;
        }
        self.objects.insert(place(operation), operation.label);
        Ending::Done
    }

    fn leased(&mut self, operation: &Operation) -> Ending {
        let Operation { namespace, name, resource, .. } = *operation;
        if operation.action == Action::Update {
            return Ending::Done;
        }
        if !self.objects.contains_key(&(Kind::Lease, namespace, name)) {
            return Ending::NotFound;
        }
        let row = (namespace, name, resource.to_owned());
        match operation.action {
            Action::Delete => self.leased.remove(&row),
            _ => self.leased.insert(row),
        };
        Ending::Done
    }

    fn namespace(&mut self, operation: &Operation) -> Ending {
        let place = (Kind::Namespace, operation.namespace, "");
        let is_there = self.objects.contains_key(&place);
        match operation.action {
            Action::Create if is_there => return Ending::AlreadyExists,
            Action::Create | Action::Update => {
                self.objects.insert(place, operation.label);
            }
            Action::Delete if !is_there => return Ending::NotFound,
            Action::Delete => {
                let inside = |kind: Kind, its: &str| {
                    its == operation.namespace && !matches!(kind, Kind::Namespace | Kind::Lease)
                };
                if self.objects.keys().any(|(kind, its, _)| inside(*kind, its)) {
                    return Ending::FailedPrecondition;
                }
                self.objects.retain(|(_, its, _), _| *its != operation.namespace);
                self.leased.retain(|(its, _, _)| *its != operation.namespace);
            }
        }
        Ending::Done
    }

    /// All that there is, a line each, in order.
    pub(super) fn show(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for ((kind, namespace, name), label) in &self.objects {
            let label = if *label == 0 { "-".to_owned() } else { format!("v{label}") };
            lines.push(match kind {
                Kind::Namespace => format!("{kind:?} {namespace} {label}"),
                Kind::Content => format!("{kind:?} {namespace} {} {label}", digest(name)),
                _ => format!("{kind:?} {namespace} {name} {label}"),
            });
        }
        for (namespace, lease, id) in &self.leased {
            lines.push(format!("{:?} {namespace} {lease} {id}", Kind::Leased));
        }
        lines.sort();
        lines
    }

    /// The names of those with a label, in order.
    pub(super) fn labelled(&self, kind: Kind, namespace: &str, label: u8) -> Vec<String> {
        let found = self
            .objects
            .iter()
            .filter(|((its, of, _), value)| (*its, *of, **value) == (kind, namespace, label));
        found.map(|((_, _, name), _)| (*name).to_owned()).collect()
    }
}

fn place(operation: &Operation) -> (Kind, &'static str, &'static str) {
    (operation.kind, operation.namespace, operation.name)
}
