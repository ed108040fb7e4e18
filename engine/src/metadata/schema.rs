//! Which form the tables have, and how an older one becomes the present.
//!
//! `docs/formats.md` says what changed from one schema to the next. A database is migrated when it
//! is opened, in the transaction that notes the new number, so that it is of one schema at any
//! time. One of a newer program is refused, and nothing is written to it.

use std::path::Path;

use redb::{
    Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction,
};

use super::rows::Table;
use crate::error::Error;

/// The schema that this program writes.
pub(crate) const SCHEMA: u64 = 1;

/// What is noted of the database itself.
pub(crate) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Whether [`prepare`] has nothing to do, so that a start need not wait for the disk. What cannot be
/// read is left for that to tell.
pub(super) fn is_prepared(database: &Database) -> Result<bool, redb::Error> {
    let view = database.begin_read()?;
    let found = view.open_table(META)?.get("schema")?.map(|found| found.value());
    for table in Table::ALL {
        view.open_table(table.definition())?;
    }
    Ok(found == Some(SCHEMA))
}

/// Brings the tables from one schema to the next.
type Migration = fn(&WriteTransaction) -> Result<(), Error>;

/// The first makes schema 2 of schema 1.
const MIGRATIONS: [Migration; SCHEMA as usize - 1] = [];

/// Makes the tables, so that readers find them, and brings an older schema up to date.
///
/// # Errors
///
/// - `NewerSchema`: a newer program has written the database.
/// - `DamagedDatabase`: it was not written by this program, or what it was is lost.
/// - `Database`.
pub(super) fn prepare(transaction: &WriteTransaction, path: &Path) -> Result<(), Error> {
    migrate(transaction, path, &MIGRATIONS)?;
    super::rows::make_tables(transaction)
}

fn migrate(
    transaction: &WriteTransaction,
    path: &Path,
    migrations: &[Migration],
) -> Result<(), Error> {
    let known = migrations.len() as u64 + 1;
    let damaged = |source: Box<dyn std::error::Error + Send + Sync>| Error::DamagedDatabase {
        path: path.to_owned(),
        source,
    };
    let mut meta = match transaction.open_table(META) {
        Err(TableError::Storage(error)) => return Err(Error::database("open table")(error)),
        Err(error) => return Err(damaged(error.into())),
        Ok(table) => table,
    };
    let found = meta.get("schema").map_err(Error::database("read"))?.map(|found| found.value());
    match found {
        // A database that was just made.
        None => {}
        Some(0) => return Err(damaged("there is no schema 0".into())),
        Some(found) if found > known => {
            return Err(Error::NewerSchema { path: path.to_owned(), found, known });
        }
        Some(found) => {
            let done = usize::try_from(found - 1).expect("below the length of an array");
            for (migration, from) in migrations[done..].iter().zip(found..) {
                tracing::info!(from, to = from + 1, "migrating the metadata database");
                migration(transaction)?;
            }
        }
    }
    if found != Some(known) {
        meta.insert("schema", known).map_err(Error::database("write"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: TableDefinition<'_, u64, ()> = TableDefinition::new("log");

    fn note(transaction: &WriteTransaction, step: u64) -> Result<(), Error> {
        let mut table = transaction.open_table(LOG).map_err(Error::database("open table"))?;
        table.insert(step, ()).map_err(Error::database("write"))?;
        Ok(())
    }

    const TWO: [Migration; 2] = [|it| note(it, 2), |it| note(it, 3)];

    /// A database with this schema, after an attempt to open it with two migrations: the steps
    /// that were taken, and the schema.
    fn attempt(found: Option<u64>) -> Result<(Vec<u64>, u64), Error> {
        let backend = redb::backends::InMemoryBackend::new();
        let database = Database::builder().create_with_backend(backend).expect("is made");
        let transaction = database.begin_write().expect("begins");
        if let Some(found) = found {
            transaction.open_table(META).expect("opens").insert("schema", found).expect("writes");
        }
        transaction.open_table(LOG).expect("opens");
        transaction.commit().expect("commits");
        let transaction = database.begin_write().expect("begins");
        migrate(&transaction, Path::new("m.redb"), &TWO)?;
        transaction.commit().expect("commits");
        let view = database.begin_read().expect("begins");
        let log = view.open_table(LOG).expect("opens");
        let steps = log.iter().expect("reads").map(|step| step.expect("reads").0.value()).collect();
        let meta = view.open_table(META).expect("opens");
        let schema = meta.get("schema").expect("reads").expect("is there").value();
        Ok((steps, schema))
    }

    #[test]
    fn only_what_is_prepared_need_not_be() {
        let backend = redb::backends::InMemoryBackend::new();
        let database = Database::builder().create_with_backend(backend).expect("is made");
        let is_prepared = || is_prepared(&database).unwrap_or(false);
        let change = |change: &dyn Fn(&WriteTransaction)| {
            let transaction = database.begin_write().expect("begins");
            change(&transaction);
            transaction.commit().expect("commits");
        };
        assert!(!is_prepared(), "new");
        change(&|it| prepare(it, Path::new("m.redb")).expect("prepares"));
        assert!(is_prepared(), "prepared");
        change(&|it| assert!(it.delete_table(Table::Leases.definition()).expect("deletes")));
        assert!(!is_prepared(), "without a table");
        change(&|it| prepare(it, Path::new("m.redb")).expect("prepares"));
        assert!(is_prepared(), "prepared again");
        change(&|it| {
            let mut meta = it.open_table(META).expect("opens");
            meta.insert("schema", SCHEMA + 1).expect("writes");
        });
        assert!(!is_prepared(), "of another schema");
    }

    #[test]
    fn each_step_is_taken_once() {
        let cases = [
            ("new", None, Ok((vec![], 3))),
            ("oldest", Some(1), Ok((vec![2, 3], 3))),
            ("older", Some(2), Ok((vec![3], 3))),
            ("present", Some(3), Ok((vec![], 3))),
            (
                "newer",
                Some(4),
                Err("metadata database m.redb has schema 4, this program reads up to 3"),
            ),
            (
                "none",
                Some(0),
                Err("metadata database m.redb is damaged; `gantryd db repair` saves what there is"),
            ),
        ];
        for (case, found, want) in cases {
            let got = attempt(found).map_err(|error| error.to_string());
            assert_eq!(got, want.map_err(str::to_owned), "{case}");
        }
    }
}
