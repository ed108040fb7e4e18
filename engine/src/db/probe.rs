//! Whether the database library can read a file at all, found out by a process of its own.
//!
//! On some damage redb panics, which ends a process where panics are not unwound; a tree with a circle in it may
//! take its stack, or forever. So another process reads everything first.

use std::{
    io::{self, Read},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use redb::{ReadableDatabase, ReadableTable};
use snapshotter::records::{CHILDREN, SNAPSHOTS};

use super::{Root, end_on_damage, scratch};
use crate::{
    error::Error,
    metadata::{META, Table},
};

/// How long a probe may take, and how much longer for each mebibyte.
const TIMEOUT: Duration = Duration::from_secs(60);
const TIMEOUT_PER_MIB: Duration = Duration::from_secs(1);

/// The signals that a program gets for what it does itself: SIGABRT, SIGBUS, SIGSEGV.
const OF_DAMAGE: [i32; 3] = [6, 7, 11];

/// How often it is looked whether a probe has ended.
const POLL: Duration = Duration::from_millis(5);

/// How much of what a probe says is kept, in bytes.
const SAID_LEN_MAX: u64 = 4096;

/// Reads all of the database at `path`. Ends the process with a failure when the library panics; errors of
/// its are of no interest, for a check finds them itself.
pub fn probe(path: &Path) {
    end_on_damage(path);
    let read = || -> Result<(), redb::Error> {
        let (mut database, _) = scratch::open(path)?;
        database.check_integrity()?;
        let transaction = database.begin_read()?;
        for table in Table::ALL {
            if let Ok(table) = transaction.open_table(table.definition()) {
                table.iter()?.try_for_each(|row| row.map(drop))?;
            }
        }
        if let Ok(table) = transaction.open_table(META) {
            table.iter()?.try_for_each(|row| row.map(drop))?;
        }
        if let Ok(table) = transaction.open_table(SNAPSHOTS) {
            table.iter()?.try_for_each(|row| row.map(drop))?;
        }
        if let Ok(table) = transaction.open_table(CHILDREN) {
            table.iter()?.try_for_each(|row| row.map(drop))?;
        }
        Ok(())
    };
    if let Err(error) = read() {
        tracing::debug!(%error, "the probe came to an end");
    }
}

impl Root {
    /// What is wrong with the database such that this process must not read it, if there is a program to probe
    /// it with.
    pub(super) fn probe(&self) -> Result<Option<String>, Error> {
        let Some(program) = &self.prober else { return Ok(None) };
        let database = self.database();
        let len = database.metadata().map_err(Error::file("stat", &database))?.len();
        let mut command = Command::new(program);
        command.args(["db", "probe"]).arg(&database);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Error::file("start", program))?;
        let mebibytes = u32::try_from(len >> 20).unwrap_or(u32::MAX);
        let timeout = TIMEOUT + TIMEOUT_PER_MIB.saturating_mul(mebibytes);
        let ended = wait(&mut child, timeout).map_err(Error::file("wait for", program))?;
        let Some(status) = ended else {
            return Ok(Some(format!("cannot be read within {} s", timeout.as_secs())));
        };
        if status.success() {
            return Ok(None);
        }
        if status.signal().is_some_and(|signal| !OF_DAMAGE.contains(&signal)) {
            // Whoever killed it, as for want of memory, has said nothing about the database.
            let error = io::Error::other(format!("it ended with {status}"));
            return Err(Error::file("probe", &database)(error));
        }
        let mut said = String::new();
        if let Some(stderr) = child.stderr.take() {
            // Without its last words there is its status.
            let _ = stderr.take(SAID_LEN_MAX).read_to_string(&mut said);
        }
        let said = said.lines().last().and_then(|line| line.split("saves what there is: ").nth(1));
        Ok(Some(said.map_or_else(|| format!("to read it ends with {status}"), str::to_owned)))
    }
}

/// Waits for the end of `child`, or kills it.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<Option<std::process::ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}
