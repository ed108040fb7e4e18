//! Makes a database anew from what is left: rows of the old one, blobs, and directories.
//!
//! Rows of the old database that can be [read](super::pages) and mean something are taken over; the sums of pages
//! are not compared. Then everything that has no record gets one:
//!
//! - a blob, if its bytes have its digest;
//! - a snapshot's directory, as an active snapshot without a parent. Which was on top of which is not
//!   known, nor which was committed, so an image has to be unpacked again; but what a container has
//!   written can be copied out, and a container that runs on it goes on.
//!
//! Both are labelled so that they are not collected. Names of images are in no file: whatever is an
//! index or a manifest is listed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use redb::TableHandle;
use serde::Deserialize;
use snapshotter::{
    Kind,
    records::{Record, SNAPSHOTS},
};

use super::{
    DATABASE, Root,
    check::hash,
    hold, numbered,
    pages::{Pages, Rows, three},
    repair,
};
use crate::{
    digest::{Algorithm, Digest},
    error::Error,
    gc,
    labels::Labels,
    metadata::{self, Table},
    namespace::{Namespace, Scope},
};
use sys::error::Chain;

/// The label of what was found without a record.
const RECOVERED: &str = "gantry.io/recovered";

/// The largest blob that may be an index or a manifest, in bytes.
const DOCUMENT_LEN_MAX: u64 = 4 << 20;

impl Root {
    pub(super) fn rebuild(
        &self,
        namespace: &Namespace,
        suffix: &str,
        done: &mut Vec<String>,
    ) -> Result<(), Error> {
        let path = self.database();
        // Under another name until all is in it: a daemon deletes files that a database does not name.
        let new = self.path.join(format!("{DATABASE}.rebuilt"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("remove", &new)(error));
            }
            _ => {}
        }
        let store = metadata::Store::open(&new)?;
        salvage(&path, &store, done)?;
        let labels = recovered(suffix);
        self.adopt_blobs(&store, namespace, &labels, done)?;
        self.adopt_directories(&store, namespace, &labels, done)?;
        hold::everything(&store, suffix, done)?;
        drop(store);
        if path.exists() {
            // A second name: there is a database at any time, or the next repair would find none.
            let old = self.path.join(format!("{DATABASE}.damaged-{suffix}"));
            fs::hard_link(&path, &old).map_err(Error::file("link", &path))?;
            done.push(format!("moved the database to {}", old.display()));
        }
        fs::rename(&new, &path).map_err(Error::file("rename", &new))?;
        File::open(&self.path)
            .and_then(|folder| folder.sync_all())
            .map_err(Error::file("sync", &self.path))?;
        done.push("made a new database".to_owned());
        Ok(())
    }

    /// Gives each good blob without a record one.
    pub(super) fn adopt_blobs(
        &self,
        store: &metadata::Store,
        namespace: &Namespace,
        labels: &Labels,
        done: &mut Vec<String>,
    ) -> Result<(), Error> {
        if !self.has_blobs {
            return Ok(());
        }
        let mut known = BTreeSet::new();
        store.read(|view| {
            metadata::each(view, &mut |_, object| {
                if let metadata::Object::Content(info) = object {
                    known.insert(info.digest.to_string());
                }
                Ok(())
            })
        })?;
        let scope = Scope::new(namespace.clone());
        let (mut count, mut lost) = (0, Vec::new());
        for algorithm in Algorithm::ALL {
            let folder = self.path.join("content/blobs").join(algorithm.name());
            for name in crate::content::names(&folder)? {
                let text = format!("{}:{name}", algorithm.name());
                let Ok(digest) = text.parse::<Digest>() else { continue };
                if known.contains(&text) {
                    continue;
                }
                let path = self.blob(&digest);
                match hash(&path, &digest) {
                    Ok(found) if found == digest => {}
                    Ok(_) => {
                        done.push(format!("left blob {digest}: its file has another digest"));
                        continue;
                    }
                    Err(error) => {
                        done.push(format!("left blob {digest}: {}", Chain(&error)));
                        continue;
                    }
                }
                let size = fs::metadata(&path).map_err(Error::file("stat", &path))?.len();
                lost.extend(document(&path, size).map(|kind| format!("{digest} ({kind})")));
                store.insert_content(&scope, &digest, size, labels.clone())?;
                count += 1;
            }
        }
        done.push(format!("made records of {count} blobs in namespace {:?}", namespace.as_str()));
        done.extend(lost.into_iter().map(|digest| {
            format!("the name of the image is lost, pull or tag it again: {digest}")
        }));
        Ok(())
    }

    /// Gives each directory without a record one.
    fn adopt_directories(
        &self,
        store: &metadata::Store,
        namespace: &Namespace,
        labels: &Labels,
        done: &mut Vec<String>,
    ) -> Result<(), Error> {
        let mut adopted = Vec::new();
        for snapshotter in crate::content::names(&self.path.join("snapshots"))? {
            let folder = self.directories(&snapshotter);
            let mut ids = BTreeSet::from_iter(numbered(&folder)?);
            for known in repair::ids_of(store, &snapshotter)? {
                ids.remove(&known);
            }
            for id in ids {
                adopted.push((snapshotter.clone(), id));
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        repair::change_snapshots(store, &mut |transaction| {
            let mut table = transaction.open_table(SNAPSHOTS).map_err(repair::database)?;
            for (snapshotter, id) in &adopted {
                let record = Record {
                    id: *id,
                    kind: Kind::Active,
                    parent: None,
                    labels: labels.clone(),
                    created: now,
                    updated: now,
                    usage: None,
                    unsynced: None,
                    external: None,
                };
                let name = format!("recovered-{id}");
                let key = (snapshotter.as_str(), namespace.as_str(), name.as_str());
                let value = record.encode()?;
                table.insert(key, value.as_slice()).map_err(repair::database)?;
            }
            Ok(())
        })?;
        if !adopted.is_empty() {
            store.write(|changes| metadata::ensure_namespace(changes, namespace))?;
        }
        for (snapshotter, id) in adopted {
            done.push(format!(
                "made snapshot {snapshotter}/{}/recovered-{id} of directory {id}",
                namespace.as_str()
            ));
        }
        Ok(())
    }
}

/// The labels of what was found without a record: it is not collected.
pub(super) fn recovered(suffix: &str) -> Labels {
    Labels::from([
        (gc::ROOT.to_owned(), jiff::Timestamp::now().to_string()),
        (RECOVERED.to_owned(), suffix.to_owned()),
    ])
}

/// Takes over the rows of the old database that can be read.
fn salvage(old: &Path, store: &metadata::Store, done: &mut Vec<String>) -> Result<(), Error> {
    let pages = match Pages::open(old) {
        Ok(Some(pages)) => pages,
        Ok(None) => {
            done.push("took over nothing of the old database: it has no header".to_owned());
            return Ok(());
        }
        Err(error) => {
            done.push(format!("took over nothing of the old database: {error}"));
            return Ok(());
        }
    };
    for table in Table::ALL {
        let found = pages.table(table.name(), |key, value| match table {
            Table::Namespaces => metadata::namespace_of(key, value).is_ok(),
            _ => metadata::object(table, key, value).is_ok(),
        });
        let rows = merged(found, table.name(), done);
        store.write(|changes| {
            for (key, value) in rows {
                changes.put(table, &key, value);
            }
            Ok(())
        })?;
    }
    let mut found = pages.table(SNAPSHOTS.name(), |key, value| directory(key, value).is_some());
    // A commit gives a snapshot another name. Its directory is that of the last one.
    let last: BTreeSet<_> =
        found.rows.iter().filter_map(|(key, value)| directory(key, value)).collect();
    found.earlier.retain(|key, value| directory(key, value).is_some_and(|it| !last.contains(&it)));
    let rows = merged(found, SNAPSHOTS.name(), done);
    repair::change_snapshots(store, &mut |transaction| {
        let mut table = transaction.open_table(SNAPSHOTS).map_err(repair::database)?;
        for (key, value) in &rows {
            if let Some([snapshotter, namespace, name]) = three(key) {
                let key = (snapshotter, namespace, name);
                table.insert(key, value.as_slice()).map_err(repair::database)?;
            }
        }
        drop(table);
        repair::relink_all(transaction)
    })
}

/// The directory of the snapshot of a row, if that is good: its snapshotter and its number.
fn directory(key: &[u8], value: &[u8]) -> Option<(String, u64)> {
    let [snapshotter, ..] = three(key)?;
    Some((snapshotter.to_owned(), Record::decode(value).ok()?.id))
}

/// The rows of a table, of both commits; what is lost is told.
fn merged(found: Rows, table: &str, done: &mut Vec<String>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let Rows { mut rows, mut earlier, meaningless, lost, len } = found;
    let stand_in = earlier.len();
    rows.append(&mut earlier);
    if !rows.is_empty() {
        done.push(format!("took over {} rows of table {table}", rows.len()));
    }
    if stand_in > 0 {
        done.push(format!("of table {table}, {stand_in} rows are those of the commit before"));
    }
    if meaningless > 0 {
        done.push(format!("lost {meaningless} rows of table {table} that mean nothing"));
    }
    if lost > 0 {
        done.push(format!("lost what was on {lost} pages of table {table}"));
    }
    let all = rows.len() + meaningless;
    if len > all {
        done.push(format!("lost {} rows of table {table}", len - all));
    }
    rows
}

/// The media type of an index or a manifest, if the blob is one.
fn document(path: &Path, size: u64) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Document {
        media_type: Option<String>,
        manifests: Option<serde_json::Value>,
        layers: Option<serde_json::Value>,
    }
    if size > DOCUMENT_LEN_MAX {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    let document: Document = serde_json::from_slice(&bytes).ok()?;
    let kind = match (document.manifests, document.layers) {
        (Some(_), _) => "an index",
        (None, Some(_)) => "a manifest",
        (None, None) => return None,
    };
    Some(document.media_type.unwrap_or_else(|| kind.to_owned()))
}
