//! The snapshots' tables and directories.

use std::collections::{BTreeMap, BTreeSet};

use redb::{ReadTransaction, ReadableTable, TableError};
use snapshotter::{
    Key, Kind,
    records::{CHILDREN, Record, SNAPSHOTS},
};

use super::{Place, Problem, Remedy, Report, Root};
use crate::{error::Error, namespace::Namespace};

/// The tables' names.
const RECORDS: &str = "snapshots";
const LINKS: &str = "snapshot_children";

/// Which child a parent has: the snapshotter, the numbers of both.
type Link = (String, u64, u64);

pub(super) fn check(
    root: &Root,
    transaction: &ReadTransaction,
    namespaces: &BTreeSet<Namespace>,
    report: &mut Report,
) -> Result<(), Error> {
    let Some(records) = read_records(transaction, report)? else { return Ok(()) };
    let mut check = Check { root, records: &records, owners: BTreeMap::new(), report };
    let mut links = BTreeMap::new();
    for (place, record) in &records {
        let Some(parent) = check.record(place, record, namespaces) else { continue };
        if let Some(parent) = parent {
            let link = (place.snapshotter.clone(), parent.id, record.id);
            links.insert(link, place.name.clone());
        }
        check.directory(place, record);
    }
    check_links(transaction, &links, report)
}

/// The records that can be read; nothing when there is no table of them.
fn read_records(
    transaction: &ReadTransaction,
    report: &mut Report,
) -> Result<Option<BTreeMap<Place, Record>>, Error> {
    let table = match transaction.open_table(SNAPSHOTS) {
        Ok(table) => table,
        // A snapshotter makes it.
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(TableError::Storage(error)) => return Err(Error::database("open table")(error)),
        Err(error) => {
            let problem = error.to_string();
            report.problems.push(Problem::new(RECORDS, "", "", problem, Remedy::Rebuild));
            return Ok(None);
        }
    };
    let mut records = BTreeMap::new();
    let mut count = 0;
    for row in table.iter().map_err(Error::database("read"))? {
        let (key, value) = row.map_err(Error::database("read"))?;
        count += 1;
        let place = place(key.value());
        match Record::decode(value.value()) {
            Ok(record) => {
                records.insert(place, record);
            }
            Err(error) => {
                let key = place.to_string();
                let problem = sys::error::Chain(&error).to_string();
                let remedy = Remedy::RemoveSnapshot(place, None);
                report.problems.push(Problem::new(RECORDS, &key, "", problem, remedy));
            }
        }
    }
    report.rows.insert(RECORDS.to_owned(), count);
    Ok(Some(records))
}

pub(super) fn place((snapshotter, namespace, name): (&str, &str, &str)) -> Place {
    Place {
        snapshotter: snapshotter.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

struct Check<'a> {
    root: &'a Root,
    records: &'a BTreeMap<Place, Record>,
    /// Who has which directory.
    owners: BTreeMap<(&'a str, u64), &'a Place>,
    report: &'a mut Report,
}

impl<'a> Check<'a> {
    /// Checks a record and what it refers to; gives its parent if it is good.
    fn record(
        &mut self,
        place: &'a Place,
        record: &'a Record,
        namespaces: &BTreeSet<Namespace>,
    ) -> Option<Option<&'a Record>> {
        if let Err(error) = Key::new(&place.namespace, &place.name) {
            let remedy = Remedy::RemoveSnapshot(place.clone(), Some(record.id));
            self.add(place, "key", error.to_string(), remedy);
            return None;
        }
        match place.namespace.parse::<Namespace>() {
            Ok(namespace) if namespaces.contains(&namespace) => {}
            Ok(namespace) => {
                let problem = format!("namespace {:?} has no record", place.namespace);
                self.add(place, "namespace", problem, Remedy::MakeNamespace(namespace));
            }
            Err(error) => {
                let remedy = Remedy::RemoveSnapshot(place.clone(), Some(record.id));
                self.add(place, "namespace", error.to_string(), remedy);
                return None;
            }
        }
        if let Some(other) = self.owners.insert((&place.snapshotter, record.id), place) {
            let problem = format!("{} is that of {other} too", record.id);
            // The directory is the other's.
            self.owners.insert((&place.snapshotter, record.id), other);
            self.add(place, "id", problem, Remedy::RemoveSnapshot(place.clone(), None));
            return None;
        }
        match self.parent(place, record) {
            Ok(parent) => Some(parent),
            Err(problem) => {
                let remedy = Remedy::RemoveSnapshot(place.clone(), Some(record.id));
                self.add(place, "parent", problem, remedy);
                None
            }
        }
    }

    fn parent(&self, place: &Place, record: &Record) -> Result<Option<&'a Record>, String> {
        let Some(name) = &record.parent else { return Ok(None) };
        let above = |name: &str| Place { name: name.to_owned(), ..place.clone() };
        let parent = self.records.get(&above(name)).ok_or(format!("{name:?} has no record"))?;
        if parent.kind != Kind::Committed {
            return Err(format!("{name:?} is {}, not committed", parent.kind));
        }
        let mut next = &parent.parent;
        for _ in 0..self.records.len() {
            let Some(name) = next else { return Ok(Some(parent)) };
            // What is missing further up is that record's own problem.
            let Some(further) = self.records.get(&above(name)) else { return Ok(Some(parent)) };
            next = &further.parent;
        }
        Err(format!("{name:?} is on top of itself"))
    }

    fn directory(&mut self, place: &Place, record: &Record) {
        // What another program keeps, it keeps where it likes.
        if record.external.is_some() {
            return;
        }
        let path = self.root.directories(&place.snapshotter).join(record.id.to_string());
        if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            return;
        }
        let problem = format!("directory {} is missing", record.id);
        match (record.kind, &record.unsynced) {
            // A daemon knows, and unpacks it again.
            (Kind::Committed, Some(_)) => {}
            (Kind::Committed, None) => {
                self.add(place, "id", problem, Remedy::Suspect(place.clone()));
            }
            _ => self.add(place, "id", problem, Remedy::Open),
        }
    }

    fn add(&mut self, place: &Place, field: &str, problem: String, remedy: Remedy) {
        let problem = Problem::new(RECORDS, &place.to_string(), field, problem, remedy);
        self.report.problems.push(problem);
    }
}

/// Compares the links that there are with those that records ask for.
fn check_links(
    transaction: &ReadTransaction,
    wanted: &BTreeMap<Link, String>,
    report: &mut Report,
) -> Result<(), Error> {
    let table = match transaction.open_table(CHILDREN) {
        Ok(table) => table,
        Err(TableError::Storage(error)) => return Err(Error::database("open table")(error)),
        Err(TableError::TableDoesNotExist(_)) => {
            report.problems.push(Problem::new(
                LINKS,
                "",
                "",
                "the table is missing",
                Remedy::Relink,
            ));
            return Ok(());
        }
        Err(error) => {
            let problem = error.to_string();
            report.problems.push(Problem::new(LINKS, "", "", problem, Remedy::Rebuild));
            return Ok(());
        }
    };
    let mut found = BTreeMap::new();
    for row in table.iter().map_err(Error::database("read"))? {
        let (key, value) = row.map_err(Error::database("read"))?;
        let (snapshotter, parent, child) = key.value();
        found.insert((snapshotter.to_owned(), parent, child), value.value().to_owned());
    }
    report.rows.insert(LINKS.to_owned(), found.len() as u64);
    let links: BTreeSet<&Link> = found.keys().chain(wanted.keys()).collect();
    for link @ (snapshotter, parent, child) in links {
        let problem = match (found.get(link), wanted.get(link)) {
            (Some(found), Some(wanted)) if found == wanted => continue,
            (Some(found), Some(wanted)) => format!("is {found:?}, but that snapshot is {wanted:?}"),
            (None, Some(wanted)) => format!("the link to {wanted:?} is missing"),
            (_, None) => "no snapshot has such a parent".to_owned(),
        };
        let key = format!("{snapshotter}/{parent}/{child}");
        report.problems.push(Problem::new(LINKS, &key, "", problem, Remedy::Relink));
    }
    Ok(())
}
