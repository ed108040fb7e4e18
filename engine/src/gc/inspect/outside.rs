//! What other programs have that this database has not had made there.
//!
//! No record tells of it, so no collection sees it, and none touches it: it may be somebody else's, or be what a
//! database left that is lost. Only those programs know of it, so they are asked, and only for who asks for it.

use super::{Explanation, Inspector, Wanted};
use crate::{
    error::Error,
    gc::object::{Kind, Object},
    namespace::Namespace,
};

/// How many objects of a plugin are named.
const NAMED_MAX: usize = 1000;

/// What an operator can do about such objects.
const REMEDY: &str = "they are left alone; where nobody else who uses the plugin needs them, remove them by its own means";

/// What a plugin has of others.
struct Outside {
    plugin: String,
    /// What these are, for more than one.
    word: &'static str,
    objects: Vec<Object>,
}

impl Inspector {
    /// Explains what is wanted of what plugins have of others.
    ///
    /// # Errors
    ///
    /// A plugin's, when none of the others has it either.
    pub(super) fn explain_outside(
        &self,
        namespace: &Namespace,
        wanted: &Wanted<'_>,
    ) -> Result<Vec<Explanation>, Error> {
        let mut found = Vec::new();
        let (all, failed) = self.outside(namespace, wanted);
        for outside in all {
            if wanted.fits(&Kind::Plugin, &outside.plugin) {
                found.extend(explain_all(namespace, outside));
                continue;
            }
            let Outside { plugin, objects, .. } = outside;
            let named = objects.into_iter().filter(|it| wanted.fits(&it.kind, &it.name));
            let reason = format!(
                "plugin {plugin:?} has it, and this database has not had it made there: such objects are left alone, see \
                 plugin/{plugin}"
            );
            found.extend(named.map(|object| stays(object, &reason)));
        }
        match failed {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    /// Asks the plugins of which something may be wanted, all of them, and tells of the last that failed.
    fn outside(&self, namespace: &Namespace, wanted: &Wanted<'_>) -> (Vec<Outside>, Option<Error>) {
        let is_wanted = |kind: &str, plugin: &str| match wanted.kind {
            Some("plugin") => wanted.fits(&Kind::Plugin, plugin),
            Some(of) => of == kind,
            None => true,
        };
        let object = |kind, name| Object { namespace: namespace.clone(), kind, name };
        let (mut all, mut failed) = (Vec::new(), None);
        for (name, snapshotter) in self.snapshotters.iter() {
            if !is_wanted("snapshot", name) {
                continue;
            }
            let names = match snapshotter.foreign() {
                Ok(Some(names)) => names,
                Ok(None) => continue,
                Err(error) => {
                    failed = Some(error.into());
                    continue;
                }
            };
            let kind = || Kind::Snapshot(name.clone());
            let objects = names.into_iter().map(|it| object(kind(), it)).collect();
            all.push(Outside { plugin: name.clone(), word: "snapshots", objects });
        }
        if let Some(name) = self.content.plugin().filter(|name| is_wanted("content", name)) {
            match self.content.foreign() {
                Ok(digests) => {
                    let objects = digests.iter().map(|it| object(Kind::Content, it.to_string()));
                    let objects = objects.collect();
                    all.push(Outside { plugin: name.to_owned(), word: "blobs", objects });
                }
                Err(error) => failed = Some(error),
            }
        }
        (all, failed)
    }
}

/// Says how many there are, and which.
fn explain_all(namespace: &Namespace, outside: Outside) -> Vec<Explanation> {
    let Outside { plugin, word, objects } = outside;
    let count = objects.len();
    let mut reason = format!("of its {word}, this database has not had {count} made");
    if count > 0 {
        reason = format!("{reason}: {REMEDY}");
    }
    if count > NAMED_MAX {
        reason = format!("{reason}; {NAMED_MAX} of them are named here");
    }
    let plugin = Object { namespace: namespace.clone(), kind: Kind::Plugin, name: plugin };
    let mut found = vec![stays(plugin, &reason)];
    let named = objects.into_iter().take(NAMED_MAX);
    found.extend(named.map(|object| stays(object, "it is left alone")));
    found
}

fn stays(object: Object, reason: &str) -> Explanation {
    Explanation { object, kept: true, chain: Vec::new(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(count: usize) -> Vec<(String, String)> {
        let namespace: Namespace = "default".parse().expect("a namespace");
        let object = |number: usize| Object {
            namespace: namespace.clone(),
            kind: Kind::Snapshot("p".to_owned()),
            name: format!("layer{number}"),
        };
        let objects = (0..count).map(object).collect();
        let outside = Outside { plugin: "p".to_owned(), word: "snapshots", objects };
        let found = explain_all(&namespace, outside).into_iter();
        found.map(|it| (it.object.to_string(), it.reason)).collect()
    }

    #[test]
    fn objects_of_others_are_counted_and_named() {
        let reason =
            |count: usize| format!("of its snapshots, this database has not had {count} made");
        assert_eq!(explain(0), [("plugin/p".to_owned(), reason(0))]);
        let two = [
            ("plugin/p".to_owned(), format!("{}: {REMEDY}", reason(2))),
            ("snapshot/p/layer0".to_owned(), "it is left alone".to_owned()),
            ("snapshot/p/layer1".to_owned(), "it is left alone".to_owned()),
        ];
        assert_eq!(explain(2), two);
        let many = explain(NAMED_MAX + 1);
        assert_eq!(many.len(), 1 + NAMED_MAX);
        assert!(many[0].1.ends_with("; 1000 of them are named here"), "{}", many[0].1);
    }
}
