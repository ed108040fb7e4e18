//! What `--help` and a wrong command line show.
//!
//! The form is that of runc's: the name in the second line, the flags in columns. What a command
//! takes is decided where it runs; that all of what is listed here is taken, is tested.

use std::fmt::Write as _;

/// A command, for people.
struct Command {
    name: &'static str,
    about: &'static str,
    arguments: &'static str,
    /// Each flag as it is written, and what it does.
    flags: &'static [(&'static str, &'static str)],
}

const GLOBAL: [(&str, &str); 8] = [
    ("--debug", "log each step"),
    ("--log value", "write the log to this file instead of standard error"),
    ("--log-format value", "'text' or 'json' (default: \"text\")"),
    ("--root value", "keep the state of containers here (default: \"/run/runc\")"),
    ("--systemd-cgroup", "have systemd make the cgroups; cgroupsPath is then slice:prefix:name"),
    ("--rootless value", "do without rights over cgroups: 'true', 'false' or 'auto'"),
    ("--help, -h", "show help"),
    ("--version, -v", "print the version"),
];

const BUNDLE: (&str, &str) =
    ("--bundle value, -b value", "the directory with config.json (default: the current one)");
const CONSOLE: (&str, &str) =
    ("--console-socket value", "a unix socket that is sent the terminal's master");
const PIDFD: (&str, &str) = ("--pidfd-socket value", "a unix socket that is sent a pidfd");
const PID_FILE: (&str, &str) = ("--pid-file value", "write the process's pid to this file");
const NO_PIVOT: (&str, &str) =
    ("--no-pivot", "move the root instead of pivot_root, for hosts that run from a ramdisk");
const NO_KEYRING: (&str, &str) = ("--no-new-keyring", "keep the caller's session keyring");
const PRESERVE: (&str, &str) =
    ("--preserve-fds value", "how many descriptors from 3 on the process gets (default: 0)");
const DETACH: (&str, &str) = ("--detach, -d", "do not wait for the process");
const NO_SUBREAPER: (&str, &str) =
    ("--no-subreaper", "do not adopt processes that the container leaves behind");
const FORMAT: (&str, &str) = ("--format value, -f value", "'table' or 'json' (default: \"table\")");
const IMAGES: (&str, &str) = ("--image-path value", "the directory of criu's images");
const WORK: (&str, &str) = ("--work-path value", "the directory of criu's work files and logs");
const TCP: (&str, &str) = ("--tcp-established", "keep open TCP connections");
const UNIX: (&str, &str) = ("--ext-unix-sk", "keep unix sockets that lead outside");
const SHELL: (&str, &str) = ("--shell-job", "keep the session and terminal of a shell job");
const LAZY: (&str, &str) = ("--lazy-pages", "move memory when it is used");
const LOCKS: (&str, &str) = ("--file-locks", "keep file locks");
const CGROUPS: (&str, &str) =
    ("--manage-cgroups-mode value", "'soft', 'full', 'strict' or 'ignore'");
const EMPTY: (&str, &str) = ("--empty-ns value", "a Linux namespace whose content is not kept");
const DEDUP: (&str, &str) = ("--auto-dedup", "keep each page of memory once");

const COMMANDS: [Command; 17] = [
    Command {
        name: "checkpoint",
        about: "checkpoint a running container",
        arguments: "<container-id>",
        flags: &[
            IMAGES,
            WORK,
            ("--parent-path value", "the images of an earlier checkpoint"),
            ("--leave-running", "let the container go on"),
            TCP,
            ("--tcp-skip-in-flight", "leave out TCP connections that are being made"),
            ("--link-remap", "keep files that have no name any more"),
            UNIX,
            SHELL,
            LAZY,
            ("--status-fd value", "a descriptor that is told when lazy pages can be asked for"),
            ("--page-server value", "address:port of a server that gets the memory"),
            LOCKS,
            ("--pre-dump", "save memory only, and let the container go on"),
            CGROUPS,
            EMPTY,
            DEDUP,
        ],
    },
    Command {
        name: "create",
        about: "create a container",
        arguments: "<container-id>",
        flags: &[BUNDLE, CONSOLE, PIDFD, PID_FILE, NO_PIVOT, NO_KEYRING, PRESERVE],
    },
    Command {
        name: "delete",
        about: "delete any resources held by the container",
        arguments: "<container-id>",
        flags: &[("--force, -f", "kill the container if it still runs")],
    },
    Command {
        name: "events",
        about: "display what the container uses, and when it runs out of memory",
        arguments: "<container-id>",
        flags: &[
            ("--interval value", "the time between two reports (default: 5s)"),
            ("--stats", "one report, then end"),
        ],
    },
    Command {
        name: "exec",
        about: "execute new process inside the container",
        arguments: "<container-id> <command> [argument...] | --process value <container-id>",
        flags: &[
            CONSOLE,
            PIDFD,
            ("--cwd value", "the working directory"),
            ("--env value, -e value", "a variable of the environment; may be repeated"),
            ("--tty, -t", "with a terminal"),
            ("--user value, -u value", "<uid>[:<gid>]"),
            ("--additional-gids value, -g value", "one more group; may be repeated"),
            ("--process value, -p value", "a file with the process as JSON"),
            DETACH,
            PID_FILE,
            ("--process-label value", "the SELinux label"),
            ("--apparmor value", "the AppArmor profile"),
            ("--no-new-privs", "the process gains no privileges"),
            ("--cap value, -c value", "one more capability; may be repeated"),
            PRESERVE,
            ("--cgroup value", "[<controller>,...:]<path> below the container's cgroup"),
            ("--ignore-paused", "also in a paused container"),
        ],
    },
    Command {
        name: "features",
        about: "show what this runtime can do, as JSON",
        arguments: "",
        flags: &[],
    },
    Command {
        name: "kill",
        about: "send a signal (default: SIGTERM) to the container's init process",
        arguments: "<container-id> [signal]",
        flags: &[("--all, -a", "no error when nothing is left to be signalled (deprecated)")],
    },
    Command {
        name: "list",
        about: "list containers started with the given root",
        arguments: "",
        flags: &[FORMAT, ("--quiet, -q", "only ids")],
    },
    Command {
        name: "pause",
        about: "suspend all processes inside the container",
        arguments: "<container-id>",
        flags: &[],
    },
    Command {
        name: "ps",
        about: "display the processes running inside a container",
        arguments: "<container-id> [ps options]",
        flags: &[FORMAT],
    },
    Command {
        name: "restore",
        about: "restore a container from a previous checkpoint",
        arguments: "<container-id>",
        flags: &[
            CONSOLE,
            IMAGES,
            WORK,
            TCP,
            UNIX,
            SHELL,
            LOCKS,
            CGROUPS,
            BUNDLE,
            DETACH,
            PID_FILE,
            NO_SUBREAPER,
            NO_PIVOT,
            EMPTY,
            DEDUP,
            LAZY,
            ("--lsm-profile value", "<apparmor or selinux>:<label> for its processes"),
            ("--lsm-mount-context value", "the SELinux label of its mounts"),
        ],
    },
    Command {
        name: "resume",
        about: "resume all processes that have been previously paused",
        arguments: "<container-id>",
        flags: &[],
    },
    Command {
        name: "run",
        about: "create and run a container",
        arguments: "<container-id>",
        flags: &[
            BUNDLE,
            CONSOLE,
            PIDFD,
            DETACH,
            ("--keep", "do not delete the container when it ends"),
            PID_FILE,
            NO_SUBREAPER,
            NO_PIVOT,
            NO_KEYRING,
            PRESERVE,
        ],
    },
    Command {
        name: "spec",
        about: "create a new specification file",
        arguments: "",
        flags: &[BUNDLE, ("--rootless", "for a container of somebody who is not root")],
    },
    Command {
        name: "start",
        about: "execute the user defined process in a created container",
        arguments: "<container-id>",
        flags: &[],
    },
    Command {
        name: "state",
        about: "output the state of a container",
        arguments: "<container-id>",
        flags: &[],
    },
    Command {
        name: "update",
        about: "update container resource constraints",
        arguments: "<container-id>",
        flags: &[
            ("--resources value, -r value", "a file with limits as JSON, or '-'"),
            ("--blkio-weight value", "weight of block devices, 10 to 1000"),
            ("--cpu-period value", "period of the CPU limit, in microseconds"),
            ("--cpu-quota value", "CPU time in a period, in microseconds"),
            ("--cpu-burst value", "CPU time that may be saved up, in microseconds"),
            ("--cpu-share value", "weight of the CPU"),
            ("--cpu-rt-period value", "period of the realtime limit, in microseconds"),
            ("--cpu-rt-runtime value", "realtime in a period, in microseconds"),
            ("--cpuset-cpus value", "CPUs to use, such as 0-3,7"),
            ("--cpuset-mems value", "memory nodes to use"),
            ("--cpu-idle value", "1: run only when nothing else does"),
            ("--kernel-memory value", "without effect (deprecated)"),
            ("--kernel-memory-tcp value", "without effect (deprecated)"),
            ("--memory value", "memory limit, in bytes"),
            ("--memory-reservation value", "memory that is left alone, in bytes"),
            ("--memory-swap value", "memory and swap together, in bytes; -1: no limit"),
            ("--pids-limit value", "how many processes there may be"),
            ("--l3-cache-schema value", "the line for L3 in resctrl's schemata"),
            ("--mem-bw-schema value", "the line for MB in resctrl's schemata"),
        ],
    },
];

/// What is shown of the whole program.
pub(super) fn program(name: &str) -> String {
    let mut text = format!(
        "NAME:\n   {name} - Open Container Initiative runtime\n\nUSAGE:\n   {name} [global options] \
         command [command options] [arguments...]\n\nCOMMANDS:\n"
    );
    let commands = COMMANDS.map(|command| (command.name, command.about));
    columns(&mut text, &commands);
    text.push_str("   help, h     this list, or help for one command\n\nGLOBAL OPTIONS:\n");
    columns(&mut text, &GLOBAL);
    text
}

/// What is shown of one command, if there is such a command.
pub(super) fn command(program: &str, name: &str) -> Option<String> {
    let command = COMMANDS.iter().find(|command| command.name == name)?;
    let Command { name, about, arguments, flags } = command;
    let options = if flags.is_empty() { "" } else { " [command options]" };
    let mut text = format!(
        "NAME:\n   {program} {name} - {about}\n\nUSAGE:\n   {program} {name}{options} {arguments}"
    );
    text.truncate(text.trim_end().len());
    text.push('\n');
    if !flags.is_empty() {
        text.push_str("\nOPTIONS:\n");
        columns(&mut text, flags);
    }
    Some(text)
}

fn columns(text: &mut String, rows: &[(&str, &str)]) {
    let width = rows.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
    for (left, right) in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "   {left:width$}  {right}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let want = "NAME:\n   x delete - delete any resources held by the container\n\nUSAGE:\n   \
                    x delete [command options] <container-id>\n\nOPTIONS:\n   --force, -f  kill \
                    the container if it still runs\n";
        assert_eq!(command("x", "delete").as_deref(), Some(want));
        assert_eq!(command("x", "nothing"), None);
        let features = command("x", "features").expect("a command");
        assert!(features.ends_with("USAGE:\n   x features\n"), "{features}");
        assert!(program("x").starts_with("NAME:\n   x - Open Container Initiative runtime\n"));
        assert!(COMMANDS.iter().map(|command| command.name).is_sorted());
    }
}
