//! `exec`.

use std::path::{Path, PathBuf};

use super::flags::{Flag, Parsed, switch, value};
use crate::{
    container::Container,
    error::Error,
    exec::{self, SubCgroup},
    process::Waiter,
    seal,
    settings::Settings,
    spec::{Process, Spec},
};

const FLAGS: [Flag; 17] = [
    value("console-socket", ""),
    value("pidfd-socket", ""),
    value("cwd", ""),
    value("env", "e"),
    switch("tty", "t"),
    value("user", "u"),
    value("additional-gids", "g"),
    value("process", "p"),
    switch("detach", "d"),
    value("pid-file", ""),
    value("process-label", ""),
    value("apparmor", ""),
    switch("no-new-privs", ""),
    value("cap", "c"),
    value("preserve-fds", ""),
    value("cgroup", ""),
    switch("ignore-paused", ""),
];

pub(super) fn run(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &FLAGS, 1)?;
    parsed.expect("exec", 1, usize::MAX)?;
    seal::seal()?;
    let container = super::container(settings, &parsed)?;
    let detach = parsed.is_on("detach")?;
    let options = exec::Options {
        process: super::process_options(&parsed, detach)?,
        ignore_paused: parsed.is_on("ignore-paused")?,
        cgroups: sub_cgroups(&parsed.values("cgroup"))?,
    };
    let process = process(&parsed, &container)?;
    if detach {
        exec::exec(settings, &container, process, &options)?;
        return Ok(0);
    }
    let waiter = Waiter::new(true)?;
    let started = exec::exec(settings, &container, process, &options)?;
    waiter.wait(&started)
}

/// The process that the flags describe: one of its own, or the container's with changes.
fn process(parsed: &Parsed, container: &Container) -> Result<Process, Error> {
    if let Some(path) = parsed.value("process") {
        return Ok(Process::load(Path::new(path))?);
    }
    let spec = Spec::load(Path::new(container.state().bundle()))?;
    let Some(mut process) = spec.process else {
        return Err(Error::Usage("process property must not be empty".to_owned()));
    };
    process.args = parsed.arguments[1..].to_vec();
    if process.args.is_empty() {
        return Err(Error::Usage("exec args cannot be empty".to_owned()));
    }
    change(&mut process, parsed)?;
    process.check("command line")?;
    Ok(process)
}

fn change(process: &mut Process, parsed: &Parsed) -> Result<(), Error> {
    if let Some(cwd) = parsed.value("cwd").filter(|cwd| !cwd.is_empty()) {
        process.cwd = cwd.to_owned();
    }
    if let Some(profile) = parsed.value("apparmor").filter(|profile| !profile.is_empty()) {
        process.apparmor_profile = profile.to_owned();
    }
    if let Some(label) = parsed.value("process-label").filter(|label| !label.is_empty()) {
        process.selinux_label = label.to_owned();
    }
    let added = parsed.values("cap").into_iter().map(str::to_owned).collect::<Vec<_>>();
    if !added.is_empty() {
        let sets = process.capabilities.get_or_insert_default();
        sets.bounding.extend(added.iter().cloned());
        sets.effective.extend(added.iter().cloned());
        sets.permitted.extend(added.iter().cloned());
        // Ambient ones must be inheritable, too, so this is of use only where some are.
        if !sets.inheritable.is_empty() {
            sets.ambient.extend(added);
        }
        // Not the inheritable set: with it, files could hand capabilities on (CVE-2022-29162).
    }
    process.terminal = parsed.is_on("tty")?;
    if parsed.is_on("no-new-privs")? {
        process.no_new_privileges = true;
    }
    process.env.extend(parsed.values("env").into_iter().map(str::to_owned));
    if let Some(user) = parsed.value("user").filter(|user| !user.is_empty()) {
        let (uid, gid) = user_ids(user)?;
        process.user.uid = uid;
        if let Some(gid) = gid {
            process.user.gid = gid;
        }
    }
    for text in parsed.values("additional-gids") {
        process.user.additional_gids.push(number(text, "gid")?);
    }
    Ok(())
}

/// Reads `[<controller>[,<controller>...]:]<path>`; without a controller there is only one.
fn sub_cgroups(texts: &[&str]) -> Result<Vec<SubCgroup>, Error> {
    let refuse = |text: &str, why: &str| {
        Err(Error::Usage(format!("invalid --cgroup argument: {text} ({why})")))
    };
    let mut found: Vec<SubCgroup> = Vec::new();
    for text in texts {
        let path = |path: &str| PathBuf::from(path.trim_start_matches('/'));
        match text.split_once(':') {
            None if texts.len() == 1 => {
                return Ok(vec![SubCgroup { controller: None, path: path(text) }]);
            }
            None => return refuse(text, "missing <controller>: prefix"),
            Some(("", _)) => return refuse(text, "empty <controller> prefix"),
            Some((controllers, below)) => {
                for controller in controllers.split(',') {
                    let controller = Some(controller.to_owned());
                    if found.iter().any(|known| known.controller == controller) {
                        return refuse(text, "controller specified multiple times");
                    }
                    found.push(SubCgroup { controller, path: path(below) });
                }
            }
        }
    }
    Ok(found)
}

/// Reads `<uid>[:<gid>]`. Nothing but digits is a number, and no number is too large for one, so
/// that no spelling means another user than it says (CVE-2026-30892).
fn user_ids(text: &str) -> Result<(u32, Option<u32>), Error> {
    match text.split_once(':') {
        None => Ok((number(text, "uid")?, None)),
        Some((uid, gid)) => Ok((number(uid, "uid")?, Some(number(gid, "gid")?))),
    }
}

fn number(text: &str, what: &str) -> Result<u32, Error> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = text.parse::<u32>().ok().filter(|&id| digits && id < i32::MAX as u32);
    parsed.ok_or_else(|| Error::Usage(format!("bad {what}: {text:?}")))
}

/// What is fuzzed; see [`crate::fuzz`].
pub(super) fn fuzz(words: &[String]) {
    let Ok(parsed) = Parsed::new(words, &FLAGS, 1) else { return };
    let _ = sub_cgroups(&parsed.values("cgroup"));
    let mut process = Process::default();
    if change(&mut process, &parsed).is_ok() {
        assert_ne!(process.user.uid, u32::MAX, "{words:?}");
        assert!(process.capabilities.is_none_or(|sets| sets.inheritable.is_empty()), "{words:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups() {
        let one = |controller: Option<&str>, path: &str| SubCgroup {
            controller: controller.map(str::to_owned),
            path: PathBuf::from(path),
        };
        let cases: [(&[&str], _); 6] = [
            (&[], Some(vec![])),
            (&["/a/b"], Some(vec![one(None, "a/b")])),
            (&["cpu,memory:a"], Some(vec![one(Some("cpu"), "a"), one(Some("memory"), "a")])),
            (&["a", "b"], None),
            (&[":a"], None),
            (&["cpu:a", "cpu:b"], None),
        ];
        for (texts, want) in cases {
            assert_eq!(sub_cgroups(texts).ok(), want, "{texts:?}");
        }
    }

    #[test]
    fn users() {
        let cases = [
            ("0", Some((0, None))),
            ("1000:100", Some((1000, Some(100)))),
            ("2147483646", Some((2_147_483_646, None))),
            ("2147483648", None),
            ("4294967296", None),
            ("+1", None),
            ("-1", None),
            ("0:", None),
            (":0", None),
            ("1:x", None),
            ("1:2:3", None),
            ("root", None),
        ];
        for (text, want) in cases {
            assert_eq!(user_ids(text).ok(), want, "{text:?}");
        }
    }
}
