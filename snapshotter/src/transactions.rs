//! The database, as a snapshotter sees it.

use redb::{ReadTransaction, ReadableDatabase, WriteTransaction};

use crate::Error;

/// A change to the database, for [`Transactions::write`].
pub type Change<'a> = dyn FnMut(&WriteTransaction) -> Result<(), Error> + Send + 'a;

/// Gives access to a database that may hold more than snapshots, and in which others may write.
///
/// A trait, because the engine commits the changes of many callers with one flush (group
/// commit), while a program of its own has no other callers.
pub trait Transactions: Send + Sync {
    /// A view of the database as of the last commit, which does not change and holds nobody up.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    fn read(&self) -> Result<ReadTransaction, Error>;

    /// Applies `change` atomically, and returns when it is durable.
    ///
    /// `change` is not concurrent with any other change. It may share its commit with others, so
    /// one that fails must have written nothing: check first, then write. It may be called again
    /// when the commit that it was part of fails.
    ///
    /// # Errors
    ///
    /// That of `change`, or [`Error::Database`].
    fn write(&self, change: &mut Change<'_>) -> Result<(), Error>;
}

/// One commit per change.
impl Transactions for redb::Database {
    fn read(&self) -> Result<ReadTransaction, Error> {
        self.begin_read().map_err(Error::database)
    }

    fn write(&self, change: &mut Change<'_>) -> Result<(), Error> {
        let transaction = self.begin_write().map_err(Error::database)?;
        change(&transaction)?;
        transaction.commit().map_err(Error::database)
    }
}
