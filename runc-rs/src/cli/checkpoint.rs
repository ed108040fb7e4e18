//! `checkpoint`, and the flags that it shares with `restore`.

use std::path::{Path, PathBuf};

use super::flags::{ANYWHERE, Flag, Parsed, switch, value};
use crate::{
    checkpoint::{Options, Shared, checkpoint},
    error::Error,
    log,
    settings::Settings,
};

/// The flags that `checkpoint` and `restore` have in common.
pub(super) const SHARED: [Flag; 9] = [
    value("image-path", ""),
    value("work-path", ""),
    switch("tcp-established", ""),
    switch("ext-unix-sk", ""),
    switch("shell-job", ""),
    switch("lazy-pages", ""),
    switch("file-locks", ""),
    value("manage-cgroups-mode", ""),
    value("empty-ns", ""),
];

/// The flag that both have, too, and which makes them ten.
pub(super) const AUTO_DEDUP: Flag = switch("auto-dedup", "");

const FLAGS: [Flag; 8] = [
    AUTO_DEDUP,
    value("parent-path", ""),
    switch("leave-running", ""),
    switch("tcp-skip-in-flight", ""),
    switch("link-remap", ""),
    value("status-fd", ""),
    value("page-server", ""),
    switch("pre-dump", ""),
];

pub(super) fn run(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let flags = [SHARED.as_slice(), &FLAGS].concat();
    let parsed = Parsed::new(words, &flags, ANYWHERE)?;
    parsed.expect("checkpoint", 1, 1)?;
    warn_rootless();
    let container = super::container(settings, &parsed)?;
    let parent = parsed.value("parent-path").filter(|path| !path.is_empty());
    let server = parsed.value("page-server").filter(|text| !text.is_empty());
    let options = Options {
        shared: shared(&parsed)?,
        parent_path: parent.map(str::to_owned),
        leave_running: parsed.is_on("leave-running")?,
        tcp_skip_in_flight: parsed.is_on("tcp-skip-in-flight")?,
        link_remap: parsed.is_on("link-remap")?,
        pre_dump: parsed.is_on("pre-dump")?,
        status_fd: parsed.number("status-fd")?.filter(|&number: &i32| number != -1),
        page_server: server.map(page_server).transpose()?,
    };
    checkpoint(container, &options)?;
    Ok(0)
}

/// Says that criu's doings without root's rights are not tested.
pub(super) fn warn_rootless() {
    if !rustix::process::geteuid().is_root() {
        log::warn("runc checkpoint is untested with rootless containers");
    }
}

/// What the common flags say.
pub(super) fn shared(parsed: &Parsed) -> Result<Shared, Error> {
    let path = |name| parsed.value(name).filter(|path| !path.is_empty());
    Ok(Shared {
        image_path: absolute(path("image-path").unwrap_or("checkpoint"))?,
        work_path: path("work-path").map(absolute).transpose()?,
        tcp_established: parsed.is_on("tcp-established")?,
        ext_unix_sk: parsed.is_on("ext-unix-sk")?,
        shell_job: parsed.is_on("shell-job")?,
        file_locks: parsed.is_on("file-locks")?,
        auto_dedup: parsed.is_on("auto-dedup")?,
        lazy_pages: parsed.is_on("lazy-pages")?,
        cgroup_mode: parsed.value("manage-cgroups-mode").unwrap_or_default().to_owned(),
        empty_namespaces: parsed.values("empty-ns").into_iter().map(str::to_owned).collect(),
    })
}

fn absolute(path: &str) -> Result<PathBuf, Error> {
    std::path::absolute(Path::new(path)).map_err(|error| Error::file("resolve", path, error))
}

/// Takes `ADDRESS:PORT` apart, where the address may be `[::1]`.
fn page_server(text: &str) -> Result<(String, i32), Error> {
    let usage = || Error::Usage("Use --page-server ADDRESS:PORT to specify page server".to_owned());
    let (address, port) = text.rsplit_once(':').ok_or_else(usage)?;
    let address = match address.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or_else(usage)?,
        // More than one colon are those of an address that is not in brackets.
        None if address.contains(':') => return Err(usage()),
        None => address,
    };
    if address.is_empty() || port.is_empty() {
        return Err(usage());
    }
    let port: u16 = port.parse().map_err(|_| Error::Usage("Invalid port number".to_owned()))?;
    Ok((address.to_owned(), i32::from(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_servers() {
        const USE: &str = "Use --page-server ADDRESS:PORT to specify page server";
        let cases = [
            ("127.0.0.1:27", Ok(("127.0.0.1", 27))),
            ("host:1", Ok(("host", 1))),
            ("[::1]:9", Ok(("::1", 9))),
            ("127.0.0.1", Err(USE)),
            (":1", Err(USE)),
            ("host:", Err(USE)),
            ("::1", Err(USE)),
            ("[::1:9", Err(USE)),
            ("host:x", Err("Invalid port number")),
            ("host:65536", Err("Invalid port number")),
        ];
        for (text, want) in cases {
            let got = page_server(text).map_err(|error| error.to_string());
            let want = want.map(|(address, port)| (address.to_owned(), port));
            assert_eq!(got, want.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn shared_flags() {
        let words: Vec<String> = "--image-path /i --work-path /w --tcp-established --empty-ns \
                                  network --manage-cgroups-mode=soft x"
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect();
        let parsed = Parsed::new(&words, &SHARED, ANYWHERE).expect("flags");
        let shared = shared(&parsed).expect("values");
        assert_eq!(shared.image_path, Path::new("/i"));
        assert_eq!(shared.work_path.as_deref(), Some(Path::new("/w")));
        assert!(shared.tcp_established && !shared.file_locks);
        assert_eq!(
            (shared.cgroup_mode.as_str(), shared.empty_namespaces),
            ("soft", vec!["network".to_owned()])
        );
    }
}
