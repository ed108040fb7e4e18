//! A connection to systemd, over D-Bus.
//!
//! Root talks to systemd itself, by the socket that systemd has for this, where there is no
//! daemon in between and signals come without being asked for; if there is none, and for a
//! user's systemd, to the bus. Who we are, the kernel tells the other side (SASL EXTERNAL without
//! a name), so that it is right in user namespaces, too.
//!
//! Source: the D-Bus specification; systemd's `org.freedesktop.systemd1(5)`.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStringExt as _,
            net::{SocketAddr, UnixStream},
        },
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    Error,
    message::{self, Call, Incoming},
    wire::Value,
};

/// How long systemd may take for an answer, and for a job; as long as runc waits.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The longest line of an authentication that is read.
const LINE_MAX: usize = 4096;

const PRIVATE: &str = "/run/systemd/private";
const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket";

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const BUS: &str = "org.freedesktop.DBus";

/// An authenticated connection.
#[derive(Debug)]
pub(super) struct Bus {
    socket: UnixStream,
    /// Whether systemd is at the other end, rather than a daemon that passes messages on.
    direct: bool,
    serial: u32,
    /// Jobs that have ended, and how.
    removed: Vec<(String, String)>,
}

impl Bus {
    /// Connects to the machine's systemd, or to that of this user.
    ///
    /// # Errors
    ///
    /// `Connect`, with the address; `NoUserBus`.
    pub(super) fn connect(user: bool) -> Result<Self, Error> {
        if user {
            let session = std::env::var("DBUS_SESSION_BUS_ADDRESS").ok();
            let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            return Self::on_bus(&user_address(session, runtime).ok_or(Error::NoUserBus)?);
        }
        if let Ok(socket) = UnixStream::connect(PRIVATE)
            && let Ok(bus) = Self::authenticated(socket, true)
        {
            return Ok(bus);
        }
        let system = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").ok();
        let system = system.filter(|address| !address.is_empty());
        Self::on_bus(system.as_deref().unwrap_or(SYSTEM_BUS))
    }

    fn on_bus(addresses: &str) -> Result<Self, Error> {
        let fail = |source| Error::Connect { address: addresses.to_owned(), source };
        let mut last = io::Error::from(io::ErrorKind::Unsupported);
        for address in addresses.split(';') {
            let Some(address) = parse_address(address) else { continue };
            let opened = address.and_then(|address| UnixStream::connect_addr(&address));
            match opened.and_then(|socket| Self::authenticated(socket, false)) {
                Ok(mut bus) => {
                    bus.call(BUS, "/org/freedesktop/DBus", BUS, "Hello", &[])?;
                    return Ok(bus);
                }
                Err(error) => last = error,
            }
        }
        Err(fail(last))
    }

    fn authenticated(mut socket: UnixStream, direct: bool) -> io::Result<Self> {
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        // All at once: systemd does not look again at what it has read together with `BEGIN`, so
        // no message may follow that before systemd has seen it.
        socket.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
        if !read_line(&mut socket)?.starts_with("DATA") {
            return Err(refused());
        }
        if !read_line(&mut socket)?.starts_with("OK") {
            return Err(refused());
        }
        Ok(Self { socket, direct, serial: 0, removed: Vec::new() })
    }

    /// Calls a method of systemd's manager.
    ///
    /// # Errors
    ///
    /// `Refused` with systemd's words, `Talk` when the connection fails.
    pub(super) fn manager(&mut self, member: &str, body: &[Value]) -> Result<Vec<Value>, Error> {
        self.call(SYSTEMD, MANAGER_PATH, MANAGER, member, body)
    }

    /// A property of systemd's manager that is a text.
    ///
    /// # Errors
    ///
    /// As [`manager`](Self::manager).
    pub(super) fn property(&mut self, name: &str) -> Result<String, Error> {
        let body = [Value::text(MANAGER), Value::text(name)];
        let interface = "org.freedesktop.DBus.Properties";
        let answer = self.call(SYSTEMD, MANAGER_PATH, interface, "Get", &body)?;
        match answer.into_iter().next() {
            Some(Value::Variant(value)) => match *value {
                Value::Text(text) => Ok(text),
                _ => Err(Error::Answer("Get".to_owned())),
            },
            _ => Err(Error::Answer("Get".to_owned())),
        }
    }

    /// Calls a method that starts a job, and waits for its end; returns how it ended: `done`, or
    /// why not.
    ///
    /// # Errors
    ///
    /// As [`manager`](Self::manager), and `Timeout`.
    pub(super) fn job(&mut self, member: &str, body: &[Value]) -> Result<String, Error> {
        if !self.direct {
            self.manager("Subscribe", &[])?;
            let rule = format!("type='signal',interface='{MANAGER}',member='JobRemoved'");
            self.call(BUS, "/org/freedesktop/DBus", BUS, "AddMatch", &[Value::text(rule)])?;
        }
        let answer = self.manager(member, body)?;
        let Some(Value::Path(job)) = answer.into_iter().next() else {
            return Err(Error::Answer(member.to_owned()));
        };
        let end = Instant::now() + TIMEOUT;
        loop {
            if let Some((_, result)) = self.removed.iter().find(|(removed, _)| *removed == job) {
                return Ok(result.clone());
            }
            match self.receive(end)? {
                Some(Incoming::Signal { member, body }) => self.note(&member, body),
                Some(_) => {}
                None => return Err(Error::Timeout(member.to_owned())),
            }
        }
    }

    fn call(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        member: &str,
        body: &[Value],
    ) -> Result<Vec<Value>, Error> {
        let fail = |source| Error::Talk { member: member.to_owned(), source };
        self.serial += 1;
        let serial = self.serial;
        let destination = (!self.direct).then_some(destination);
        let bytes = Call { destination, path, interface, member, body }.encode(serial);
        if bytes.len() > message::SIZE_MAX {
            return Err(fail(io::ErrorKind::InvalidInput.into()));
        }
        self.socket.write_all(&bytes).map_err(fail)?;
        let end = Instant::now() + TIMEOUT;
        loop {
            match self.receive(end)? {
                Some(Incoming::Answer { serial: to, body }) if to == serial => return Ok(body),
                Some(Incoming::Refusal { serial: to, name, text }) if to == serial => {
                    return Err(Error::Refused { name, text });
                }
                Some(Incoming::Signal { member, body }) => self.note(&member, body),
                Some(_) => {}
                None => return Err(Error::Timeout(member.to_owned())),
            }
        }
    }

    /// Keeps the news of a job's end: it may come before the answer that names the job.
    fn note(&mut self, member: &str, body: Vec<Value>) {
        if member != "JobRemoved" {
            return;
        }
        let mut body = body.into_iter().skip(1);
        if let (Some(Value::Path(job)), Some(_), Some(Value::Text(result))) =
            (body.next(), body.next(), body.next())
        {
            self.removed.push((job, result));
        }
    }

    /// The next message, or nothing when there is none until `end`.
    fn receive(&mut self, end: Instant) -> Result<Option<Incoming>, Error> {
        let fail = |source| Error::Talk { member: "reading".to_owned(), source };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        self.socket.set_read_timeout(Some(left)).map_err(fail)?;
        let mut prefix = [0; message::PREFIX];
        match self.socket.read_exact(&mut prefix) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            result => result.map_err(fail)?,
        }
        let invalid = || fail(io::ErrorKind::InvalidData.into());
        let length = message::length(&prefix).ok_or_else(invalid)?;
        let mut bytes = prefix.to_vec();
        bytes.resize(length, 0);
        self.socket.read_exact(&mut bytes[message::PREFIX..]).map_err(fail)?;
        message::decode(&bytes).map(Some).ok_or_else(invalid)
    }
}

fn read_line(socket: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    // Byte by byte, for what follows the line is not to be taken.
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        socket.read_exact(&mut byte)?;
        line.push(byte[0]);
        if line.len() > LINE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Where a user's bus is: where the environment says, or at its usual place.
fn user_address(session: Option<String>, runtime: Option<PathBuf>) -> Option<String> {
    if let Some(session) = session.filter(|address| !address.is_empty()) {
        return Some(session);
    }
    let path = runtime.filter(|path| !path.as_os_str().is_empty())?.join("bus");
    path.symlink_metadata().ok()?;
    let escaped: String = path.to_str()?.bytes().map(escape).collect();
    Some(format!("unix:path={escaped}"))
}

fn escape(byte: u8) -> String {
    match byte {
        b'-' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'_' | b'/' | b'.' | b'*' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02x}"),
    }
}

/// Reads one address, such as `unix:path=/run/bus,guid=...`; nothing if it is of another kind.
fn parse_address(address: &str) -> Option<io::Result<SocketAddr>> {
    let pairs = address.strip_prefix("unix:")?;
    for pair in pairs.split(',') {
        match pair.split_once('=')? {
            ("path", value) => {
                return Some(SocketAddr::from_pathname(PathBuf::from(
                    std::ffi::OsString::from_vec(unescape(value)?),
                )));
            }
            ("abstract", value) => return Some(SocketAddr::from_abstract_name(unescape(value)?)),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let path = |path: &str| SocketAddr::from_pathname(path).map(|it| format!("{it:?}")).ok();
        let cases = [
            ("unix:path=/run/bus", path("/run/bus")),
            ("unix:path=/run/a%20b,guid=0a", path("/run/a b")),
            ("unix:guid=0a,path=/x", path("/x")),
            ("tcp:host=x", None),
            ("unix:path", None),
            ("unix:path=%4", None),
            ("", None),
        ];
        for (text, want) in cases {
            let got = parse_address(text).and_then(Result::ok).map(|it| format!("{it:?}"));
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn where_a_user_has_a_bus() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let runtime = directory.path().join("a b");
        std::fs::create_dir(&runtime).expect("make directory");
        let session = || Some("unix:path=/x".to_owned());
        assert_eq!(user_address(session(), None), session(), "what the environment says");
        assert_eq!(user_address(None, Some(runtime.clone())), None, "no bus");
        std::fs::write(runtime.join("bus"), "").expect("make bus");
        let want = format!("unix:path={}/a%20b/bus", directory.path().display());
        assert_eq!(user_address(Some(String::new()), Some(runtime)), Some(want), "a bus");
        assert_eq!(user_address(None, None), None, "nothing is known");
    }
}
