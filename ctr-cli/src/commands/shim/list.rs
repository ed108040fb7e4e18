//! `ctr shim ls`
//!
//! Each shim is asked whether it is there, all at once, so one that is stuck delays the list by one
//! deadline at most.
//!
//! | state    | means                                                                           |
//! |----------|---------------------------------------------------------------------------------|
//! | `live`   | it answers                                                                      |
//! | `silent` | it takes connections and does not answer: stopped, or stuck; a daemon of this   |
//! |          | project's has it in quarantine                                                  |
//! | `orphan` | its socket takes no connections: it died, and its bundle was not cleaned up     |

use std::{fs, path::Path, time::Duration};

use clap::Args;
use proto::{
    containerd::task::v3::{ConnectRequest, ConnectResponse},
    ttrpc::CallError,
};

use super::{connection::Connection, found::Found};
use crate::{
    cli::Global,
    output::{Table, binary_size},
};

/// How long a shim may take to say that it is there.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// List the shims of the namespace, or of all
#[derive(Args, Debug)]
pub(super) struct List {
    /// Those of all namespaces
    #[arg(long, short = 'A')]
    all: bool,
    /// Print only the containers' names
    #[arg(long, short)]
    quiet: bool,
}

/// What a shim says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    state: &'static str,
    pid: Option<u32>,
}

impl List {
    pub(super) async fn run(&self, global: &Global, state: &Path) -> anyhow::Result<()> {
        let namespace = (!self.all).then_some(global.namespace.as_str());
        let found = Found::all(state, namespace)?;
        if self.quiet {
            for shim in found {
                crate::output::outln!("{}", shim.id)?;
            }
            return Ok(());
        }
        let seen = futures::future::join_all(found.iter().map(look)).await;
        let header = ["NAMESPACE", "ID", "PID", "API", "STATE", "PSS", "SOCKET"];
        let mut table = Table::wide(&header);
        for (shim, Seen { state, pid }) in found.into_iter().zip(seen) {
            let memory = pid.and_then(proportional_set_size);
            table.row([
                shim.namespace,
                shim.id,
                pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                shim.version.to_string(),
                state.to_owned(),
                memory.map_or_else(|| "-".to_owned(), binary_size),
                if shim.address.is_empty() { "-".to_owned() } else { shim.address },
            ]);
        }
        Ok(table.print()?)
    }
}

async fn look(shim: &Found) -> Seen {
    let orphan = Seen { state: "orphan", pid: None };
    if shim.address.is_empty() {
        return orphan;
    }
    let connection = match Connection::open(&shim.namespace, &shim.address, shim.version).await {
        Ok(connection) => connection,
        // The backlog of one that is stopped is full.
        Err(error) if error.is::<tokio::time::error::Elapsed>() || is_full(&error) => {
            return Seen { state: "silent", pid: None };
        }
        Err(_) => return orphan,
    };
    let request = ConnectRequest { id: shim.id.clone() };
    let answer = connection.call_within("Connect", &request, Some(ANSWER_LIMIT)).await;
    match answer {
        Ok(ConnectResponse { shim_pid, .. }) => Seen { state: "live", pid: Some(shim_pid) },
        // It has no task, and is there.
        Err(CallError::Status(_)) => Seen { state: "live", pid: None },
        Err(CallError::Closed) => orphan,
        Err(_) => Seen { state: "silent", pid: None },
    }
}

fn is_full(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// The memory of a process with its part of what it shares, in bytes.
fn proportional_set_size(pid: u32) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    pss(&text)
}

fn pss(rollup: &str) -> Option<i64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: i64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory() {
        let cases = [
            ("usual", "0-1 ---p 0 0:0 0 [rollup]\nRss:   99 kB\nPss:      12 kB\n", Some(12288)),
            ("none", "Rss: 1 kB\n", None),
            ("odd", "Pss: many kB\n", None),
        ];
        for (case, text, want) in cases {
            assert_eq!(pss(text), want, "{case}");
        }
    }

    #[tokio::test]
    async fn states() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let shim = |name: &str| Found {
            namespace: "default".to_owned(),
            id: "c1".to_owned(),
            address: format!("unix://{}", folder.path().join(name).display()),
            version: 3,
        };
        // One that takes connections and says nothing, one that is gone, and none.
        let _silent = std::os::unix::net::UnixListener::bind(folder.path().join("silent"));
        drop(std::os::unix::net::UnixListener::bind(folder.path().join("gone")));
        let nowhere = Found { address: String::new(), ..shim("") };
        let cases = [(shim("silent"), "silent"), (shim("gone"), "orphan"), (nowhere, "orphan")];
        for (shim, want) in cases {
            let seen = look(&shim).await;
            assert_eq!(seen, Seen { state: want, pid: None }, "{want}");
        }
    }
}
