//! What a runtime leaves of a container that it did not come to make.
//!
//! A runtime that is killed may have made cgroups before it wrote down that there is a container, and
//! then its own `delete` knows of none. runc is killed so by containerd's shims: when the shim dies, and
//! also when the daemon does, since a call ends there with its connection.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use sys::mount::holders::points_of;

/// How long processes of the runtime may take to be gone that see the end of who started them.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Removes the `cgroup` of a container that was never made, by its absolute path, in all hierarchies, if
/// nobody is in it; as runtimes' own `delete` does, whoever made it. Waits for a second at most while
/// somebody is.
///
/// A path relative to the runtime's own cgroup is left alone, and so are systemd's, which removes scopes
/// that are empty.
pub(super) async fn remove_cgroups(cgroup: String) -> io::Result<()> {
    let mut tries = 0;
    loop {
        let path = cgroup.clone();
        let removed = tokio::task::spawn_blocking(move || remove_once(&path)).await;
        match removed.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            removed => return removed,
        }
    }
}

/// Goes on after an error, and tells of the last.
fn remove_once(cgroup: &str) -> io::Result<()> {
    let Some(below) = below_root(cgroup) else { return Ok(()) };
    let mut result = Ok(());
    for hierarchy in points_of(&["cgroup", "cgroup2"])? {
        match fs::remove_dir(hierarchy.join(&below)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => result = Err(error),
            Ok(()) => {
                let hierarchy = hierarchy.display();
                tracing::info!(cgroup, %hierarchy, "removed a cgroup of a half-made container");
            }
        }
    }
    result
}

/// The path below a hierarchy's root; `None` for what is no path from there, and for the root.
fn below_root(cgroup: &str) -> Option<PathBuf> {
    let below = Path::new(cgroup).strip_prefix("/").ok()?;
    let is_plain = below.components().all(|it| matches!(it, Component::Normal(_)));
    (is_plain && !below.as_os_str().is_empty()).then(|| below.to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn paths() {
        let cases = [
            ("usual", "/default/c", Some("default/c")),
            ("more slashes", "//default//c/", Some("default/c")),
            ("the root", "/", None),
            ("empty", "", None),
            ("relative", "default/c", None),
            ("upwards", "/default/../../etc", None),
            ("of systemd", "system.slice:cri-containerd:c", None),
        ];
        for (case, text, want) in cases {
            assert_eq!(below_root(text).as_deref(), want.map(Path::new), "{case}");
        }
    }

    /// Where this machine lets us make cgroups.
    fn made(name: &str) -> Vec<PathBuf> {
        let points = points_of(&["cgroup", "cgroup2"]).expect("proc");
        let paths = points.into_iter().map(|point| point.join(name));
        paths.filter(|path| fs::create_dir(path).is_ok()).collect()
    }

    #[tokio::test]
    async fn an_empty_one_goes_and_another_stays() {
        let name = format!("gantry-half-made-{}", std::process::id());
        let cgroups = made(&name);
        assert!(!cgroups.is_empty(), "no hierarchy to make a cgroup in");
        remove_cgroups(format!("/{name}")).await.expect("removed");
        assert!(!cgroups.iter().any(|cgroup| cgroup.exists()), "{cgroups:?}");

        let cgroups = made(&name);
        let mut inside =
            Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().expect("sleep");
        let joined = cgroups
            .iter()
            .find(|cgroup| fs::write(cgroup.join("cgroup.procs"), inside.id().to_string()).is_ok());
        let refused = remove_cgroups(format!("/{name}")).await;
        let stays = joined.is_some_and(|cgroup| cgroup.exists());
        inside.kill().expect("killed");
        inside.wait().expect("waited for");
        remove_cgroups(format!("/{name}")).await.expect("removed after its end");
        assert!(stays && refused.is_err(), "{joined:?}: {refused:?}");
        assert!(!cgroups.iter().any(|cgroup| cgroup.exists()), "{cgroups:?}");
    }
}
