//! Looks at pages, tables and records.

use std::{
    collections::HashSet,
    fs::File,
    io::{ErrorKind, Read},
    path::Path,
};

use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, TableError};

use super::{
    Problem, Remedy, Report, Root, outside,
    references::{Facts, Holder},
    scratch, show_key, snapshots,
};
use crate::{
    digest::{Digest, Hasher},
    error::Error,
    metadata::{self, META, SCHEMA, Table, is_damage},
};

/// How much of a blob is read at a time, in bytes.
const CHUNK_LEN: usize = 1 << 20;

/// What is told when the library takes another commit than the last one.
const WENT_BACK: &str = "the last commit of the database is not whole, as after a stop of the machine in the \
                         middle of it: the one before it is used";

/// What problems of the file as such are about.
const FILE: &str = super::DATABASE;

impl Root {
    /// Looks for what is wrong; with `deep` also at each blob's bytes. Changes nothing.
    ///
    /// # Errors
    ///
    /// - `NewerSchema`: a newer program has written the database.
    /// - `File`, `Database`: something cannot be read, which is the disk's fault.
    pub fn check(&self, deep: bool) -> Result<Report, Error> {
        let mut report = Report::default();
        match self.look(deep, &mut report) {
            Ok(()) => {}
            Err(Error::Database { source, .. }) if tells_of_damage(source.as_ref()) => {
                let problem = source.to_string();
                report.problems.push(Problem::new(FILE, "", "", problem, Remedy::Rebuild));
            }
            Err(error) => return Err(error),
        }
        Ok(report)
    }

    fn look(&self, deep: bool, report: &mut Report) -> Result<(), Error> {
        let Some(database) = self.open_checked(report)? else { return Ok(()) };
        let transaction = database.begin_read().map_err(Error::database("begin"))?;
        check_schema(&transaction, &self.database(), report)?;
        let mut facts = Facts::default();
        for table in Table::ALL {
            check_table(&transaction, table, &mut facts, report)?;
        }
        facts.check(report);
        for (digest, holders) in facts.blobs().filter(|_| self.has_blobs) {
            self.check_blob(digest, holders, deep, report)?;
        }
        let blobs: HashSet<&Digest> = facts.blobs().map(|(digest, _)| digest).collect();
        outside::note(&transaction, |digest| blobs.contains(digest), report)?;
        snapshots::check(self, &transaction, facts.namespaces(), report)
    }

    /// Opens the database if its pages are good.
    fn open_checked(&self, report: &mut Report) -> Result<Option<Database>, Error> {
        let Report { problems, notes, .. } = report;
        let mut rebuild = |problem: String| {
            problems.push(Problem::new(FILE, "", "", problem, Remedy::Rebuild));
        };
        if let Err(error) = super::refuse_lost(&self.path)
            && matches!(error, Error::LostDatabase { .. })
        {
            rebuild("it is missing".to_owned());
            return Ok(None);
        }
        if !self.database().exists() {
            // A root that was never used.
            return Ok(None);
        }
        if let Some(problem) = self.probe()? {
            rebuild(problem);
            return Ok(None);
        }
        let mut database = match scratch::open(&self.database()) {
            Ok((database, went_back)) => {
                if went_back {
                    notes.push(WENT_BACK.to_owned());
                }
                database
            }
            Err(error) => {
                rebuild(damage(error, "open")?);
                return Ok(None);
            }
        };
        match database.check_integrity() {
            Ok(true) => {}
            Ok(false) => problems.push(Problem::new(
                FILE,
                "",
                "pages",
                "not all are accounted for",
                Remedy::Open,
            )),
            Err(error) => {
                rebuild(damage(error, "check")?);
                return Ok(None);
            }
        }
        Ok(Some(database))
    }

    fn check_blob(
        &self,
        digest: &Digest,
        holders: &[Holder],
        deep: bool,
        report: &mut Report,
    ) -> Result<(), Error> {
        let path = self.blob(digest);
        let found = match path.symlink_metadata() {
            Ok(found) => Some(found).filter(std::fs::Metadata::is_file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::file("look at", path)(error)),
        };
        let mut add = |key: &[u8], field: &str, problem: String, remedy| {
            let table = Table::Content.name();
            report.problems.push(Problem::new(table, &show_key(key), field, problem, remedy));
        };
        let Some(found) = found else {
            for (key, _) in holders {
                let remedy = Remedy::Remove(Table::Content, key.clone());
                add(key, "digest", "its file is missing".to_owned(), remedy);
            }
            return Ok(());
        };
        // The digest tells which of two sizes is right.
        let wrong = holders.iter().any(|(_, size)| *size != found.len());
        if (deep || wrong) && hash(&path, digest)? != *digest {
            for (key, _) in holders {
                let problem = format!("its file of {} bytes has another", found.len());
                add(key, "digest", problem, Remedy::PutBlobAside(digest.clone()));
            }
            return Ok(());
        }
        for (key, size) in holders {
            if *size != found.len() {
                let problem = format!("is {size}, but its file has {} bytes", found.len());
                add(key, "size", problem, Remedy::Remove(Table::Content, key.clone()));
            }
        }
        Ok(())
    }
}

/// What is wrong with the database, or the error, if that is about something else.
fn damage(error: DatabaseError, operation: &'static str) -> Result<String, Error> {
    let error = redb::Error::from(error);
    if is_damage(&error) { Ok(error.to_string()) } else { Err(Error::database(operation)(error)) }
}

/// Whether the cause of a failed read is what the file holds.
fn tells_of_damage(source: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    use redb::StorageError as E;
    match source.downcast_ref::<E>() {
        Some(E::Corrupted(_)) => true,
        Some(E::Io(error)) => {
            matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
        }
        _ => false,
    }
}

fn check_schema(
    transaction: &ReadTransaction,
    path: &Path,
    report: &mut Report,
) -> Result<(), Error> {
    let mut add = |problem: String, remedy| {
        report.problems.push(Problem::new("meta", "schema", "", problem, remedy));
    };
    let table = match transaction.open_table(META) {
        Ok(table) => table,
        Err(TableError::Storage(error)) => return Err(Error::database("open table")(error)),
        Err(error) => {
            add(error.to_string(), Remedy::Rebuild);
            return Ok(());
        }
    };
    let found = table.get("schema").map_err(Error::database("read"))?;
    match found.map(|found| found.value()) {
        None => add("is missing".to_owned(), Remedy::Open),
        Some(0) => add("is 0".to_owned(), Remedy::Rebuild),
        Some(found) if found > SCHEMA => {
            return Err(Error::NewerSchema { path: path.to_owned(), found, known: SCHEMA });
        }
        Some(_) => {}
    }
    Ok(())
}

fn check_table(
    transaction: &ReadTransaction,
    table: Table,
    facts: &mut Facts,
    report: &mut Report,
) -> Result<(), Error> {
    let name = table.name();
    let opened = match transaction.open_table(table.definition()) {
        Ok(opened) => opened,
        Err(TableError::Storage(error)) => return Err(Error::database("open table")(error)),
        Err(TableError::TableDoesNotExist(_)) => {
            report.problems.push(Problem::new(name, "", "", "the table is missing", Remedy::Open));
            return Ok(());
        }
        Err(error) => {
            report.problems.push(Problem::new(name, "", "", error.to_string(), Remedy::Rebuild));
            return Ok(());
        }
    };
    let mut count = 0;
    for row in opened.iter().map_err(Error::database("read"))? {
        let (key, value) = row.map_err(Error::database("read"))?;
        count += 1;
        let (key, value) = (key.value(), value.value());
        let noted = if table == Table::Namespaces {
            metadata::namespace_of(key, value).map(|namespace| facts.add_namespace(namespace.name))
        } else {
            let object = metadata::object(table, key, value);
            object.map(|(namespace, object)| facts.add(table, key, namespace, object))
        };
        if let Err(error) = noted {
            let (field, problem) = explain(&error);
            let remedy = Remedy::Remove(table, key.to_owned());
            report.problems.push(Problem::new(name, &show_key(key), &field, problem, remedy));
        }
    }
    report.rows.insert(name.to_owned(), count);
    Ok(())
}

/// The field of which a decoder complains, and its complaint.
fn explain(error: &Error) -> (String, String) {
    let text = match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => return ("key".to_owned(), error.to_string()),
    };
    // prost's: "failed to decode Protobuf message: Record.labels: unexpected end".
    let plain = text.strip_prefix("failed to decode Protobuf message: ").unwrap_or(&text);
    match plain.strip_prefix("Record.").and_then(|rest| rest.split_once(": ")) {
        Some((field, problem)) => (field.to_owned(), problem.to_owned()),
        None => (String::new(), plain.to_owned()),
    }
}

/// The digest of a file, by the algorithm of `like`.
pub(super) fn hash(path: &Path, like: &Digest) -> Result<Digest, Error> {
    let mut file = File::open(path).map_err(Error::file("open", path))?;
    let mut hasher = Hasher::new(like.algorithm());
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        match file.read(&mut chunk).map_err(Error::file("read", path))? {
            0 => return Ok(hasher.finish()),
            len => hasher.update(&chunk[..len]),
        }
    }
}
