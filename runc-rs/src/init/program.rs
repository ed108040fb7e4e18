//! The program to run: its environment, and where it is.

use std::{collections::HashSet, ffi::CString};

use rustix::{
    fs::{Access, AtFlags, CWD, FileType, accessat, stat},
    io::Errno,
};

use crate::error::Error;

/// The environment without doubles (the last of a name counts), and with
/// a HOME.
pub(crate) fn environment(variables: &[String], home: impl FnOnce() -> String) -> Vec<String> {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let mut seen = HashSet::new();
    let mut kept: Vec<String> =
        variables.iter().rev().filter(|variable| seen.insert(name(variable))).cloned().collect();
    kept.reverse();
    match kept.iter_mut().find(|variable| variable.starts_with("HOME=")) {
        None => kept.push(format!("HOME={}", home())),
        Some(empty) if empty == "HOME=" => *empty = format!("HOME={}", home()),
        Some(_) => {}
    }
    kept
}

/// Finds the program as execvp(3) would, and says in Go's words why it cannot be run.
pub(super) fn find(name: &str, environment: &[String]) -> Result<CString, Error> {
    let fail = |reason: &str| Error::Process(format!("exec: {name:?}: {reason}"));
    let c_string = |path: String| CString::new(path).map_err(|_| fail("invalid argument"));
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => c_string(name.to_owned()),
            Err(Errno::NOENT) => Err(fail(&format!("stat {name}: no such file or directory"))),
            Err(error) => Err(fail(&crate::error::Cause(error.into()).to_string())),
        };
    }
    let path = environment.iter().find_map(|variable| variable.strip_prefix("PATH="));
    let mut denied = false;
    for directory in path.unwrap_or_default().split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{directory}/{name}");
        match executable(&candidate) {
            Ok(()) => return c_string(candidate),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    if denied {
        return Err(fail("permission denied"));
    }
    Err(fail("executable file not found in $PATH"))
}

fn executable(path: &str) -> Result<(), Errno> {
    let found = stat(path)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => return Err(Errno::ISDIR),
        _ if found.st_mode & 0o111 == 0 => return Err(Errno::ACCESS),
        _ => {}
    }
    match accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // Linux before 5.8 has no such flag; then execve decides.
        Err(Errno::NOSYS | Errno::PERM) => Ok(()),
        result => result,
    }
}

/// Where the user with this number is at home, by the container's own /etc/passwd.
pub(super) fn home_of(uid: u32) -> String {
    let text = crate::proc::read_regular("/etc/passwd").unwrap_or_default();
    home_in(&text, uid).unwrap_or_else(|| "/".to_owned())
}

/// The home of a user in the text of a passwd(5).
pub(crate) fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let matches = fields.get(2)?.parse() == Ok(uid);
        let home = fields.get(5).filter(|home| !home.is_empty())?;
        matches.then(|| (*home).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments() {
        let cases: [(&str, &[&str], &[&str]); 5] = [
            ("nothing", &[], &["HOME=/h"]),
            ("own home", &["HOME=/x", "A=1"], &["HOME=/x", "A=1"]),
            ("empty home", &["HOME="], &["HOME=/h"]),
            ("last counts", &["A=1", "B=2", "A=3"], &["B=2", "A=3", "HOME=/h"]),
            ("value with =", &["A=b=c"], &["A=b=c", "HOME=/h"]),
        ];
        for (case, variables, want) in cases {
            let variables: Vec<_> = variables.iter().map(|&one| one.to_owned()).collect();
            assert_eq!(environment(&variables, || "/h".to_owned()), want, "{case}");
        }
    }

    #[test]
    fn homes() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\na:x:7:7:::\nb:x:8:8::/home/b:/bin/sh\n";
        let cases = [(0, Some("/root")), (7, None), (8, Some("/home/b")), (9, None)];
        for (uid, want) in cases {
            assert_eq!(home_in(passwd, uid).as_deref(), want, "{uid}");
        }
    }

    #[test]
    fn programs() {
        let path = ["PATH=/nowhere:/bin:/usr/bin".to_owned()];
        let text = |result: Result<CString, Error>| match result {
            Ok(path) => path.into_string().expect("UTF-8"),
            Err(error) => error.to_string(),
        };
        let prefix = "unable to start container process: exec: ";
        let cases = [
            ("sh", "/bin/sh".to_owned()),
            ("/bin/sh", "/bin/sh".to_owned()),
            ("no-such", format!("{prefix}\"no-such\": executable file not found in $PATH")),
            (
                "/proc/no/such",
                format!("{prefix}\"/proc/no/such\": stat /proc/no/such: no such file or directory"),
            ),
            ("/etc/passwd", format!("{prefix}\"/etc/passwd\": permission denied")),
            ("/etc", format!("{prefix}\"/etc\": is a directory")),
        ];
        for (name, want) in cases {
            assert_eq!(text(find(name, &path)), want, "{name}");
        }
    }
}
