//! Overlayfs whose calls a test holds in the middle.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use snapshotter::{Error, Key, Kind, Labels, Layout, Mount, OverlayOptions};

/// How long a call may take to come to its gate.
const DEADLINE: Duration = Duration::from_secs(60);

/// Shows like EROFS, and waits at the gates that there are, each once.
#[derive(Clone, Default)]
pub(crate) struct Gated {
    overlay: OverlayOptions,
    /// For whom something is shown.
    pub(crate) users: Arc<Mutex<BTreeSet<u64>>>,
    /// In the middle of showing.
    pub(crate) show: Gate,
    /// Before a directory is deleted.
    pub(crate) hide: Gate,
}

/// Where a call says that it is in the middle, and until when it stays there.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<Mutex<Option<Closed>>>);

/// How a call tells that it is there, and learns that it may go on.
type Closed = (mpsc::Sender<()>, mpsc::Receiver<()>);

/// The test's side of a gate.
pub(crate) struct Keeper {
    reached: mpsc::Receiver<()>,
    open: mpsc::Sender<()>,
}

impl Gate {
    /// Has the next call wait.
    pub(crate) fn close(&self) -> Keeper {
        let ((said, reached), (open, opened)) = (mpsc::channel(), mpsc::channel());
        *self.0.lock().expect("no panic") = Some((said, opened));
        Keeper { reached, open }
    }

    fn pass(&self) {
        let closed = self.0.lock().expect("no panic").take();
        if let Some((reached, opened)) = closed {
            reached.send(()).expect("the test waits");
            opened.recv().expect("the test opens it");
        }
    }
}

impl Keeper {
    /// Waits until a call is in the middle.
    pub(crate) fn reached(&self) {
        self.reached.recv_timeout(DEADLINE).expect("somebody comes to the gate");
    }

    /// Lets it go on.
    pub(crate) fn open(&self) {
        self.open.send(()).expect("somebody waits");
    }
}

impl Layout for Gated {
    const NAME: &'static str = "gated";
    const REBASE: bool = true;
    const SHOWS: bool = true;

    fn check(&self, key: &Key, labels: &Labels) -> Result<(), Error> {
        self.overlay.check(key, labels)
    }

    fn fill(
        &self,
        directory: &Path,
        kind: Kind,
        parent: Option<&Path>,
        labels: &Labels,
    ) -> Result<(), Error> {
        self.overlay.fill(directory, kind, parent, labels)
    }

    fn mounts(
        &self,
        kind: Kind,
        directory: &Path,
        parents: &[PathBuf],
        labels: &Labels,
    ) -> Vec<Mount> {
        self.overlay.mounts(kind, directory, parents, labels)
    }

    fn show(&self, _directory: &Path, user: u64) -> Result<(), Error> {
        self.show.pass();
        self.users.lock().expect("no panic").insert(user);
        Ok(())
    }

    fn hide(&self, _directory: &Path) -> Result<(), Error> {
        self.hide.pass();
        Ok(())
    }

    fn release(&self, user: u64) {
        self.users.lock().expect("no panic").remove(&user);
    }

    fn content(&self, directory: &Path) -> PathBuf {
        self.overlay.content(directory)
    }
}
