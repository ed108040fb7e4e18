//! What every [`Snapshotter`] must do, as a test.
//!
//! Needs root, because it mounts what the snapshotter says and looks at it, inside the scratch
//! directory. Panics at the first difference. The behaviours are those of containerd's
//! `core/snapshots/testsuite`, and this crate's own rules.

mod bench;
mod content;
mod records;

use std::path::Path;

use crate::Snapshotter;

use bench::Bench;

/// Makes, or opens again, the snapshotter that lives in the given directory.
pub type Open<'a> = dyn Fn(&Path) -> Box<dyn Snapshotter> + 'a;

type Case = (&'static str, fn(&mut Bench<'_>));

/// Runs every case, each in a directory of its own below `scratch`.
///
/// # Panics
///
/// With the case and what is wrong.
pub fn run(scratch: &Path, open: &Open<'_>) {
    assert!(rustix::process::geteuid().is_root(), "mounting snapshots needs root");
    for (name, case) in records::CASES.iter().chain(content::CASES) {
        let mut bench = Bench::new(name, &scratch.join(name.replace(' ', "-")), open);
        case(&mut bench);
    }
}
