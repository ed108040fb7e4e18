//! Kernel parameters of the container's Linux namespaces.

use std::collections::BTreeMap;

use crate::{error::Error, proc::Procfs};

/// The name with dots between its parts. `net/ipv4/conf/eth0.1/x` has slashes because a part has a
/// dot in it, and then that becomes a slash, as sysctl(8) does.
pub(crate) fn dotted(name: &str) -> String {
    swap_if_first(name, '/')
}

/// The path below /proc/sys.
fn path(name: &str) -> String {
    swap_if_first(name, '.')
}

/// Whether the name leads to a file below /proc/sys, and not out of it.
pub(crate) fn is_allowed_path(name: &str) -> bool {
    path(name).split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Exchanges dots and slashes when `separator` is the first of either.
fn swap_if_first(name: &str, separator: char) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with(separator) => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// Sets the parameters.
pub(super) fn apply(parameters: &BTreeMap<String, String>, procfs: &Procfs) -> Result<(), Error> {
    for (name, value) in parameters {
        procfs.write(&format!("sys/{}", path(name)), value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let cases = [
            ("net.ipv4.ip_forward", "net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.1/x", "net.ipv4.conf.eth0/1.x", "net/ipv4/conf/eth0.1/x"),
            ("net.ipv4.conf.eth0/1.x", "net.ipv4.conf.eth0/1.x", "net/ipv4/conf/eth0.1/x"),
        ];
        for (name, want_dotted, want_path) in cases {
            assert_eq!(
                (dotted(name), path(name)),
                (want_dotted.into(), want_path.into()),
                "{name}"
            );
        }
    }
}
