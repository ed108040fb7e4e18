//! What other programs keep, as far as the database tells of it.
//!
//! They are not asked: none may run, and what they have of others is nothing that is wrong here. But somebody who
//! looks for what takes space should hear of whom to ask, and of what stays there when a record goes.

use std::collections::{BTreeMap, BTreeSet};

use redb::{ReadTransaction, ReadableTable, TableError};
use snapshotter::{
    made::OUTSIDE,
    records::{Record, SNAPSHOTS},
};

use super::{Problem, Remedy, Report};
use crate::{digest::Digest, error::Error};

/// The table's name.
const TABLE: &str = "outside";

/// What is known of one program.
#[derive(Default)]
struct Plugin {
    /// What this database has had made there.
    made: BTreeSet<String>,
    /// Its snapshots of which there are records, by its names.
    recorded: BTreeSet<String>,
}

/// Notes what there is at other programs; `has_blob` says of which blobs there are records.
pub(super) fn note(
    transaction: &ReadTransaction,
    has_blob: impl Fn(&Digest) -> bool,
    report: &mut Report,
) -> Result<(), Error> {
    let mut plugins: BTreeMap<String, Plugin> = BTreeMap::new();
    let table = match transaction.open_table(OUTSIDE) {
        Ok(table) => table,
        // No other program was ever used.
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(TableError::Storage(error)) => return Err(Error::database("open table")(error)),
        Err(error) => {
            report.problems.push(Problem::new(TABLE, "", "", error.to_string(), Remedy::Rebuild));
            return Ok(());
        }
    };
    for row in table.iter().map_err(Error::database("read"))? {
        let (key, _) = row.map_err(Error::database("read"))?;
        let (plugin, name) = key.value();
        let plugin = plugins.entry(plugin.to_owned()).or_default();
        if !name.is_empty() {
            plugin.made.insert(name.to_owned());
        }
    }
    add_recorded(transaction, &mut plugins)?;
    report.notes.extend(plugins.iter().map(|(name, plugin)| plugin.tell(name, &has_blob)));
    Ok(())
}

/// Adds what records call their snapshots there. What is wrong with records is told elsewhere.
fn add_recorded(
    transaction: &ReadTransaction,
    plugins: &mut BTreeMap<String, Plugin>,
) -> Result<(), Error> {
    let Ok(table) = transaction.open_table(SNAPSHOTS) else { return Ok(()) };
    for row in table.iter().map_err(Error::database("read"))? {
        let (key, value) = row.map_err(Error::database("read"))?;
        let Some(plugin) = plugins.get_mut(key.value().0) else { continue };
        let record = Record::decode(value.value()).ok();
        plugin.recorded.extend(record.and_then(|record| record.external));
    }
    Ok(())
}

impl Plugin {
    fn tell(&self, name: &str, has_blob: &impl Fn(&Digest) -> bool) -> String {
        let is_known = |made: &&String| {
            // Names of snapshots have more parts, and may end as those of blobs do.
            let digest = made.split_once('/').and_then(|(_, it)| it.parse::<Digest>().ok());
            self.recorded.contains(*made) || digest.is_some_and(|it| has_blob(&it))
        };
        let known = self.made.iter().filter(is_known).count();
        let mut text =
            format!("plugin {name:?} has {known} objects that this database has had made there");
        let over = self.made.len() - known;
        if over > 0 {
            text +=
                &format!(", and {over} perhaps that have no record, which a collection removes");
        }
        let of_others: Vec<_> = self.recorded.difference(&self.made).collect();
        if let Some(first) = of_others.first() {
            let count = of_others.len();
            text += &format!(
                "; {count} that records name, such as {first:?}, it has not had made: they stay there when the records go"
            );
        }
        text += &format!(
            ". What else is there is left alone: `ctr gc explain plugin/{name}` names it, when a daemon runs"
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let blob = format!("default/{digest}");
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let end = ". What else is there is left alone: `ctr gc explain plugin/p` names it, when a daemon runs";
        let cases: [(&str, &[&str], &[&str], &str); 5] = [
            (
                "nothing",
                &[],
                &[],
                "plugin \"p\" has 0 objects that this database has had made there",
            ),
            (
                "a blob",
                &[&blob],
                &[],
                "plugin \"p\" has 1 objects that this database has had made there",
            ),
            (
                "a snapshot",
                &["default/1/a"],
                &["default/1/a"],
                "plugin \"p\" has 1 objects that this database has had made there",
            ),
            (
                "without a record",
                &["default/1/a"],
                &[],
                "plugin \"p\" has 0 objects that this database has had made there, and 1 perhaps that have no record, \
                 which a collection removes",
            ),
            (
                "made by another",
                &[],
                &["layer"],
                "plugin \"p\" has 0 objects that this database has had made there; 1 that records name, such as \
                 \"layer\", it has not had made: they stay there when the records go",
            ),
        ];
        for (case, made, recorded, want) in cases {
            let plugin = Plugin { made: names(made), recorded: names(recorded) };
            let told = plugin.tell("p", &|it| it.to_string() == digest);
            assert_eq!(told, format!("{want}{end}"), "{case}");
        }
    }
}
