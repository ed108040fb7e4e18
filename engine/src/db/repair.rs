//! Does about problems what is to be done.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{ReadableTable, WriteTransaction};
use snapshotter::{
    Btrfs, Copies, Erofs, Images, Native, Overlay, OverlayOptions, Subvolumes, Transactions,
    records::{CHILDREN, Record, SNAPSHOTS},
};

use super::{Place, Problem, Remedy, Root, hold, numbered, rebuild::recovered, snapshots::place};
use crate::{digest::Digest, error::Error, metadata, namespace::Namespace};

/// How often what is left is looked at again: a snapshot that goes leaves those on top of it.
const ROUNDS_MAX: usize = 1000;

/// What a repair has done.
#[derive(Debug, Default)]
pub struct Repaired {
    /// What was noticed before, a line each.
    pub notes: Vec<String>,
    /// What was done, a line each.
    pub done: Vec<String>,
    /// What is still wrong.
    pub left: Vec<Problem>,
}

impl Problem {
    /// Whether a record goes that may be all that keeps others, or a blob, from being collected.
    fn loses_a_keeper(&self) -> bool {
        matches!(self.remedy, Remedy::Remove(..) | Remedy::RemoveSnapshot(..))
    }
}

impl Root {
    /// Mends what [`check`](Self::check) finds. What there is no record for any more, and a
    /// database that cannot be read, are put aside under names that end with `suffix`. Blobs and
    /// snapshots that such a database told of come into `namespace`.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check); what was done before stays done.
    pub fn repair(
        &self,
        deep: bool,
        namespace: &Namespace,
        suffix: &str,
    ) -> Result<Repaired, Error> {
        let mut repaired = Repaired::default();
        let mut report = self.check(deep)?;
        repaired.notes.append(&mut report.notes);
        if report.problems.is_empty() {
            return Ok(repaired);
        }
        let rebuilt = report.problems.iter().any(|problem| problem.remedy == Remedy::Rebuild);
        let mut lost_keepers = rebuilt;
        if rebuilt {
            self.rebuild(namespace, suffix, &mut repaired.done)?;
            report = self.check(false)?;
        } else {
            let copy = self.path.join(format!("{}.before-repair-{suffix}", super::DATABASE));
            copy_durably(&self.database(), &copy)?;
            repaired.done.push(format!("copied the database to {}", copy.display()));
        }
        for _ in 0..ROUNDS_MAX {
            if report.problems.is_empty() {
                break;
            }
            if report.problems.iter().any(Problem::loses_a_keeper) {
                lost_keepers = true;
                let store = open(&self.database())?;
                disown(&store, &report.problems)?;
                hold::everything(&store, suffix, &mut repaired.done)?;
            }
            self.mend(&report.problems, suffix, &mut repaired.done)?;
            let next = self.check(false)?;
            let is_stuck = next.problems == report.problems;
            report = next;
            if is_stuck {
                break;
            }
        }
        repaired.left = report.problems;
        if lost_keepers {
            let store = metadata::Store::open(&self.database())?;
            if !rebuilt {
                self.adopt_blobs(&store, namespace, &recovered(suffix), &mut repaired.done)?;
            }
            hold::everything(&store, suffix, &mut repaired.done)?;
        }
        Ok(repaired)
    }

    fn mend(
        &self,
        problems: &[Problem],
        suffix: &str,
        done: &mut Vec<String>,
    ) -> Result<(), Error> {
        let aside = Aside { root: &self.path, name: format!("aside-{suffix}") };
        // Makes tables, and has redb mend what it can of pages.
        let store = open(&self.database())?;
        let mut relink = false;
        for problem in problems {
            match &problem.remedy {
                Remedy::Rebuild | Remedy::Open => {}
                Remedy::Relink => relink = true,
                Remedy::Remove(table, key) => {
                    store.write(|changes| {
                        changes.remove(*table, key);
                        Ok(())
                    })?;
                    done.push(format!("removed the record: {problem}"));
                }
                Remedy::MakeNamespace(name) => {
                    store.write(|changes| metadata::ensure_namespace(changes, name))?;
                    done.push(format!(
                        "made the record of namespace {:?}: {problem}",
                        name.as_str()
                    ));
                }
                Remedy::PutBlobAside(digest) => {
                    let to = aside.put(&self.blob(digest), &name_of(digest))?;
                    if let Some(to) = to {
                        done.push(format!("moved the blob to {}: {problem}", to.display()));
                    }
                }
                Remedy::Suspect(place) => {
                    change_snapshots(&store, &mut |transaction| suspect(transaction, place))?;
                    done.push(format!("marked to be unpacked again at the next start: {problem}"));
                }
                Remedy::RemoveSnapshot(place, id) => {
                    // The record last, for what has one is not put aside twice.
                    self.put_directories_aside(&store, place, *id, &aside, done)?;
                    relink = true;
                    change_snapshots(&store, &mut |transaction| remove(transaction, place))?;
                    done.push(format!("removed the record: {problem}"));
                }
            }
        }
        if relink {
            change_snapshots(&store, &mut relink_all)?;
            done.push("made the table of snapshots' children anew".to_owned());
        }
        self.open_snapshotters(store)
    }

    /// Moves the directory of a snapshot whose record goes; when its number is not known, every one
    /// that no other record has.
    fn put_directories_aside(
        &self,
        store: &metadata::Store,
        place: &Place,
        id: Option<u64>,
        aside: &Aside<'_>,
        done: &mut Vec<String>,
    ) -> Result<(), Error> {
        let folder = self.directories(&place.snapshotter);
        let ids = match id {
            Some(id) => BTreeSet::from([id]),
            None => {
                let mut ids = BTreeSet::from_iter(numbered(&folder)?);
                for known in ids_of(store, &place.snapshotter)? {
                    ids.remove(&known);
                }
                ids
            }
        };
        for id in ids {
            let name = format!("{}-{id}", place.snapshotter);
            if let Some(to) = aside.put(&folder.join(id.to_string()), &name)? {
                done.push(format!("moved directory {id} of {place} to {}", to.display()));
            }
        }
        Ok(())
    }

    /// Lets the snapshotters make the directories that are missing, as at the start of a daemon.
    fn open_snapshotters(&self, store: metadata::Store) -> Result<(), Error> {
        let folder = self.path.join("snapshots");
        let records: Arc<dyn Transactions> = Arc::new(store);
        let options = OverlayOptions::default();
        Overlay::open(&folder.join("overlayfs"), Arc::clone(&records), options)?;
        Native::open(&folder.join("native"), Arc::clone(&records), Copies)?;
        if folder.join("erofs").is_dir() {
            let images = Images::new(OverlayOptions::default()).for_a_look();
            Erofs::open(&folder.join("erofs"), Arc::clone(&records), images)?;
        }
        if folder.join("btrfs").is_dir() {
            Btrfs::open(&folder.join("btrfs"), records, Subvolumes)?;
        }
        Ok(())
    }
}

/// Opens the database; redb checks its pages.
fn open(path: &Path) -> Result<metadata::Store, Error> {
    let mut database = redb::Database::open(path).map_err(Error::database("open"))?;
    database.check_integrity().map_err(Error::database("check"))?;
    drop(database);
    metadata::Store::open(path)
}

fn name_of(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}

/// Where what is no good goes to: a folder below the root or, when that is on another filesystem, as near to the root
/// as what is moved can go without being copied.
struct Aside<'a> {
    root: &'a Path,
    name: String,
}

impl Aside<'_> {
    /// Moves what is at `from`, if it is there, and says where it is now.
    fn put(&self, from: &Path, name: &str) -> Result<Option<PathBuf>, Error> {
        if let Err(error) = from.symlink_metadata()
            && error.kind() == io::ErrorKind::NotFound
        {
            return Ok(None);
        }
        let mut places: Vec<&Path> =
            from.ancestors().skip(1).take_while(|place| place.starts_with(self.root)).collect();
        while let Some(place) = places.pop() {
            let folder = place.join(&self.name);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.map_err(Error::file("create", &folder))?;
            let to = folder.join(name);
            match fs::rename(from, &to) {
                Ok(()) => return Ok(Some(to)),
                Err(error)
                    if error.kind() == io::ErrorKind::CrossesDevices && !places.is_empty() =>
                {
                    // Unless something was put there before.
                    let _ = fs::remove_dir(&folder);
                }
                Err(error) => return Err(Error::file("rename", from)(error)),
            }
        }
        Ok(None)
    }
}

fn copy_durably(from: &Path, to: &Path) -> Result<(), Error> {
    fs::copy(from, to).map_err(Error::file("copy", from))?;
    let synced = File::open(to).and_then(|copy| copy.sync_all());
    synced.map_err(Error::file("sync", to))
}

type SnapshotChange<'a> =
    dyn FnMut(&WriteTransaction) -> Result<(), snapshotter::Error> + Send + 'a;

pub(super) fn change_snapshots(
    store: &metadata::Store,
    change: &mut SnapshotChange<'_>,
) -> Result<(), Error> {
    Ok(Transactions::write(store, &mut |transaction| {
        snapshotter::records::create_tables(transaction)?;
        change(transaction)
    })?)
}

pub(super) fn database(error: impl Into<redb::Error>) -> snapshotter::Error {
    snapshotter::Error::database(error.into())
}

pub(super) fn ids_of(store: &metadata::Store, snapshotter: &str) -> Result<Vec<u64>, Error> {
    let mut ids = Vec::new();
    change_snapshots(store, &mut |transaction| {
        let table = transaction.open_table(SNAPSHOTS).map_err(database)?;
        for row in table.iter().map_err(database)? {
            let (key, value) = row.map_err(database)?;
            if let (Ok(record), true) =
                (Record::decode(value.value()), key.value().0 == snapshotter)
            {
                ids.push(record.id);
            }
        }
        Ok(())
    })?;
    Ok(ids)
}

fn remove(transaction: &WriteTransaction, place: &Place) -> Result<(), snapshotter::Error> {
    let mut table = transaction.open_table(SNAPSHOTS).map_err(database)?;
    table.remove(place.key()).map_err(database)?;
    Ok(())
}

/// Notes that the files of a snapshot may be lost, as if it was committed in another boot.
fn suspect(transaction: &WriteTransaction, place: &Place) -> Result<(), snapshotter::Error> {
    let mut table = transaction.open_table(SNAPSHOTS).map_err(database)?;
    let found = table.get(place.key()).map_err(database)?;
    let Some(mut record) = found.map(|found| Record::decode(found.value())).transpose()? else {
        return Ok(());
    };
    record.unsynced = Some("lost".to_owned());
    table.insert(place.key(), record.encode()?.as_slice()).map_err(database)?;
    Ok(())
}

/// Forgets what was made at other programs that is perhaps somebody's: before records of it go. What is there stays
/// there then. Snapshots that keep their records are noted again when they are opened.
fn disown(store: &metadata::Store, problems: &[Problem]) -> Result<(), Error> {
    let loses_blobs = problems
        .iter()
        .any(|problem| matches!(problem.remedy, Remedy::Remove(metadata::Table::Content, _)));
    change_snapshots(store, &mut |transaction| {
        snapshotter::made::disown(transaction, |_, name| {
            // Names of snapshots have more parts, and may end as those of blobs do.
            let digest = name.split_once('/').and_then(|(_, it)| it.parse::<Digest>().ok());
            let is_known = digest.is_some_and(|it| store.is_content_known(&it).unwrap_or(false));
            is_known && !loses_blobs
        })
    })
}

/// Makes the table of children what the records say.
pub(super) fn relink_all(transaction: &WriteTransaction) -> Result<(), snapshotter::Error> {
    transaction.delete_table(CHILDREN).map_err(database)?;
    let records = transaction.open_table(SNAPSHOTS).map_err(database)?;
    let mut children = transaction.open_table(CHILDREN).map_err(database)?;
    for row in records.iter().map_err(database)? {
        let (key, value) = row.map_err(database)?;
        let Ok(Record { id, parent: Some(parent), .. }) = Record::decode(value.value()) else {
            continue;
        };
        let place = place(key.value());
        let above = Place { name: parent, ..place.clone() };
        let Some(above) = records.get(above.key()).map_err(database)? else { continue };
        let Ok(above) = Record::decode(above.value()) else { continue };
        let link = (place.snapshotter.as_str(), above.id, id);
        children.insert(link, place.name.as_str()).map_err(database)?;
    }
    Ok(())
}

impl Place {
    pub(super) fn key(&self) -> (&str, &str, &str) {
        (&self.snapshotter, &self.namespace, &self.name)
    }
}
