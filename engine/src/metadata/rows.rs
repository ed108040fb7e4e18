//! Reading and changing rows.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
};

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use crate::error::Error;

/// A table of the database; keys and values are bytes whose meaning `docs/formats.md` documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "named after what they hold")]
pub enum Table {
    Namespaces,
    Images,
    Containers,
    Sandboxes,
    Leases,
    LeaseResources,
    Content,
}

impl Table {
    pub(crate) const ALL: [Self; 7] = [
        Self::Namespaces,
        Self::Images,
        Self::Containers,
        Self::Sandboxes,
        Self::Leases,
        Self::LeaseResources,
        Self::Content,
    ];

    /// Its name in the database.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Images => "images",
            Self::Containers => "containers",
            Self::Sandboxes => "sandboxes",
            Self::Leases => "leases",
            Self::LeaseResources => "lease_resources",
            Self::Content => "content",
        }
    }

    pub(crate) fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(self.name())
    }
}

/// What [`Rows::scan`] calls for each row.
pub type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> Result<(), Error> + 'v;

/// Access to rows, of a commit or of a change under way.
pub trait Rows {
    /// The value of the row `key`.
    ///
    /// # Errors
    ///
    /// `Database`.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Error>;

    /// Calls `visit` for every row whose key starts with `prefix`, in the order of keys.
    ///
    /// # Errors
    ///
    /// Those of `visit`, which end the scan; `Database`.
    fn scan(&self, table: Table, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), Error>;

    /// Whether there is a row whose key starts with `prefix`.
    ///
    /// # Errors
    ///
    /// `Database`.
    fn any(&self, table: Table, prefix: &[u8]) -> Result<bool, Error>;
}

/// The rows of one commit.
pub struct View(ReadTransaction);

impl View {
    pub(super) fn new(transaction: ReadTransaction) -> Self {
        Self(transaction)
    }
}

impl View {
    /// Calls `visit` for the rows whose keys start with `prefix` and come after the key `after`, in
    /// the order of keys, until it says that this is enough.
    ///
    /// # Errors
    ///
    /// Those of `visit`, which end the scan; `Database`.
    pub(super) fn scan_after(
        &self,
        table: Table,
        prefix: &[u8],
        after: &[u8],
        visit: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        let table = self.0.open_table(table.definition()).map_err(Error::database("open table"))?;
        scan(&table, (Bound::Excluded(after), Bound::Unbounded), prefix, visit)
    }
}

impl Rows for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let table = self.0.open_table(table.definition()).map_err(Error::database("open table"))?;
        value(&table, key)
    }

    fn scan(&self, table: Table, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), Error> {
        let table = self.0.open_table(table.definition()).map_err(Error::database("open table"))?;
        scan(&table, from(prefix), prefix, |key, value| {
            visit(key, value).map(ControlFlow::Continue)
        })
    }

    fn any(&self, table: Table, prefix: &[u8]) -> Result<bool, Error> {
        let table = self.0.open_table(table.definition()).map_err(Error::database("open table"))?;
        any(&table, prefix)
    }
}

/// Changes on top of a transaction, not part of it until they are applied.
pub struct Changes<'t> {
    transaction: &'t WriteTransaction,
    /// New values; nothing for removed rows.
    changed: BTreeMap<Table, BTreeMap<Vec<u8>, Option<Vec<u8>>>>,
}

impl<'t> Changes<'t> {
    pub(super) fn new(transaction: &'t WriteTransaction) -> Self {
        Self { transaction, changed: BTreeMap::new() }
    }

    /// Makes `value` the value of the row `key`.
    pub fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        self.changed.entry(table).or_default().insert(key.to_owned(), Some(value));
    }

    /// Removes the row `key`, if it is there.
    pub fn remove(&mut self, table: Table, key: &[u8]) {
        self.changed.entry(table).or_default().insert(key.to_owned(), None);
    }

    /// Removes the rows whose keys start with `prefix`.
    ///
    /// # Errors
    ///
    /// `Database`.
    pub fn remove_all(&mut self, table: Table, prefix: &[u8]) -> Result<(), Error> {
        let mut keys = Vec::new();
        self.scan(table, prefix, &mut |key, _| {
            keys.push(key.to_owned());
            Ok(())
        })?;
        keys.iter().for_each(|key| self.remove(table, key));
        Ok(())
    }

    pub(super) fn apply(self) -> Result<(), Error> {
        for (table, rows) in self.changed {
            let definition = table.definition();
            let mut table =
                self.transaction.open_table(definition).map_err(Error::database("open table"))?;
            for (key, value) in rows {
                match value {
                    Some(value) => table.insert(key.as_slice(), value.as_slice()),
                    None => table.remove(key.as_slice()),
                }
                .map_err(Error::database("write"))?;
            }
        }
        Ok(())
    }
}

impl Rows for Changes<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        if let Some(changed) = self.changed.get(&table).and_then(|rows| rows.get(key)) {
            return Ok(changed.clone());
        }
        let definition = table.definition();
        let table =
            self.transaction.open_table(definition).map_err(Error::database("open table"))?;
        value(&table, key)
    }

    fn scan(&self, table: Table, prefix: &[u8], visit: &mut Visit<'_>) -> Result<(), Error> {
        let mut rows = BTreeMap::new();
        {
            let definition = table.definition();
            let table =
                self.transaction.open_table(definition).map_err(Error::database("open table"))?;
            scan(&table, from(prefix), prefix, |key, value| {
                rows.insert(key.to_owned(), Some(value.to_owned()));
                Ok(ControlFlow::Continue(()))
            })?;
        }
        if let Some(changed) = self.changed.get(&table) {
            let range = (Bound::Included(prefix), Bound::Unbounded);
            let ours = changed.range::<[u8], _>(range);
            rows.extend(
                ours.take_while(|(key, _)| key.starts_with(prefix))
                    .map(|(key, value)| (key.clone(), value.clone())),
            );
        }
        let kept = rows.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        for (key, value) in kept {
            visit(key, value)?;
        }
        Ok(())
    }

    fn any(&self, table: Table, prefix: &[u8]) -> Result<bool, Error> {
        if self.changed.contains_key(&table) {
            let mut found = false;
            self.scan(table, prefix, &mut |_, _| {
                found = true;
                Ok(())
            })?;
            return Ok(found);
        }
        let definition = table.definition();
        let table =
            self.transaction.open_table(definition).map_err(Error::database("open table"))?;
        any(&table, prefix)
    }
}

/// Makes every table.
pub(super) fn make_tables(transaction: &WriteTransaction) -> Result<(), Error> {
    for table in Table::ALL {
        transaction.open_table(table.definition()).map_err(Error::database("open table"))?;
    }
    Ok(())
}

type Bytes = &'static [u8];

fn value(table: &impl ReadableTable<Bytes, Bytes>, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    let value = table.get(key).map_err(Error::database("read"))?;
    Ok(value.map(|value| value.value().to_owned()))
}

fn any(table: &impl ReadableTable<Bytes, Bytes>, prefix: &[u8]) -> Result<bool, Error> {
    let mut found = false;
    scan(table, from(prefix), prefix, |_, _| {
        found = true;
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

type Range<'k> = (Bound<&'k [u8]>, Bound<&'k [u8]>);

fn from(first: &[u8]) -> Range<'_> {
    (Bound::Included(first), Bound::Unbounded)
}

fn scan(
    table: &impl ReadableTable<Bytes, Bytes>,
    range: Range<'_>,
    prefix: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    for row in table.range::<&[u8]>(range).map_err(Error::database("read"))? {
        let (key, value) = row.map_err(Error::database("read"))?;
        if !key.value().starts_with(prefix) || visit(key.value(), value.value())?.is_break() {
            break;
        }
    }
    Ok(())
}
