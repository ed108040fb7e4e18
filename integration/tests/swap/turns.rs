//! Two daemons that take turns on one node while containers run on it.
//!
//! Whoever tries the one or the other on a live node stops one daemon and starts the other in its
//! place, and may want to go back. Both have the same root and state directory then, and the same
//! sockets; each has records of its own. Ours reads containerd's; the other way the containers are
//! entered in both. One daemon starts them and is killed, the other takes over, is stopped, and the
//! first takes over again.
//!
//! While there is no daemon, one container ends and one loses its shim: the next daemon has to tell
//! of the one and to clean up after the other.
//!
//! The steps need each other, so the first that fails is the last.

use std::{fmt, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Choice, Client, IMAGE, Runtime, Shim},
    daemon::{Daemon, Kind, Options},
    image::{self, Flavour},
    leaks::Inventory,
    process::{self, Output, Running},
    programs,
    stage::{self, Stage, View},
    wait,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    cases::{Skipped, exit_code_said, has, row, same},
    report::Outcome,
};

/// The containers, named after what becomes of them.
const KEPT: &str = "kept";
const ENDED: &str = "ended";
const AWAY: &str = "away";
const SHIMLESS: &str = "shimless";

/// What a container runs: it says when it can be ended, and ends in its own way.
const PROGRAM: &str = "trap 'exit 7' TERM; : > /ready; while :; do sleep 0.05; done";

/// Two daemons, and the shim that both start.
#[derive(Clone, Copy)]
pub(crate) struct Turns {
    /// Starts the containers.
    first: Kind,
    /// Takes over.
    second: Kind,
    shim: Shim,
    runtime: Runtime,
}

/// A step's name, and what it does.
type Step = (&'static str, fn(&mut Node) -> Result<()>);

/// All steps, in order.
const STEPS: &[Step] = &[
    ("first_starts", first_starts),
    ("first_is_killed", first_is_killed),
    ("second_imports", second_imports),
    ("second_finds", second_finds),
    ("second_execs", |node| node.second.execs(KEPT)),
    ("second_tells_of_an_end", |node| node.second.ends(ENDED)),
    ("second_has_the_end_while_away", second_has_the_end),
    ("second_cleans_after_a_shim", second_cleans),
    ("second_starts_what_it_imported", second_starts),
    ("first_finds_again", first_finds_again),
    ("first_execs_again", |node| node.first.execs(KEPT)),
    ("first_tells_of_an_end", |node| node.first.ends(KEPT)),
];

impl Turns {
    /// All of them, those with a newer containerd last.
    pub(crate) const ALL: &[Self] = {
        const fn turns(first: Kind, shim: Shim, runtime: Runtime, second: Kind) -> Turns {
            Turns { first, second, shim, runtime }
        }
        use Kind::{Containerd, Gantryd, Newer};
        use Runtime::{Runc, RuncRs};
        &[
            turns(Containerd, Shim::Go, Runc, Gantryd),
            turns(Gantryd, Shim::Go, RuncRs, Containerd),
            turns(Containerd, Shim::Own, Runc, Gantryd),
            turns(Gantryd, Shim::Own, RuncRs, Containerd),
            turns(Newer, Shim::Newer, Runc, Gantryd),
            turns(Gantryd, Shim::Newer, RuncRs, Newer),
            turns(Newer, Shim::Own, Runc, Gantryd),
            turns(Gantryd, Shim::Own, RuncRs, Newer),
        ]
    };

    /// Finds what is shown as `name`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|turns| turns.to_string() == name)
    }

    /// Names the programs that are not there.
    pub(crate) fn missing(self) -> Vec<String> {
        let mut missing = self.choice(self.first).missing();
        missing.extend(self.choice(self.second).missing());
        missing.extend(
            [self.first, self.second]
                .iter()
                .filter_map(|it| client(*it).err().map(|error| error.to_string())),
        );
        missing.sort();
        missing.dedup();
        missing
    }

    /// Goes through the steps until one fails, and notes each.
    pub(crate) fn take(
        self,
        stage: &Stage,
        note: impl Fn(&str, &Outcome) -> Result<()>,
    ) -> Result<bool> {
        stage.enter(View::default())?;
        let namespace = stage::namespace(std::process::id());
        let before = Inventory::take(&namespace);
        let show = |step: &str, result: Result<()>| {
            let outcome = match result {
                Ok(()) => Outcome::Passed,
                Err(error) if error.is::<Skipped>() => Outcome::Skipped(error.to_string()),
                Err(error) => Outcome::Failed(format!("{error:#}")),
            };
            println!("test {self} {step} ... {outcome}");
            note(step, &outcome)?;
            Ok::<_, anyhow::Error>(!matches!(outcome, Outcome::Failed(_)))
        };
        let mut node = Node::prepare(self, stage, namespace.clone())?;
        for (name, step) in STEPS {
            let done = match step(&mut node) {
                Err(error) if !error.is::<Skipped>() => Err(error.context(node.logs())),
                done => done,
            };
            if !show(name, done)? {
                return Ok(true);
            }
        }
        drop(node);
        show("nothing_left", self.nothing_left(&before, &namespace))?;
        Ok(true)
    }

    /// Whether the second can read the first's records. Otherwise the containers are entered in both.
    fn imports(self) -> bool {
        self.second == Kind::Gantryd
    }

    /// Looks at what the daemons left after their end: their sockets and directories may stay, and
    /// the fifos of clients whose containers were removed by nobody.
    fn nothing_left(self, before: &Inventory, namespace: &str) -> Result<()> {
        let Err(error) = before.wait_restored(namespace) else { return Ok(()) };
        let text = format!("{error:#}");
        // containerd leaves the socket of its shim that was killed.
        let leaves_sockets = self.shim != Shim::Own && self.second != Kind::Gantryd;
        let sockets = leaves_sockets.then_some("/run/containerd/s/");
        let stays = ["containerd.sock", "gantryd.lock", "io.containerd.", "/fifo/"];
        let left = text.trim_start_matches("left behind: ").split("; ").filter(|thing| {
            let mut may_stay = stays.iter().copied().chain(sockets);
            !thing.starts_with("file /run/")
                || thing.contains(&format!("/{namespace}/"))
                || !may_stay.any(|name| thing.contains(name))
        });
        let left: Vec<&str> = left.collect();
        ensure!(left.is_empty(), "left behind: {}", left.join("; "));
        Ok(())
    }

    fn choice(self, daemon: Kind) -> Choice {
        Choice { daemon, shim: self.shim, runtime: self.runtime, client: Client::Own }
    }
}

impl fmt::Display for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.choice(self.first).to_string();
        let second = self.choice(self.second).to_string();
        let mut parts = first.split('/');
        let (first, shim) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let second = second.split('/').next().unwrap_or_default();
        write!(f, "turns/{shim}/{first}-{second}")
    }
}

/// The client that was made for a daemon.
fn client(daemon: Kind) -> Result<std::path::PathBuf> {
    match daemon {
        Kind::Containerd => programs::debian("ctr"),
        Kind::Newer => programs::newer("ctr"),
        Kind::Gantryd => programs::own("ctr"),
    }
}

/// The daemons of one node, of which one runs at a time, if any.
struct Node {
    turns: Turns,
    first: Side,
    second: Side,
    runtime: String,
    /// The inits that the first has started.
    pids: Vec<(&'static str, i32)>,
}

impl Node {
    /// Starts each daemon once, so that both have what containers are made from, and leaves the
    /// first running.
    fn prepare(turns: Turns, stage: &Stage, namespace: String) -> Result<Self> {
        let mut second = Side::start(turns, turns.second, stage, namespace.clone())?;
        if !turns.imports() {
            second.takes_image()?;
            for id in [KEPT, ENDED, AWAY, SHIMLESS] {
                second.ok(&["containers", "create", IMAGE, id, "true"])?;
            }
        }
        second.daemon.stop(Signal::TERM)?;
        let first = Side::start(turns, turns.first, stage, namespace)?;
        first.takes_image()?;
        let runtime = turns.choice(turns.first).runtime()?.display().to_string();
        Ok(Self { turns, first, second, runtime, pids: Vec::new() })
    }

    /// Whether the second takes a shim whose container has ended for one that never had any.
    fn forgets_ends(&self) -> bool {
        self.turns.second == Kind::Newer
    }

    fn pid(&self, id: &str) -> Result<Pid> {
        let found = self.pids.iter().find(|(its, _)| *its == id);
        found.and_then(|(_, pid)| Pid::from_raw(*pid)).context("a pid")
    }

    /// What the daemons logged, for whoever has to find out what went wrong.
    fn logs(&self) -> String {
        let (first, second) = (self.first.daemon.log(), self.second.daemon.log());
        format!("first:\n{}\nsecond:\n{}\n", last_lines(&first), last_lines(&second))
    }
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// A daemon, and the client that was made for it.
struct Side {
    daemon: Daemon,
    client: std::path::PathBuf,
    namespace: String,
    /// Whether the shim may exit before it has told that a task was deleted, as that of containerd
    /// 2.3 does when it is shut down at once.
    shim_is_hasty: bool,
}

impl Side {
    fn start(turns: Turns, kind: Kind, stage: &Stage, namespace: String) -> Result<Self> {
        let choice = turns.choice(kind);
        let scratch = stage.directory().join(choice.to_string().replace('/', "-"));
        let daemon = Daemon::start(Options {
            kind,
            root: stage.directory().join("root"),
            state: "/run/containerd".into(),
            shim: choice.shim()?,
            runtime: choice.runtime()?,
            scratch,
        })?;
        let shim_is_hasty = turns.shim == Shim::Newer;
        Ok(Self { daemon, client: client(kind)?, namespace, shim_is_hasty })
    }

    /// Imports [`IMAGE`].
    fn takes_image(&self) -> Result<()> {
        let archive = self.daemon.options().scratch.join("image.tar");
        fs::write(&archive, image::oci_archive(&image::busybox(Flavour::Oci)?, IMAGE))?;
        self.ok(&["images", "import", &archive.display().to_string()]).map(drop)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.client);
        command.arg("--address").arg(self.daemon.address());
        command.args(["--namespace", &self.namespace]).args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Result<Output> {
        process::run(&mut self.command(words))
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        self.run(words)?.ok()
    }

    /// The number and the status of a task's init, once the daemon has them.
    fn task(&self, id: &str) -> Result<(i32, String)> {
        let table = self.ok(&["tasks", "ls"])?;
        let mut columns = row(&table, id)?.split_whitespace().skip(1);
        let pid = columns.next().context("a pid")?.parse()?;
        Ok((pid, columns.next().context("a status")?.to_owned()))
    }

    fn execs(&self, id: &str) -> Result<()> {
        let said = self.ok(&["tasks", "exec", "--exec-id", "e", id, "echo", "alive"])?;
        same(said.as_str(), "alive\n")
    }

    /// Ends a container by a signal, looks for the event, and removes the task.
    fn ends(&self, id: &str) -> Result<()> {
        let mut events = Running::start(&mut self.command(&["events"]))?;
        wait::until("the subscription", || {
            self.ok(&["namespaces", "label", &self.namespace, "subscribed=yes"])?;
            Ok(events.stdout()?.contains("/namespaces/update").then_some(()))
        })?;
        self.ok(&["tasks", "kill", "-s", "SIGTERM", id])?;
        // Others may end meanwhile.
        let name = format!("\"container_id\":\"{id}\"");
        let mut told = |topic: &str| {
            wait::until(topic, || {
                let seen = events.stdout()?;
                let its = |line: &&str| line.contains(topic) && line.contains(&name);
                Ok(seen.lines().find(its).map(str::to_owned))
            })
        };
        has(&told("/tasks/exit")?, "\"exit_status\":7")?;
        self.removes(id)?;
        if !self.shim_is_hasty {
            told("/tasks/delete")?;
        }
        Ok(())
    }

    /// Removes the task of a container that has ended.
    fn removes(&self, id: &str) -> Result<()> {
        let said = self.run(&["tasks", "rm", id])?;
        has(&exit_code_said(&said), "7")?;
        ensure!(row(&self.ok(&["tasks", "ls"])?, id).is_err(), "the task is still there");
        Ok(())
    }
}

fn first_starts(node: &mut Node) -> Result<()> {
    for id in [KEPT, ENDED, AWAY, SHIMLESS] {
        let words = ["run", "-d", "--runc-binary", &node.runtime, IMAGE, id, "sh", "-c", PROGRAM];
        node.first.ok(&words)?;
        wait::until("the container", || {
            let words = ["tasks", "exec", "--exec-id", "e", id, "test", "-e", "/ready"];
            Ok((node.first.run(&words)?.code == 0).then_some(()))
        })?;
        node.pids.push((id, node.first.task(id)?.0));
    }
    Ok(())
}

/// Kills the first, and lets things happen without a daemon.
fn first_is_killed(node: &mut Node) -> Result<()> {
    node.first.daemon.stop(Signal::KILL)?;
    kill_process(node.pid(AWAY)?, Signal::TERM)?;
    wait_gone(node.pid(AWAY)?)?;
    kill_process(parent(node.pid(SHIMLESS)?)?, Signal::KILL)?;
    Ok(())
}

/// Has the second read the first's records: all, and a second time nothing.
fn second_imports(node: &mut Node) -> Result<()> {
    if !node.turns.imports() {
        return Err(Skipped("the containers were entered by hand").into());
    }
    let options = node.second.daemon.options();
    let mut command = Command::new(programs::own("gantryd")?);
    command.arg("--config").arg(options.scratch.join("config.toml"));
    command.args(["--compat", "containerd", "import-containerd", "--from"]).arg(&options.root);
    let said = process::run(&mut command)?.ok()?;
    has(&said, "4 containers, 1 images and ")?;
    has(&said, " 0 left")?;
    let said = process::run(&mut command)?.ok()?;
    same(said.as_str(), "0 containers, 0 images and 0 blobs are new, 0 left\n")
}

/// Starts the second, and looks for what the first started.
fn second_finds(node: &mut Node) -> Result<()> {
    node.second.daemon.launch_again()?;
    for id in [KEPT, ENDED] {
        let (pid, status) = wait::until("the task", || Ok(node.second.task(id).ok()))?;
        same(status.as_str(), "RUNNING")?;
        same(Some(pid), Some(node.pid(id)?.as_raw_nonzero().get()))?;
    }
    let wanted = if node.forgets_ends() { None } else { Some("STOPPED") };
    wait::until("the status of what ended", || {
        let table = node.second.ok(&["tasks", "ls"])?;
        let status = row(&table, AWAY).ok().and_then(|row| row.split_whitespace().nth(2));
        Ok((status == wanted).then_some(()))
    })
}

fn second_has_the_end(node: &mut Node) -> Result<()> {
    if node.forgets_ends() {
        return Err(Skipped("containerd 2 removes tasks that ended while it was away").into());
    }
    node.second.removes(AWAY)
}

/// Runs a container from the image that came with the records.
fn second_starts(node: &mut Node) -> Result<()> {
    let words = ["run", "--rm", "--runc-binary", &node.runtime, IMAGE, "new", "echo", "new"];
    same(node.second.ok(&words)?.as_str(), "new\n")
}

fn second_cleans(node: &mut Node) -> Result<()> {
    wait_gone(node.pid(SHIMLESS)?)?;
    wait::until("the end of the task", || Ok(node.second.task(SHIMLESS).err().map(drop)))?;
    let bundle = format!(
        "/run/containerd/io.containerd.runtime.v2.task/{}/{SHIMLESS}",
        node.second.namespace
    );
    wait::until_true("the end of the bundle", || !Path::new(&bundle).exists())
}

fn first_finds_again(node: &mut Node) -> Result<()> {
    node.second.daemon.stop(Signal::TERM)?;
    node.first.daemon.launch_again()?;
    let (pid, status) = wait::until("the task", || Ok(node.first.task(KEPT).ok()))?;
    same(status.as_str(), "RUNNING")?;
    same(Some(pid), Some(node.pid(KEPT)?.as_raw_nonzero().get()))?;
    let table = node.first.ok(&["tasks", "ls"])?;
    for id in [ENDED, AWAY, SHIMLESS] {
        ensure!(row(&table, id).is_err(), "{id} is still there: {table}");
    }
    // Their records, and what they were made from, are the first's as before.
    for id in [ENDED, AWAY, SHIMLESS] {
        node.first.ok(&["containers", "rm", id])?;
    }
    Ok(())
}

fn parent(pid: Pid) -> Result<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    let (_, rest) = stat.rsplit_once(')').context("a name")?;
    let parent = rest.split_whitespace().nth(1).context("a parent")?.parse()?;
    Pid::from_raw(parent).context("a parent")
}

/// Waits until a process is gone, or only a zombie that a shim has not asked for yet.
fn wait_gone(pid: Pid) -> Result<()> {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    wait::until_true("the end of a process", || {
        fs::read_to_string(&path).map_or(true, |stat| stat.contains(") Z "))
    })
}
