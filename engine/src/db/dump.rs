//! Writes all records as text.

use std::io::Write;

use redb::{ReadableDatabase, ReadableTable};
use serde_json::{Value, json};
use snapshotter::records::{CHILDREN, Record, SNAPSHOTS};

use super::{Root, json, scratch, show_key, snapshots::place};
use crate::{
    error::Error,
    metadata::{self, META, Table},
};

impl Root {
    /// Writes a line of JSON for each row: `table`, `key`, and `record`, or `error` and `bytes` for
    /// one that cannot be read. Changes nothing.
    ///
    /// # Errors
    ///
    /// - `Database`: it cannot be opened, or a page cannot be read.
    /// - `File`: `to` takes no more.
    pub fn dump(&self, to: &mut dyn Write) -> Result<(), Error> {
        let (database, _) = scratch::open(&self.database()).map_err(Error::database("open"))?;
        let transaction = database.begin_read().map_err(Error::database("begin"))?;
        let mut put = |line: Value| {
            writeln!(to, "{line}").map_err(Error::file("write", "the standard output"))
        };
        let read = || Error::database("read");
        if let Ok(table) = transaction.open_table(META) {
            for row in table.iter().map_err(read())? {
                let (key, value) = row.map_err(read())?;
                put(json!({ "table": "meta", "key": key.value(), "record": value.value() }))?;
            }
        }
        for table in Table::ALL {
            let Ok(opened) = transaction.open_table(table.definition()) else { continue };
            for row in opened.iter().map_err(read())? {
                let (key, value) = row.map_err(read())?;
                put(line(table, key.value(), value.value()))?;
            }
        }
        if let Ok(table) = transaction.open_table(SNAPSHOTS) {
            for row in table.iter().map_err(read())? {
                let (key, value) = row.map_err(read())?;
                let key = place(key.value()).to_string();
                put(match Record::decode(value.value()) {
                    Ok(record) => json!({ "table": "snapshots", "key": key, "record": record }),
                    Err(error) => broken("snapshots", &key, &error, value.value()),
                })?;
            }
        }
        if let Ok(table) = transaction.open_table(CHILDREN) {
            for row in table.iter().map_err(read())? {
                let (key, value) = row.map_err(read())?;
                let (snapshotter, parent, child) = key.value();
                let key = format!("{snapshotter}/{parent}/{child}");
                put(json!({ "table": "snapshot_children", "key": key, "record": value.value() }))?;
            }
        }
        Ok(())
    }
}

fn line(table: Table, key: &[u8], value: &[u8]) -> Value {
    let name = table.name();
    let shown = show_key(key);
    let record = match table {
        Table::Namespaces => {
            metadata::namespace_of(key, value).map(|it| json!({ "labels": it.labels }))
        }
        _ => metadata::object(table, key, value).map(|(_, object)| json::object(&object)),
    };
    match record {
        Ok(record) => json!({ "table": name, "key": shown, "record": record }),
        Err(error) => broken(name, &shown, &error, value),
    }
}

fn broken(
    table: &str,
    key: &str,
    error: &(dyn std::error::Error + 'static),
    bytes: &[u8],
) -> Value {
    let error = sys::error::Chain(error).to_string();
    json!({ "table": table, "key": key, "error": error, "bytes": json::hex(bytes) })
}
