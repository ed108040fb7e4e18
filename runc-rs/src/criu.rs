//! Talks to criu, the program that takes running processes apart into files and makes processes
//! of such files.
//!
//! There is a process of it for each request ([`session`]), and the messages are protocol buffers
//! ([`message`], [`wire`]), of which it needs so little that there is no library for them here.

pub(crate) mod log;
pub(crate) mod message;
pub(crate) mod session;
mod wire;

use self::{
    message::{Features, Request, Response},
    session::{Place, Session},
};
use crate::error::Error;

/// The oldest criu that tells its version.
const VERSION_MIN: u32 = 30_000;

/// A criu that is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Criu {
    /// As `criu` counts it: 31701 is 3.17.1.
    pub(crate) version: Version,
}

/// A version, as one number: 31701 is 3.17.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32);

impl Version {
    /// Keeps external network namespaces.
    pub(crate) const EXTERNAL_NET: Self = Self(31_100);
    /// Freezes by cgroup v2, and restores into time namespaces.
    pub(crate) const FREEZER_V2: Self = Self(31_400);
    /// Keeps external pid namespaces, and says by a notification that it serves pages.
    pub(crate) const EXTERNAL_PID: Self = Self(31_500);
    /// Takes another LSM profile than was dumped.
    pub(crate) const LSM_PROFILE: Self = Self(31_600);

    fn of(response: &Response) -> Self {
        let (major, minor, sublevel) = response.version;
        let number = |number: i32| u32::try_from(number).unwrap_or(0);
        let version = number(major).saturating_mul(100).saturating_add(number(minor));
        let version = version.saturating_mul(100).saturating_add(number(sublevel));
        // What comes after a version has what the next one has.
        Self(match response.from_git {
            true => (version - version % 100).saturating_add(100),
            false => version,
        })
    }
}

impl Criu {
    /// Looks for criu, and checks that it is not too old.
    ///
    /// # Errors
    ///
    /// [`Error::Criu`] when there is none in `PATH`, or a too old one.
    pub(crate) fn find() -> Result<Self, Error> {
        let response = ask_at_once(&Request::Version)
            .map_err(|error| prefixed("CRIU version check failed", &error))?;
        let version = Version::of(&response);
        if version < Version(VERSION_MIN) {
            let text = format!("CRIU version {} must be {VERSION_MIN} or higher", version.0);
            return Err(Error::Criu(text));
        }
        Ok(Self { version })
    }

    /// Checks that criu can do, on this kernel, what `wanted` lists.
    pub(crate) fn require(wanted: Features) -> Result<(), Error> {
        let response = ask_at_once(&Request::CheckFeatures(wanted))
            .map_err(|error| prefixed("CRIU feature check failed", &error))?;
        let missing = missing(wanted, response.features);
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::Criu(format!("criu is missing features: [{}]", missing.join(" "))))
    }
}

fn missing(wanted: Features, there: Features) -> Vec<&'static str> {
    let pairs = [
        ("MemTrack", wanted.memory_tracking, there.memory_tracking),
        ("LazyPages", wanted.lazy_pages, there.lazy_pages),
    ];
    pairs
        .into_iter()
        .filter(|(_, wanted, there)| *wanted && !there)
        .map(|(name, ..)| name)
        .collect()
}

fn prefixed(prefix: &str, error: &Error) -> Error {
    Error::Criu(format!("{prefix}: {}", sys::error::Chain(error)))
}

fn ask_at_once(request: &Request<'_>) -> Result<Response, Error> {
    Session::start(Place::default(), || Ok(()))?.ask(request, |_, _| Ok(()))
}

/// What criu says, and what it has written to its log; see [`crate::fuzz`].
pub(crate) fn fuzz(data: &[u8]) {
    message::fuzz(data);
    if let Ok(response) = session::read(data) {
        assert!(response.success, "{response:?}");
        let later = Response { from_git: true, ..response.clone() };
        assert!(Version::of(&later) >= Version::of(&response), "{response:?}");
    }
    log::fuzz(&String::from_utf8_lossy(data));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let cases = [
            ("release", (3, 17, 1), false, 31_701),
            ("without a sublevel", (4, 2, 0), false, 40_200),
            ("after a release", (4, 2, 0), true, 40_300),
            ("after a sublevel", (3, 17, 1), true, 31_800),
            ("nonsense", (-1, 0, 0), false, 0),
            ("too large", (i32::MAX, i32::MAX, i32::MAX), true, u32::MAX),
        ];
        for (case, version, from_git, want) in cases {
            let response = Response { version, from_git, ..Response::default() };
            assert_eq!(Version::of(&response), Version(want), "{case}");
        }
    }

    #[test]
    fn missing_features() {
        let of = |memory_tracking, lazy_pages| Features { memory_tracking, lazy_pages };
        let cases: [(&str, Features, Features, &[&str]); 4] = [
            ("there", of(true, true), of(true, true), &[]),
            ("not wanted", of(false, false), of(false, false), &[]),
            ("one", of(true, false), of(false, true), &["MemTrack"]),
            ("both", of(true, true), of(false, false), &["MemTrack", "LazyPages"]),
        ];
        for (case, wanted, there, want) in cases {
            assert_eq!(missing(wanted, there), want, "{case}");
        }
    }
}
