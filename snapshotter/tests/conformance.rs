//! The conformance suite over the real kernel. Needs root.

use std::{path::Path, sync::Arc};

use snapshotter::{Copies, Layout, OverlayOptions, Snapshotter, Store, Transactions, testsuite};

fn open<L: Layout + 'static>(root: &Path, layout: L) -> Box<dyn Snapshotter> {
    let database = redb::Database::create(root.join("database")).expect("scratch");
    let database: Arc<dyn Transactions> = Arc::new(database);
    Box::new(Store::open(root, database, layout).expect("opens"))
}

#[test]
fn overlay() {
    let scratch = tempfile::tempdir().unwrap();
    testsuite::run(scratch.path(), &|root| open(root, OverlayOptions::default()));
}

#[test]
fn overlay_with_late_removal() {
    let scratch = tempfile::tempdir().unwrap();
    let options = OverlayOptions { async_remove: true, ..OverlayOptions::default() };
    testsuite::run(scratch.path(), &|root| open(root, options.clone()));
}

#[test]
fn native() {
    let scratch = tempfile::tempdir().unwrap();
    testsuite::run(scratch.path(), &|root| open(root, Copies));
}
