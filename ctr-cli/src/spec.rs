//! The OCI runtime specification of a container.
//!
//! [`Spec::new`] is containerd's default for Linux; changes, made of command-line flags and
//! the image's configuration, are applied to it in the order of stock `ctr`, because later ones
//! win. All of it is pure except for host devices and environment files, which are read when the
//! command line is turned into changes, and for the image's users ([`users`]).
//!
//! Source: containerd, `pkg/oci` and `cmd/ctr/commands/run`.

mod capabilities;
mod defaults;
mod devices;
mod flags;
mod image_config;
mod seccomp;
mod types;
mod users;

pub(crate) use capabilities::current as current_capabilities;
pub(crate) use devices::{device_at, host_devices};
pub(crate) use flags::{parse_id_mapping, parse_linux_namespace, parse_mount, parse_rlimit};
pub(crate) use image_config::{ImageConfig, STOP_SIGNAL_LABEL, apply_image, container_labels};
pub(crate) use seccomp::{default_profile, read_profile};
pub(crate) use types::*;
pub(crate) use users::{AccountFiles, UserSpec};

/// Sets variables in an environment: a known name is replaced in place, others are added, and a
/// name without `=` is removed.
pub(crate) fn set_env(env: &mut Vec<String>, changes: &[String]) {
    for change in changes {
        let (name, value) = match change.split_once('=') {
            Some((name, _)) => (name, Some(change)),
            None => (change.as_str(), None),
        };
        let is_name = |entry: &String| entry.split('=').next() == Some(name);
        match (env.iter().position(is_name), value) {
            (Some(at), Some(value)) => env[at].clone_from(value),
            (Some(at), None) => drop(env.remove(at)),
            (None, Some(value)) => env.push(value.clone()),
            (None, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment() {
        let cases: [(&str, &[&str], &[&str]); 5] = [
            ("replace", &["A=2"], &["A=2", "B=1"]),
            ("add", &["C=3"], &["A=1", "B=1", "C=3"]),
            ("remove", &["A"], &["B=1"]),
            ("remove unknown", &["X"], &["A=1", "B=1"]),
            ("value with equals sign", &["A=x=y"], &["A=x=y", "B=1"]),
        ];
        for (case, changes, want) in cases {
            let mut env = vec!["A=1".to_owned(), "B=1".to_owned()];
            let changes: Vec<String> = changes.iter().map(|&change| change.to_owned()).collect();
            set_env(&mut env, &changes);
            assert_eq!(env, want, "{case}");
        }
    }
}
