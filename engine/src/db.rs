//! Looks at the store of a root that no daemon uses, and mends it: `gantryd db`.
//!
//! [`check`](Root::check) changes nothing, not even what opening a database changes. It looks at
//! the pages, at each record, and at what records say of each other, of blobs and of snapshots'
//! directories. What a crash may leave and a daemon mends by itself is no problem: blobs and
//! directories without a record, snapshots that were not on disk when the machine stopped.
//!
//! Each [`Problem`] comes with what would be done about it, and [`repair`](Root::repair) does that,
//! after it made a copy of the database. It deletes no file: what no record tells of any more is
//! put aside in a folder of its own. A database that cannot be read, or that the library panics on, is put aside
//! too, and [made anew](rebuild) of what [can be read](pages) of it.
//!
//! [`dump`](Root::dump) writes the records as text.

mod check;
mod commits;
mod dump;
mod hold;
mod json;
mod outside;
mod pages;
mod panics;
mod probe;
mod rebuild;
mod references;
mod repair;
mod scratch;
mod snapshots;

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs::{self, File},
    path::{Path, PathBuf},
};

use serde::Serialize;

pub use self::{panics::end_on_damage, probe::probe, repair::Repaired};
use crate::{digest::Digest, error::Error, lock::lock, metadata::Table, namespace::Namespace};

/// The name of the database below a root.
pub const DATABASE: &str = "metadata.redb";

/// The root of a daemon, which none uses while this exists.
pub struct Root {
    path: PathBuf,
    /// Whether blobs are files below it, and not another program's.
    has_blobs: bool,
    /// The program that looks first whether the library panics on the database; see [`probe()`].
    prober: Option<PathBuf>,
    _lock: File,
}

/// What a check has found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What was noticed that is no problem.
    pub notes: Vec<String>,
    /// How many rows each table has that could be read.
    pub rows: BTreeMap<String, u64>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The table, or what else it is about.
    pub table: String,
    /// The names that make the key, with slashes between them; empty for all.
    pub key: String,
    /// The field, or empty for the whole.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
    #[serde(skip)]
    remedy: Remedy,
}

/// What is to be done about a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Remedy {
    /// The database is to be made anew.
    Rebuild,
    /// Opening it for writing is enough, or making what is missing.
    Open,
    Remove(Table, Vec<u8>),
    MakeNamespace(Namespace),
    /// The blob's file is no good.
    PutBlobAside(Digest),
    /// The record is no good; its directory has this number, if that is known.
    RemoveSnapshot(Place, Option<u64>),
    /// The snapshot's files are lost; a daemon unpacks them again.
    Suspect(Place),
    /// The table of children is to be made anew.
    Relink,
}

/// The key of a snapshot's record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    snapshotter: String,
    namespace: String,
    name: String,
}

impl Root {
    /// Takes the root at `path`.
    ///
    /// # Errors
    ///
    /// - `Unavailable`: a daemon uses it.
    /// - `File`: there is none.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { path: path.to_owned(), has_blobs: true, prober: None, _lock: lock(path)? })
    }

    /// The same, but `program`, which is this one, [probes](probe()) the database in a process of its own first: to
    /// panic ends that process and not this one.
    #[must_use]
    pub fn probed_by(self, program: PathBuf) -> Self {
        Self { prober: Some(program), ..self }
    }

    /// The same, but the bytes of its blobs are kept by another program, which is not asked.
    #[must_use]
    pub fn without_blobs(self) -> Self {
        Self { has_blobs: false, ..self }
    }

    fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let blobs = self.path.join("content/blobs");
        blobs.join(digest.algorithm().name()).join(digest.hex())
    }

    /// The folder of numbered directories of a snapshotter.
    fn directories(&self, snapshotter: &str) -> PathBuf {
        self.path.join("snapshots").join(snapshotter).join("snapshots")
    }
}

impl Problem {
    fn new(
        table: &str,
        key: &str,
        field: &str,
        problem: impl Into<String>,
        remedy: Remedy,
    ) -> Self {
        let problem = problem.into();
        Self {
            table: table.to_owned(),
            key: key.to_owned(),
            field: field.to_owned(),
            problem,
            remedy,
        }
    }
}

/// One line: what it is about, a colon, and what is wrong.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.table)?;
        for part in [&self.key, &self.field] {
            if !part.is_empty() {
                f.write_str(" ")?;
                write_line(f, part)?;
            }
        }
        f.write_str(": ")?;
        write_line(f, &self.problem)
    }
}

/// Writes text of which nobody knows what is in it so that it stays on its line.
fn write_line(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|char| match char.is_control() {
        true => write!(f, "{}", char.escape_default()),
        false => f.write_char(char),
    })
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.snapshotter, self.namespace, self.name)
    }
}

/// A key's names with slashes between them.
fn show_key(key: &[u8]) -> String {
    key.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect::<Vec<_>>().join("/")
}

/// The numbered directories in `folder`; of one that does not exist, none.
fn numbered(folder: &Path) -> Result<Vec<u64>, Error> {
    let names = crate::content::names(folder)?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Refuses a root whose database is gone while what it told of is there: an empty one in its place
/// would have everything collected as garbage.
///
/// # Errors
///
/// - `LostDatabase`.
/// - `File`.
pub fn refuse_lost(root: &Path) -> Result<(), Error> {
    let path = root.join(DATABASE);
    match fs::metadata(&path) {
        Ok(metadata) if metadata.len() > 0 => return Ok(()),
        Ok(_) => {
            let source = "it is an empty file".into();
            return Err(Error::DamagedDatabase { path, source });
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::file("look at", path)(error)),
    }
    for algorithm in crate::digest::Algorithm::ALL {
        let folder = root.join("content/blobs").join(algorithm.name());
        if !crate::content::names(&folder)?.is_empty() {
            return Err(Error::LostDatabase { path, beside: "content" });
        }
    }
    for snapshotter in crate::content::names(&root.join("snapshots"))? {
        if !numbered(&root.join("snapshots").join(snapshotter).join("snapshots"))?.is_empty() {
            return Err(Error::LostDatabase { path, beside: "a snapshot" });
        }
    }
    Ok(())
}
