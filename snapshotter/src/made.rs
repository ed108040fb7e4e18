//! What this database has had another program make, which is all that it may have removed there.
//!
//! # Why it exists
//!
//! A program that keeps blobs or snapshots for us has them in one place with those of whoever else it
//! serves, and what it keeps outlives our database. That a thing has no record here says nothing of whose it
//! is: the database may be new, in the place of one that was lost, be an older one that was put back, have lost
//! rows in a repair, or be one of two that use the program. So what is made there has a row here, from
//! before it is made until it is gone; what has none is left alone, for good.
//!
//! # Schema
//!
//! | table     | key                                              | value                               |
//! |-----------|--------------------------------------------------|-------------------------------------|
//! | `outside` | `(plugin, name)`, two `&str`                     | empty                               |
//! |           | `(plugin, "")`                                   | what the database calls itself there, a random UUID |
//!
//! A row is on disk before the program is asked, so a crash, or an answer that comes too late, leaves a row of
//! what is perhaps not there; never a thing of ours without one. Rows of what was found there, and not
//! made, are none.

use std::{fs, sync::Arc};

use redb::{ReadableTable, TableDefinition, TableError, WriteTransaction};

use crate::{Error, Transactions};

/// What was made at other programs.
pub const OUTSIDE: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("outside");

/// Makes names that nobody else makes.
const RANDOM: &str = "/proc/sys/kernel/random/uuid";

/// What this database has had one program make.
pub struct Made {
    transactions: Arc<dyn Transactions>,
    plugin: Box<str>,
    own: String,
}

impl Made {
    /// Opens the rows of the program `plugin`; it is not asked for anything.
    ///
    /// # Errors
    ///
    /// - [`Error::Database`].
    /// - [`Error::File`]: there are no random numbers.
    pub fn open(transactions: Arc<dyn Transactions>, plugin: &str) -> Result<Self, Error> {
        let plugin: Box<str> = plugin.into();
        let found = match transactions.read()?.open_table(OUTSIDE) {
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(Error::database(error)),
            Ok(table) => {
                let own = table.get((&*plugin, "")).map_err(Error::database)?;
                own.map(|own| String::from_utf8_lossy(own.value()).into_owned())
            }
        };
        if let Some(own) = found {
            return Ok(Self { transactions, plugin, own });
        }
        let own = fs::read_to_string(RANDOM).map_err(|source| Error::File {
            operation: "read",
            path: RANDOM.into(),
            source,
        })?;
        let own = own.trim().to_owned();
        transactions.write(&mut |transaction| {
            let mut table = transaction.open_table(OUTSIDE).map_err(Error::database)?;
            table.insert((&*plugin, ""), own.as_bytes()).map_err(Error::database)?;
            Ok(())
        })?;
        Ok(Self { transactions, plugin, own })
    }

    /// What this database calls itself there.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// Notes what is about to be made. On disk when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn enter(&self, names: &[&str]) -> Result<(), Error> {
        self.write(names, |table, key| table.insert(key, [].as_slice()).map(drop))
    }

    /// Forgets what is gone, or was not made after all.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn forget(&self, names: &[&str]) -> Result<(), Error> {
        self.write(names, |table, key| table.remove(key).map(drop))
    }

    /// Everything that was made and is not known to be gone.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn all(&self) -> Result<Vec<String>, Error> {
        let view = self.transactions.read()?;
        let table = view.open_table(OUTSIDE).map_err(Error::database)?;
        let mut names = Vec::new();
        for row in table.range((&*self.plugin, "")..).map_err(Error::database)? {
            let (key, _) = row.map_err(Error::database)?;
            let (plugin, name) = key.value();
            if plugin != &*self.plugin {
                break;
            }
            if !name.is_empty() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Whether that was made, and is not known to be gone.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn has(&self, name: &str) -> Result<bool, Error> {
        let view = self.transactions.read()?;
        let table = view.open_table(OUTSIDE).map_err(Error::database)?;
        Ok(table.get((&*self.plugin, name)).map_err(Error::database)?.is_some())
    }

    fn write(
        &self,
        names: &[&str],
        act: impl Fn(&mut Rows<'_>, (&str, &str)) -> Result<(), redb::StorageError> + Send + Sync,
    ) -> Result<(), Error> {
        if names.is_empty() {
            return Ok(());
        }
        self.transactions.write(&mut |transaction| {
            let mut table = transaction.open_table(OUTSIDE).map_err(Error::database)?;
            for name in names {
                act(&mut table, (&self.plugin, name)).map_err(Error::database)?;
            }
            Ok(())
        })
    }
}

type Rows<'t> = redb::Table<'t, (&'static str, &'static str), &'static [u8]>;

/// Forgets all of it that `is_known` does not vouch for, by plugin and name: whoever has lost records does not know
/// any more whether what they told of is somebody's. What databases call themselves stays.
///
/// # Errors
///
/// [`Error::Database`].
pub fn disown(
    transaction: &WriteTransaction,
    mut is_known: impl FnMut(&str, &str) -> bool,
) -> Result<(), Error> {
    let mut table = transaction.open_table(OUTSIDE).map_err(Error::database)?;
    let mut gone = Vec::new();
    for row in table.iter().map_err(Error::database)? {
        let (key, _) = row.map_err(Error::database)?;
        let (plugin, name) = key.value();
        if !name.is_empty() && !is_known(plugin, name) {
            gone.push((plugin.to_owned(), name.to_owned()));
        }
    }
    for (plugin, name) in gone {
        table.remove((plugin.as_str(), name.as_str())).map_err(Error::database)?;
    }
    Ok(())
}
