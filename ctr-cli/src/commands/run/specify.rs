//! From flags and an image's configuration to a specification, in the order of stock `ctr`.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};

use super::flags::{ContainerFlags, IsolationFlags, LimitFlags, ProcessFlags};
use crate::{
    names,
    spec::{
        ImageConfig, LinuxNamespace, Mount, Spec, User, apply_image, current_capabilities,
        default_profile, device_at, host_devices, read_profile, set_env,
    },
};

/// The period of `--cpus`, in microseconds.
const CPUS_PERIOD: u64 = 100_000;

/// The weight of containers that do not say theirs.
const DEFAULT_CPU_SHARES: u64 = 1024;

/// What is known of the root filesystem when the specification is made.
pub(super) struct Base<'a> {
    pub(super) namespace: &'a str,
    pub(super) id: &'a str,
    /// The image's configuration; `None` for a root filesystem that is a directory.
    pub(super) image: Option<&'a ImageConfig>,
    pub(super) user: User,
    /// The root filesystem's path, if it is a directory.
    pub(super) rootfs: Option<&'a str>,
}

/// Makes the specification that the flags ask for.
pub(super) fn specify(flags: &ContainerFlags, base: Base<'_>) -> anyhow::Result<Spec> {
    let mut spec = Spec::new(base.namespace, base.id);
    spec.allow_default_devices();
    let mut env = read_env_files(&flags.process)?;
    env.extend(flags.process.env.iter().cloned());
    set_env(&mut spec.process.env, &env);
    spec.add_mounts(flags.storage.mount.clone());
    if let Some(path) = base.rootfs {
        path.clone_into(&mut spec.root.path);
    }
    if let Some(image) = base.image {
        apply_image(&mut spec, image);
        if !flags.command.is_empty() {
            spec.process.args = flags.command.clone();
        }
    } else {
        spec.process.args.clone_from(&flags.command);
    }
    spec.process.user = base.user;
    spec.root.readonly = flags.storage.read_only;
    isolate(&mut spec, &flags.isolation)?;
    apply_process(&mut spec, &flags.process);
    filter_calls(&mut spec, &flags.isolation)?;
    limit(&mut spec, &flags.limits);
    if let Some(propagation) = &flags.storage.rootfs_propagation {
        spec.linux.rootfs_propagation.clone_from(propagation);
    }
    annotate(&mut spec, flags)?;
    ensure!(!spec.process.args.is_empty(), "neither the command line nor the image has a command");
    Ok(spec)
}

/// Adds the annotations of the flags; labels are annotations too.
pub(super) fn annotate(spec: &mut Spec, flags: &ContainerFlags) -> anyhow::Result<()> {
    for annotation in &flags.storage.annotation {
        ensure!(annotation.contains('='), "--annotation {annotation:?} is not key=value");
    }
    spec.annotations.extend(names::labels(&flags.storage.annotation));
    spec.annotations.extend(names::labels(&flags.storage.label));
    Ok(())
}

/// Reads a specification from a file.
pub(super) fn read_spec(path: &Path) -> anyhow::Result<Spec> {
    let bytes = fs::read(path).with_context(|| format!("--config {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("--config {}", path.display()))
}

fn read_env_files(flags: &ProcessFlags) -> anyhow::Result<Vec<String>> {
    let mut env = Vec::new();
    for path in &flags.env_file {
        let text =
            fs::read_to_string(path).with_context(|| format!("--env-file {}", path.display()))?;
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        env.extend(lines.map(str::to_owned));
    }
    Ok(env)
}

fn apply_process(spec: &mut Spec, flags: &ProcessFlags) {
    if let Some(cwd) = &flags.cwd {
        spec.process.cwd.clone_from(cwd);
    }
    if flags.tty {
        spec.process.terminal = true;
        let names_terminal = spec.process.env.iter().any(|entry| entry.starts_with("TERM="));
        if !names_terminal {
            spec.process.env.push("TERM=xterm".to_owned());
        }
    }
    if let Some(hostname) = &flags.hostname {
        spec.hostname.clone_from(hostname);
    }
    spec.process.no_new_privileges = !flags.allow_new_privs;
    spec.add_capabilities(&flags.cap_add);
    spec.drop_capabilities(&flags.cap_drop);
    if let Some(rlimit) = &flags.rlimit_nofile {
        spec.set_rlimit(rlimit.clone());
    }
}

fn isolate(spec: &mut Spec, flags: &IsolationFlags) -> anyhow::Result<()> {
    if flags.privileged {
        spec.make_privileged(current_capabilities().context("capabilities of this process")?);
        if !flags.privileged_without_host_devices {
            spec.add_host_devices(host_devices()?);
        }
    }
    if flags.net_host {
        spec.use_host_namespace("network");
        spec.mounts.extend(["/etc/hosts", "/etc/resolv.conf"].map(host_file));
        let uname = rustix::system::uname();
        let variable = format!("HOSTNAME={}", uname.nodename().to_string_lossy());
        set_env(&mut spec.process.env, &[variable]);
    }
    for namespace in &flags.with_ns {
        spec.set_namespace(namespace.clone());
    }
    if !flags.uidmap.is_empty() {
        spec.set_namespace(LinuxNamespace { kind: "user".to_owned(), path: String::new() });
        spec.linux.uid_mappings.clone_from(&flags.uidmap);
        spec.linux.gid_mappings.clone_from(&flags.gidmap);
    }
    for path in &flags.device {
        spec.add_devices(device_at(path)?);
    }
    if let Some(profile) = &flags.apparmor_profile {
        spec.process.apparmor_profile.clone_from(profile);
    }
    Ok(())
}

/// Sets the filter of system calls, which depends on the capabilities.
fn filter_calls(spec: &mut Spec, flags: &IsolationFlags) -> anyhow::Result<()> {
    if let Some(path) = &flags.seccomp_profile {
        spec.linux.seccomp = Some(read_profile(path)?);
    } else if flags.seccomp {
        let capabilities = spec.process.capabilities.get_or_insert_default();
        spec.linux.seccomp = Some(default_profile(&capabilities.bounding));
    }
    Ok(())
}

fn limit(spec: &mut Spec, flags: &LimitFlags) {
    if let Some(bytes) = flags.memory_limit.filter(|bytes| *bytes != 0) {
        let memory = spec.linux.resources.memory.get_or_insert_default();
        memory.limit = i64::try_from(bytes).ok();
    }
    let shares = flags.cpu_shares.unwrap_or(DEFAULT_CPU_SHARES);
    if shares > 0 {
        spec.cpu().shares = Some(shares);
    }
    if flags.cpus > 0.0 {
        #[expect(clippy::cast_possible_truncation, reason = "a fraction of a microsecond")]
        let quota = (flags.cpus * 100_000.0) as i64;
        (spec.cpu().quota, spec.cpu().period) = (Some(quota), Some(CPUS_PERIOD));
    }
    if flags.cpu_quota.is_some() || flags.cpu_period.is_some() {
        spec.cpu().quota = Some(flags.cpu_quota.unwrap_or(-1));
        spec.cpu().period = flags.cpu_period;
    }
    if let Some(burst) = flags.cpu_burst {
        spec.cpu().burst = Some(burst);
    }
    if let Some(cpus) = &flags.cpuset_cpus {
        spec.cpu().cpus.clone_from(cpus);
    }
    if let Some(nodes) = &flags.cpuset_mems {
        spec.cpu().mems.clone_from(nodes);
    }
    if let Some(path) = &flags.cgroup {
        spec.linux.cgroups_path.clone_from(path);
    }
    if let Some(class) = &flags.rdt_class {
        spec.linux.rest.insert("intelRdt".to_owned(), serde_json::json!({"closID": class}));
    }
}

fn host_file(path: &str) -> Mount {
    Mount {
        destination: path.to_owned(),
        kind: "bind".to_owned(),
        source: path.to_owned(),
        options: vec!["rbind".to_owned(), "ro".to_owned()],
        ..Mount::default()
    }
}
