//! What is said to criu and what it answers: `rpc.proto` of criu, those fields that a runtime
//! uses.
//!
//! Fields that are set are written even when they have the default value: a `false` that is said
//! takes precedence over `/etc/criu/default.conf`, one that is not said does not.

use std::fmt;

use super::wire::{Malformed, Value, Writer, fields};

/// What a request asks for, and what a response answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kind(i32);

impl Kind {
    pub(crate) const DUMP: Self = Self(1);
    pub(crate) const RESTORE: Self = Self(2);
    pub(crate) const PRE_DUMP: Self = Self(4);
    pub(crate) const NOTIFY: Self = Self(6);
    pub(crate) const FEATURE_CHECK: Self = Self(9);
    pub(crate) const VERSION: Self = Self(10);
}

impl fmt::Display for Kind {
    /// The names of `rpc.proto`, which runc's messages have, too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 14] = [
            "EMPTY",
            "DUMP",
            "RESTORE",
            "CHECK",
            "PRE_DUMP",
            "PAGE_SERVER",
            "NOTIFY",
            "CPUINFO_DUMP",
            "CPUINFO_CHECK",
            "FEATURE_CHECK",
            "VERSION",
            "WAIT_PID",
            "PAGE_SERVER_CHLD",
            "SINGLE_PRE_DUMP",
        ];
        match usize::try_from(self.0).ok().and_then(|number| NAMES.get(number)) {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// How criu treats cgroups, in the numbers of `criu_cg_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CgroupMode {
    Ignore = 0,
    Soft = 3,
    Full = 4,
    Strict = 5,
    /// What criu thinks best.
    #[default]
    Default = 6,
}

/// A mount that is not dumped, and what stands for it: on dump the name that it gets, on restore
/// the path of what is mounted there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExternalMount {
    pub(crate) key: String,
    pub(crate) value: String,
}

/// A descriptor of criu's own that takes the place of one that was dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inherit {
    pub(crate) key: String,
    pub(crate) fd: i32,
}

/// What to do, in the fields of `criu_opts`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "this is the form of the message")]
pub(crate) struct Options {
    /// A descriptor of this process, not of criu's.
    pub(crate) images_dir_fd: i32,
    pub(crate) pid: Option<i32>,
    pub(crate) leave_running: Option<bool>,
    pub(crate) ext_unix_sk: bool,
    pub(crate) tcp_established: bool,
    pub(crate) evasive_devices: Option<bool>,
    pub(crate) shell_job: bool,
    pub(crate) file_locks: bool,
    pub(crate) log_file: String,
    /// Address and port.
    pub(crate) page_server: Option<(String, i32)>,
    pub(crate) root: String,
    pub(crate) parent_image: Option<String>,
    pub(crate) track_memory: Option<bool>,
    pub(crate) auto_dedup: bool,
    /// A descriptor of this process.
    pub(crate) work_dir_fd: Option<i32>,
    pub(crate) link_remap: Option<bool>,
    pub(crate) external_mounts: Vec<ExternalMount>,
    /// Controller and path, of each cgroup in which the restored processes shall be.
    pub(crate) cgroup_roots: Vec<(String, String)>,
    pub(crate) restore_as_sibling: Option<bool>,
    pub(crate) inherit: Vec<Inherit>,
    pub(crate) cgroup_mode: CgroupMode,
    pub(crate) external: Vec<String>,
    /// `CLONE_NEW*` bits of namespaces that are made, but not filled.
    pub(crate) empty_namespaces: u32,
    /// Kind and file, of each namespace to be joined.
    pub(crate) join_namespaces: Vec<(String, String)>,
    pub(crate) freeze_cgroup: Option<String>,
    pub(crate) tcp_skip_in_flight: Option<bool>,
    pub(crate) lazy_pages: bool,
    /// A descriptor of this process.
    pub(crate) status_fd: Option<i32>,
    pub(crate) config_file: Option<String>,
    pub(crate) lsm_profile: Option<String>,
    pub(crate) lsm_mount_context: Option<String>,
}

/// All that runc logs.
const LOG_LEVEL: i32 = 4;

impl Options {
    fn write(&self, out: &mut Writer) {
        self.write_first(out);
        for ExternalMount { key, value } in &self.external_mounts {
            out.message(23, |out| pair(out, key, value));
        }
        out.switch(24, true); // manage_cgroups, for versions without a mode.
        for (controller, path) in &self.cgroup_roots {
            out.message(25, |out| pair(out, controller, path));
        }
        switch(out, 26, self.restore_as_sibling);
        for Inherit { key, fd } in &self.inherit {
            out.message(27, |out| {
                out.text(1, key);
                out.number(2, *fd);
            });
        }
        out.number(34, self.cgroup_mode as i32);
        for name in &self.external {
            out.text(37, name);
        }
        out.number(38, self.empty_namespaces);
        for (kind, file) in &self.join_namespaces {
            out.message(39, |out| pair(out, kind, file));
        }
        text(out, 44, self.freeze_cgroup.as_ref());
        switch(out, 46, self.tcp_skip_in_flight);
        out.switch(48, self.lazy_pages);
        number(out, 49, self.status_fd);
        out.switch(50, true); // orphan_pts_master: the other end of a terminal is not in the dump.
        text(out, 51, self.config_file.as_ref());
        text(out, 53, self.lsm_profile.as_ref());
        text(out, 63, self.lsm_mount_context.as_ref());
    }

    fn write_first(&self, out: &mut Writer) {
        out.number(1, self.images_dir_fd);
        number(out, 2, self.pid);
        switch(out, 3, self.leave_running);
        out.switch(4, self.ext_unix_sk);
        out.switch(5, self.tcp_established);
        switch(out, 6, self.evasive_devices);
        out.switch(7, self.shell_job);
        out.switch(8, self.file_locks);
        out.number(9, LOG_LEVEL);
        out.text(10, &self.log_file);
        if let Some((address, port)) = &self.page_server {
            out.message(11, |out| {
                out.text(1, address);
                out.number(2, *port);
            });
        }
        out.switch(12, true); // notify_scripts: this side is told where criu is.
        out.text(13, &self.root);
        text(out, 14, self.parent_image.as_ref());
        switch(out, 15, self.track_memory);
        out.switch(16, self.auto_dedup);
        number(out, 17, self.work_dir_fd);
        switch(out, 18, self.link_remap);
    }
}

fn pair(out: &mut Writer, first: &str, second: &str) {
    out.text(1, first);
    out.text(2, second);
}

fn switch(out: &mut Writer, field: u32, value: Option<bool>) {
    if let Some(on) = value {
        out.switch(field, on);
    }
}

fn number(out: &mut Writer, field: u32, value: Option<i32>) {
    if let Some(value) = value {
        out.number(field, value);
    }
}

fn text(out: &mut Writer, field: u32, value: Option<&String>) {
    if let Some(value) = value {
        out.text(field, value);
    }
}

/// What a criu, on this kernel, may be able to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// Finds out which pages were written to since the last dump.
    pub(crate) memory_tracking: bool,
    /// Brings pages when they are needed.
    pub(crate) lazy_pages: bool,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    Version,
    CheckFeatures(Features),
    /// Dump, pre-dump or restore.
    Do(Kind, &'a Options),
    /// The answer to a notification: go on.
    Proceed,
}

impl Request<'_> {
    /// What it asks for.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Version => Kind::VERSION,
            Self::CheckFeatures(_) => Kind::FEATURE_CHECK,
            Self::Do(kind, _) => *kind,
            Self::Proceed => Kind::NOTIFY,
        }
    }

    /// The message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.number(1, self.kind().0);
        match self {
            Self::Version => {}
            Self::Do(_, options) => out.message(2, |out| options.write(out)),
            Self::Proceed => out.switch(3, true),
            Self::CheckFeatures(features) => out.message(5, |out| {
                // One that is not asked for is not answered.
                switch(out, 1, features.memory_tracking.then_some(true));
                switch(out, 2, features.lazy_pages.then_some(true));
            }),
        }
        out.into_bytes()
    }
}

/// What criu says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) kind: Kind,
    pub(crate) success: bool,
    /// With a notification, what has come to pass, and with whom.
    pub(crate) script: String,
    pub(crate) pid: i32,
    pub(crate) error_number: i32,
    pub(crate) features: Features,
    /// Major, minor and sublevel.
    pub(crate) version: (i32, i32, i32),
    /// Whether it was built from between two versions.
    pub(crate) from_git: bool,
}

impl Response {
    /// Reads a message.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut response = Self::default();
        for (field, value) in fields(bytes)? {
            match field {
                1 => response.kind = Kind(value.number()),
                2 => response.success = value.is_on(),
                5 => response.read_notification(value)?,
                7 => response.error_number = value.number(),
                8 => response.read_features(value)?,
                10 => response.read_version(value)?,
                _ => {}
            }
        }
        Ok(response)
    }

    fn read_notification(&mut self, value: Value<'_>) -> Result<(), Malformed> {
        for (field, value) in fields(value.bytes())? {
            match field {
                1 => self.script = value.text(),
                2 => self.pid = value.number(),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_features(&mut self, value: Value<'_>) -> Result<(), Malformed> {
        for (field, value) in fields(value.bytes())? {
            match field {
                1 => self.features.memory_tracking = value.is_on(),
                2 => self.features.lazy_pages = value.is_on(),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_version(&mut self, value: Value<'_>) -> Result<(), Malformed> {
        for (field, value) in fields(value.bytes())? {
            match field {
                1 => self.version.0 = value.number(),
                2 => self.version.1 = value.number(),
                3 => self.from_git = true,
                4 => self.version.2 = value.number(),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Reads a message, and writes one with the same text and number that can be read, too.
pub(super) fn fuzz(data: &[u8]) {
    let Ok(response) = Response::decode(data) else { return };
    let mut out = Writer::default();
    out.number(1, response.kind.0);
    out.switch(2, response.success);
    out.message(5, |out| {
        out.text(1, &response.script);
        out.number(2, response.pid);
    });
    out.number(7, response.error_number);
    let again = Response::decode(&out.into_bytes()).expect("can be read");
    let Response { kind, success, script, pid, error_number, .. } = response;
    let want = Response { kind, success, script, pid, error_number, ..Response::default() };
    assert_eq!(again, want);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<_> = hex.as_bytes().chunks(2).collect();
        let byte = |pair: &&[u8]| {
            u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex")
        };
        digits.iter().map(byte).collect()
    }

    fn dump() -> Options {
        Options {
            images_dir_fd: 5,
            pid: Some(4711),
            leave_running: Some(true),
            tcp_established: true,
            file_locks: true,
            log_file: "dump.log".to_owned(),
            page_server: Some(("10.0.0.1".to_owned(), 27277)),
            root: "/b/rootfs".to_owned(),
            parent_image: Some("../parent".to_owned()),
            track_memory: Some(true),
            work_dir_fd: Some(300),
            link_remap: Some(true),
            external_mounts: [("/etc/hosts", "/etc/hosts"), ("/proc/kcore", "/dev/null")]
                .map(|(key, value)| ExternalMount { key: key.to_owned(), value: value.to_owned() })
                .to_vec(),
            external: vec!["net[4026531840]:extRootNetNS".to_owned()],
            empty_namespaces: 1_073_741_824,
            freeze_cgroup: Some("/sys/fs/cgroup/freezer/c".to_owned()),
            tcp_skip_in_flight: Some(false),
            lazy_pages: true,
            status_fd: Some(7),
            config_file: Some("/etc/criu/runc.conf".to_owned()),
            ..Options::default()
        }
    }

    fn restore() -> Options {
        let inherit = |key: &str, fd| Inherit { key: key.to_owned(), fd };
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        Options {
            images_dir_fd: 5,
            ext_unix_sk: true,
            evasive_devices: Some(true),
            shell_job: true,
            log_file: "restore.log".to_owned(),
            root: "/run/c/criu-root".to_owned(),
            auto_dedup: true,
            cgroup_roots: vec![pair("cpu", "/c"), pair("", "/")],
            restore_as_sibling: Some(true),
            inherit: vec![inherit("extRootNetNS", 9), inherit("pipe:[1]", 0)],
            cgroup_mode: CgroupMode::Ignore,
            empty_namespaces: 1_073_741_824,
            join_namespaces: vec![pair("ipc", "/proc/1/ns/ipc")],
            lsm_profile: Some("apparmor:p".to_owned()),
            lsm_mount_context: Some("ctx".to_owned()),
            ..Options::default()
        }
    }

    /// The bytes are those that `protoc --encode` makes with criu's own `rpc.proto`.
    #[test]
    fn requests() {
        let both = Features { memory_tracking: true, lazy_pages: true };
        let cases = [
            ("version", Request::Version, "080a"),
            ("features", Request::CheckFeatures(both), "08092a0408011001"),
            ("proceed", Request::Proceed, "08061801"),
            (
                "dump",
                Request::Do(Kind::DUMP, &dump()),
                "080112ee01080510e724180120002801380040014804520864756d702e6c6f675a0e0a0831302e302e\
                 302e31108dd50160016a092f622f726f6f74667372092e2e2f706172656e7478018001008801ac0290\
                 0101ba01180a0a2f6574632f686f737473120a2f6574632f686f737473ba01180a0b2f70726f632f6b\
                 636f726512092f6465762f6e756c6cc00101900206aa021c6e65745b343032363533313834305d3a65\
                 7874526f6f744e65744e53b0028080808004e202182f7379732f66732f6367726f75702f667265657a\
                 65722f63f002008003018803079003019a03132f6574632f637269752f72756e632e636f6e66",
            ),
            (
                "restore",
                Request::Do(Kind::RESTORE, &restore()),
                "080212a9010805200128003001380140004804520b726573746f72652e6c6f6760016a102f72756e2f\
                 632f637269752d726f6f74800101c00101ca01090a0363707512022f63ca01050a0012012fd00101da\
                 01100a0c657874526f6f744e65744e531009da010c0a08706970653a5b315d1000900200b002808080\
                 8004ba02150a03697063120e2f70726f632f312f6e732f697063800300900301aa030a61707061726d\
                 6f723a70fa0303637478",
            ),
        ];
        for (case, request, want) in cases {
            assert_eq!(hex(&request.encode()), want, "{case}");
        }
    }

    #[test]
    fn responses() {
        let of = |kind, success| Response { kind, success, ..Response::default() };
        let cases = [
            (
                "notification",
                "080610012a110a0c706f73742d726573746f726510e724",
                Response { script: "post-restore".to_owned(), pid: 4711, ..of(Kind::NOTIFY, true) },
            ),
            (
                "version",
                "080a10015226080410021a1276342e322d32322d67326366386631336361320c43524955544942494c\
                 495459",
                Response { version: (4, 2, 0), from_git: true, ..of(Kind::VERSION, true) },
            ),
            (
                "failure",
                "0801100038ccffffffffffffffff014a026e6f",
                Response { error_number: -52, ..of(Kind::DUMP, false) },
            ),
            (
                "features",
                "08091001420408011000",
                Response {
                    features: Features { memory_tracking: true, lazy_pages: false },
                    ..of(Kind::FEATURE_CHECK, true)
                },
            ),
            ("restored", "0802100122020807", of(Kind::RESTORE, true)),
        ];
        for (case, hex, want) in &cases {
            assert_eq!(Response::decode(&bytes(hex)).as_ref(), Ok(want), "{case}");
        }
        for cut in 1..40 {
            // Whatever it is, it is no reason to panic.
            let _ = Response::decode(&bytes(cases[1].1)[..cut]);
        }
    }

    #[test]
    fn names() {
        let cases = [
            (Kind::DUMP, "DUMP"),
            (Kind::NOTIFY, "NOTIFY"),
            (Kind(13), "SINGLE_PRE_DUMP"),
            (Kind(-1), "-1"),
        ];
        for (kind, want) in cases {
            assert_eq!(kind.to_string(), want);
        }
    }
}
