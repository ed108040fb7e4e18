//! `ctr run` and its flags.

use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::Result;
use integration::{
    cell::{Cell, Client, IMAGE, Shim},
    daemon::Kind,
    image::{self, Flavour},
    process, wait,
};

use super::{Case, Skipped, has, has_not, needs_own_client, row, same};

pub(crate) const CASES: &[Case] = &[
    Case { name: "run_output", run: output },
    Case { name: "run_exit_code", run: exit_code },
    Case { name: "run_exit_by_signal", run: exit_by_signal },
    Case { name: "run_stdin", run: stdin },
    Case { name: "run_large_output", run: large_output },
    Case { name: "run_default_command", run: default_command },
    Case { name: "run_keeps_record", run: keeps_record },
    Case { name: "run_detached", run: detached },
    Case {
        name: "run_env",
        run: |cell| says(cell, &["--env", "A=b c"], "echo $A $FROM_IMAGE", "b c yes\n"),
    },
    Case { name: "run_cwd", run: |cell| says(cell, &["--cwd", "/etc"], "pwd", "/etc\n") },
    Case { name: "run_mount", run: mount },
    Case { name: "run_user", run: user },
    Case { name: "run_privileged", run: privileged },
    Case {
        name: "run_net_own",
        run: |cell| says(cell, &[], "ls /sys/class/net; cat /sys/class/net/lo/flags", "lo\n0x9\n"),
    },
    Case { name: "run_net_host", run: net_host },
    Case {
        name: "run_read_only",
        run: |cell| {
            says(cell, &["--read-only"], "touch /file 2>/dev/null || echo refused", "refused\n")
        },
    },
    Case { name: "run_memory_limit", run: memory_limit },
    Case { name: "run_cpus", run: cpus },
    Case { name: "run_label", run: label },
    Case { name: "run_native_snapshotter", run: native },
    Case { name: "run_erofs_snapshotter", run: erofs },
    Case { name: "run_user_namespace", run: user_namespace },
    Case { name: "run_runtime_binary", run: runtime_binary },
    Case { name: "run_isolated", run: isolated },
    Case { name: "run_capabilities", run: capabilities },
    Case {
        name: "run_seccomp",
        run: |cell| says(cell, &["--seccomp"], "grep Seccomp: /proc/self/status", "Seccomp:\t2\n"),
    },
    Case { name: "run_signal_mask", run: signal_mask },
    Case { name: "run_pid_file", run: pid_file },
    Case { name: "run_rootfs", run: rootfs },
];

fn says(cell: &Cell, flags: &[&str], script: &str, wanted: &str) -> Result<()> {
    let flags = [&["--rm"], flags].concat();
    let said = cell.run(&flags, &cell.id(), &["sh", "-c", script])?.ok()?;
    same(said.as_str(), wanted)
}

fn output(cell: &mut Cell) -> Result<()> {
    let said = cell.run(&["--rm"], &cell.id(), &["sh", "-c", "echo out; echo err >&2"])?;
    same((said.code, said.stdout.as_str(), said.stderr.as_str()), (0, "out\n", "err\n"))
}

fn exit_code(cell: &mut Cell) -> Result<()> {
    for code in [0, 1, 42, 255] {
        let said = cell.run(&["--rm"], &cell.id(), &["sh", "-c", &format!("exit {code}")])?;
        same(said.code, code)?;
    }
    Ok(())
}

fn exit_by_signal(cell: &mut Cell) -> Result<()> {
    // The shell is init and immune; its child is not, and the shell passes on what it saw.
    let said = cell.run(&["--rm"], &cell.id(), &["sh", "-c", "sh -c 'kill -9 $$'; exit $?"])?;
    same(said.code, 137)
}

fn stdin(cell: &mut Cell) -> Result<()> {
    let words = cell.run_words(&["--rm"], &cell.id(), &["wc", "-c"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let input = vec![b'x'; 300_000];
    let said = process::run_with_input(&mut cell.command(&words), &input)?.ok()?;
    same(said.trim(), "300000")
}

fn large_output(cell: &mut Cell) -> Result<()> {
    let script = "dd if=/dev/zero bs=1000 count=3000 2>/dev/null | tr '\\0' x";
    let said = cell.run(&["--rm"], &cell.id(), &["sh", "-c", script])?.ok()?;
    same(said.len(), 3_000_000)
}

fn default_command(cell: &mut Cell) -> Result<()> {
    let words = cell.run_words(&["--rm"], &cell.id(), &[]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let said = process::run_with_input(&mut cell.command(&words), b"echo from the shell; exit\n")?;
    has(&said.ok()?, "from the shell")
}

fn keeps_record(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    cell.run(&[], &id, &["true"])?.ok()?;
    let listed = cell.ok(&["containers", "ls", "-q"])?;
    cell.ok(&["containers", "rm", &id])?;
    has(&listed, &id)
}

fn detached(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let table = cell.ok(&["tasks", "ls"])?;
    has(row(&table, &id)?, "RUNNING")?;
    cell.remove(&id)
}

fn mount(cell: &mut Cell) -> Result<()> {
    let source = cell.file("shared");
    fs::create_dir_all(&source)?;
    fs::write(source.join("from-host"), "seen\n")?;
    let bind =
        |options: &str| format!("type=bind,src={},dst=/data,options={options}", source.display());
    let script = "cat /data/from-host; echo made > /data/from-container";
    says(cell, &["--mount", &bind("rbind:rw")], script, "seen\n")?;
    same(fs::read_to_string(source.join("from-container"))?.as_str(), "made\n")?;
    let script = "touch /data/more 2>/dev/null || echo refused";
    says(cell, &["--mount", &bind("rbind:ro")], script, "refused\n")?;
    let tmpfs = "type=tmpfs,dst=/scratch,options=size=1m:mode=1700";
    says(cell, &["--mount", tmpfs], "stat -c %a /scratch", "1700\n")
}

fn user(cell: &mut Cell) -> Result<()> {
    needs_own_client(cell, "Debian's ctr has no `run --user`")?;
    says(cell, &["--user", "1000:1000"], "id -u; id -g", "1000\n1000\n")?;
    says(cell, &["--user", "user"], "id -un", "user\n")
}

fn privileged(cell: &mut Cell) -> Result<()> {
    let script = "mount -t tmpfs none /tmp && echo mounted";
    says(cell, &["--privileged"], script, "mounted\n")?;
    let said = cell.run(&["--rm"], &cell.id(), &["sh", "-c", script])?;
    has(&said.refused()?, "permission denied")
}

fn net_host(cell: &mut Cell) -> Result<()> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    says(cell, &["--net-host"], "ls /sys/class/net", &format!("{}\n", names.join("\n")))
}

fn memory_limit(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&["--memory-limit", "33554432"], &["sleep", "100"])?;
    let limit = limit_of(cell, &id, "memory", "memory.limit_in_bytes", "memory.max");
    cell.remove(&id)?;
    same(limit?.trim(), "33554432")
}

fn cpus(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&["--cpus", "0.5"], &["sleep", "100"])?;
    let quota = limit_of(cell, &id, "cpu", "cpu.cfs_quota_us", "cpu.max");
    cell.remove(&id)?;
    same(quota?.split_whitespace().next(), Some("50000"))
}

/// Reads a limit where the hierarchy of this machine has it.
fn limit_of(cell: &Cell, id: &str, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let directory = format!("{}/{id}", cell.namespace());
    let old = format!("/sys/fs/cgroup/{controller}/{directory}/{v1}");
    let new = format!("/sys/fs/cgroup/{directory}/{v2}");
    Ok(fs::read_to_string(old).or_else(|_| fs::read_to_string(new))?)
}

fn label(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&["--label", "color=blue"], &["sleep", "100"])?;
    let said = cell.ok(&["containers", "info", &id])?;
    let listed = cell.ok(&["containers", "ls", "-q", "labels.color==blue"])?;
    cell.remove(&id)?;
    has(&said, "\"color\": \"blue\"")?;
    has(&said, "\"made\": \"here\"")?;
    has(&listed, &id)
}

fn native(cell: &mut Cell) -> Result<()> {
    // With clients that leave the unpacking to it, as ours and its own.
    if cell.choice().daemon == Kind::Newer && cell.choice().client == Client::Own {
        let why = "containerd 2 unpacks by itself only to the snapshotters of its configuration";
        return Err(Skipped(why).into());
    }
    let archive = cell.file("native.tar");
    fs::write(&archive, image::oci_archive(&image::busybox(Flavour::Oci)?, IMAGE))?;
    let archive = archive.display().to_string();
    cell.ok(&["images", "import", "--snapshotter", "native", &archive])?;
    let flags = ["--rm", "--snapshotter", "native"];
    same(cell.run(&flags, &cell.id(), &["echo", "native"])?.ok()?.as_str(), "native\n")
}

/// Each layer is an image of EROFS, which whatever shim and runtime there is never hears of.
fn erofs(cell: &mut Cell) -> Result<()> {
    if cell.choice().daemon != Kind::Gantryd {
        let why = "containerd 1.6 has no such snapshotter, and 2.3's needs mkfs.erofs 1.7";
        return Err(Skipped(why).into());
    }
    if !integration::stage::has_filesystem("erofs")? {
        return Err(Skipped("this kernel has no EROFS").into());
    }
    let archive = cell.file("erofs.tar");
    fs::write(&archive, image::oci_archive(&image::busybox(Flavour::Oci)?, IMAGE))?;
    let archive = archive.display().to_string();
    cell.ok(&["images", "import", "--snapshotter", "erofs", &archive])?;
    let flags = ["--rm", "--snapshotter", "erofs"];
    let script = "touch /bin/new && rm /bin/sh && ls /bin/new /bin/sh 2>/dev/null";
    let said = cell.run(&flags, &cell.id(), &["sh", "-c", script])?;
    same(said.stdout.as_str(), "/bin/new\n")?;
    let listed = cell.ok(&["snapshots", "--snapshotter", "erofs", "ls"])?;
    has(&listed, "Committed")
}

/// Files of the image are the container's root's, though nobody copied them.
fn user_namespace(cell: &mut Cell) -> Result<()> {
    if cell.choice().daemon == Kind::Containerd || cell.choice().shim == Shim::Go {
        return Err(Skipped("containerd 1.6 knows no mounts of other owners").into());
    }
    if cell.choice().client == Client::Debian {
        return Err(Skipped("Debian's ctr mounts the image itself, to look users up").into());
    }
    let maps = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels"];
    let script = "stat -c %u:%g / /bin/busybox; touch /made && stat -c %u:%g /made; \
                  tr -s ' ' < /proc/self/uid_map";
    says(cell, &maps, script, "0:0\n0:0\n0:0\n 0 100000 65536\n")
}

fn runtime_binary(cell: &mut Cell) -> Result<()> {
    let (wrapper, log) = (cell.file("wrapper"), cell.file("wrapper.log"));
    let text = format!(
        "#!/bin/sh\necho \"$@\" >> {}\nexec {} \"$@\"\n",
        log.display(),
        cell.runtime().display()
    );
    fs::write(&wrapper, text)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let wrapper = wrapper.display().to_string();
    let id = cell.id();
    cell.ok(&["run", "--rm", "--runc-binary", &wrapper, IMAGE, &id, "true"])?;
    let calls = fs::read_to_string(&log)?;
    fs::remove_file(&log)?;
    for command in ["create", "start", "delete"] {
        has(&calls, &format!(" {command} "))?;
    }
    Ok(())
}

fn isolated(cell: &mut Cell) -> Result<()> {
    let script = "echo $$; ps -o pid | wc -l; hostname; ls /proc/self/fd | wc -l; \
                  for n in ipc mnt net pid uts; do readlink /proc/self/ns/$n; done";
    let said = cell.run(&["--rm"], &cell.id(), &["sh", "-c", script])?.ok()?;
    let lines: Vec<&str> = said.lines().collect();
    same(lines.first(), Some(&"1"))?;
    for (name, line) in ["ipc", "mnt", "net", "pid", "uts"].iter().zip(lines.iter().skip(4)) {
        let own = fs::read_link(format!("/proc/self/ns/{name}"))?;
        has_not(line, &own.to_string_lossy())?;
        has(line, name)?;
    }
    // Standard streams, and the directory that `ls` has open.
    same(lines.get(3), Some(&"4"))
}

fn capabilities(cell: &mut Cell) -> Result<()> {
    let script =
        "grep -E 'CapEff|CapBnd|CapAmb|NoNewPrivs' /proc/self/status | cut -f 2 | tr '\\n' ' '";
    let defaults = "00000000a80425fb 00000000a80425fb 0000000000000000 1 ";
    says(cell, &[], script, defaults)?;
    let added = "00000000a82425fb 00000000a82425fb 0000000000000000 1 ";
    says(cell, &["--cap-add", "CAP_SYS_ADMIN"], script, added)
}

/// A process starts with no signal blocked, whatever shim and runtime do for themselves.
fn signal_mask(cell: &mut Cell) -> Result<()> {
    let said = cell.run(&["--rm"], &cell.id(), &["grep", "SigBlk", "/proc/self/status"])?.ok()?;
    same(said.as_str(), "SigBlk:\t0000000000000000\n")
}

fn pid_file(cell: &mut Cell) -> Result<()> {
    let file = cell.file("pid");
    let path = file.display().to_string();
    let id = cell.background(&["--pid-file", &path], &["sleep", "100"])?;
    let pid = fs::read_to_string(&file)?;
    let table = cell.ok(&["tasks", "ls"])?;
    cell.remove(&id)?;
    has(row(&table, &id)?, pid.trim())
}

fn rootfs(cell: &mut Cell) -> Result<()> {
    let root = cell.file("rootfs");
    fs::create_dir_all(root.join("bin"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    let path = root.display().to_string();
    let id = cell.id();
    let words = ["run", "--rm", "--rootfs", &path, &id, "/bin/busybox", "echo", "rooted"];
    let said = cell.ok(&words)?;
    wait::until_true("the end of the container", || fs::remove_dir_all(&root).is_ok())?;
    same(said.as_str(), "rooted\n")
}
