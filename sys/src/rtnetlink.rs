//! Network interfaces of a Linux network namespace, by rtnetlink(7): what it takes to move one.
//!
//! A socket belongs to the namespace in which it was opened, for as long as it lives. Requests are
//! answered one at a time, so there is never more than one on its way.
//!
//! Sources: netlink(7), rtnetlink(7), `linux/rtnetlink.h`, `linux/if_addr.h`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// The longest name of an interface, without the byte that ends it.
pub const NAME_LEN_MAX: usize = 15;

/// How many packets an answer may have: an interface with thousands of addresses has fewer.
const PACKETS_MAX: usize = 4096;

/// More than the kernel puts into a packet.
const PACKET_LEN_MAX: usize = 32 << 10;

const HEADER_LEN: usize = 16;
const LINK_LEN: usize = 16;
const ADDRESS_LEN: usize = 8;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

const LINK_NAME: u16 = 3;
const LINK_NAMESPACE_FD: u16 = 28;
const ADDRESS_ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_BROADCAST: u16 = 4;
const ADDRESS_FLAGS: u16 = 8;

/// An address that an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// How many of its bits name the network.
    pub prefix_len: u8,
    /// `IFA_F_*`.
    pub flags: u32,
    /// `RT_SCOPE_*`; 0 is global.
    pub scope: u8,
}

/// A connection to the kernel's routing subsystem in one network namespace.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens one in this process's network namespace.
    ///
    /// # Errors
    ///
    /// Those of socket(2).
    pub fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is protocol 0.
            None,
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The index of the interface `name`.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is none.
    pub fn index_of(&mut self, name: &str) -> io::Result<i32> {
        let mut body = link(0, 0, 0);
        push_attribute(&mut body, LINK_NAME, &c_string(name)?);
        let mut found = None;
        self.ask(GET_LINK, ACKNOWLEDGE, &body, |kind, body| {
            if kind == NEW_LINK {
                found = body.get(4..8).and_then(|bytes| bytes.try_into().ok());
            }
        })?;
        let index = found.map(i32::from_ne_bytes);
        index.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// Sets an interface up or down.
    ///
    /// # Errors
    ///
    /// `EPERM` without CAP_NET_ADMIN over the network namespace.
    pub fn set_up(&mut self, index: i32, up: bool) -> io::Result<()> {
        let bit = libc::IFF_UP.cast_unsigned();
        let body = link(index, if up { bit } else { 0 }, bit);
        self.ask(NEW_LINK, ACKNOWLEDGE, &body, |_, _| {})
    }

    /// Moves an interface to another network namespace and names it there, in one step.
    ///
    /// # Errors
    ///
    /// `EEXIST` when the other namespace has an interface of this name, `EINVAL` when this one
    /// cannot be moved.
    pub fn move_to(&mut self, index: i32, name: &str, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let mut body = link(index, 0, 0);
        push_attribute(&mut body, LINK_NAME, &c_string(name)?);
        push_attribute(&mut body, LINK_NAMESPACE_FD, &namespace.as_raw_fd().to_ne_bytes());
        self.ask(NEW_LINK, ACKNOWLEDGE, &body, |_, _| {})
    }

    /// The addresses of an interface, IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// Those of sendmsg(2) and recvmsg(2).
    pub fn addresses(&mut self, index: i32) -> io::Result<Vec<Address>> {
        let mut found = Vec::new();
        self.ask(GET_ADDRESS, DUMP, &[0; ADDRESS_LEN], |kind, body| {
            if kind == NEW_ADDRESS
                && let Some((of, address)) = parse_address(body)
                && of == index
            {
                found.push(address);
            }
        })?;
        Ok(found)
    }

    /// Gives an interface an address of global scope that stays until it is taken away.
    ///
    /// # Errors
    ///
    /// `EEXIST` when it has it.
    pub fn add_address(&mut self, index: i32, address: IpAddr, prefix_len: u8) -> io::Result<()> {
        let body = new_address(index, address, prefix_len);
        self.ask(NEW_ADDRESS, ACKNOWLEDGE | CREATE | EXCLUSIVE, &body, |_, _| {})
    }

    /// Sends a request and gives `take` each message of the answer.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut take: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence += 1;
        let request = message(kind, REQUEST | flags, self.sequence, body);
        rustix::net::send(&self.socket, &request, SendFlags::empty())?;
        let mut packet = vec![0; PACKET_LEN_MAX];
        for _ in 0..PACKETS_MAX {
            let length = match rustix::net::recv(&self.socket, &mut packet[..], RecvFlags::TRUNC) {
                Ok((_, length)) if length > packet.len() => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                Ok((length, _)) => length,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for (kind, sequence, body) in Messages(&packet[..length]) {
                match kind {
                    _ if sequence != self.sequence => {}
                    DONE => return Ok(()),
                    ERROR => return error_of(body),
                    kind => take(kind, body),
                }
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// The result in an error message, which also acknowledges.
fn error_of(body: &[u8]) -> io::Result<()> {
    let number = body.get(..4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match number {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(number.wrapping_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn c_string(name: &str) -> io::Result<Vec<u8>> {
    if name.is_empty() || name.len() > NAME_LEN_MAX || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok([name.as_bytes(), &[0]].concat())
}

/// A `nlmsghdr` and what follows it.
fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = (HEADER_LEN + body.len()) as u32;
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(body);
    bytes
}

/// An `ifinfomsg`.
fn link(index: i32, flags: u32, change: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LINK_LEN);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&index.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&change.to_ne_bytes());
    bytes
}

/// An `ifaddrmsg` and its attributes.
fn new_address(index: i32, address: IpAddr, prefix_len: u8) -> Vec<u8> {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    let mut bytes = vec![family as u8, prefix_len, 0, 0];
    bytes.extend_from_slice(&index.to_ne_bytes());
    match address {
        IpAddr::V4(address) => {
            push_attribute(&mut bytes, ADDRESS_LOCAL, &address.octets());
            push_attribute(&mut bytes, ADDRESS_ADDRESS, &address.octets());
            // Networks of one or two hosts have no address for all.
            if prefix_len < 31 {
                let hosts = u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
                let all = Ipv4Addr::from_bits(address.to_bits() | hosts);
                push_attribute(&mut bytes, ADDRESS_BROADCAST, &all.octets());
            }
        }
        IpAddr::V6(address) => {
            push_attribute(&mut bytes, ADDRESS_LOCAL, &address.octets());
            push_attribute(&mut bytes, ADDRESS_ADDRESS, &address.octets());
        }
    }
    bytes
}

/// Adds an `rtattr`, aligned to four bytes.
fn push_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (4 + value.len()) as u16;
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Reads an `ifaddrmsg`: the interface's index, and the address.
fn parse_address(body: &[u8]) -> Option<(i32, Address)> {
    let (head, attributes) = body.split_at_checked(ADDRESS_LEN)?;
    let index = i32::from_ne_bytes(head.get(4..8)?.try_into().ok()?);
    let mut flags = u32::from(head[2]);
    let (mut local, mut other) = (None, None);
    for (kind, value) in Attributes(attributes) {
        match kind {
            ADDRESS_LOCAL => local = ip(value),
            ADDRESS_ADDRESS => other = ip(value),
            ADDRESS_FLAGS => flags = u32::from_ne_bytes(value.try_into().ok()?),
            _ => {}
        }
    }
    let address = local.or(other)?;
    Some((index, Address { address, prefix_len: head[1], flags, scope: head[3] }))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into())
}

/// The messages of a packet: kind, sequence number, body.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..HEADER_LEN)?;
        let length = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(header[4..6].try_into().ok()?);
        let sequence = u32::from_ne_bytes(header[8..12].try_into().ok()?);
        let body = self.0.get(HEADER_LEN..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    }
}

/// The attributes of a message: kind and value.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..4)?;
        let length = usize::from(u16::from_ne_bytes(header[..2].try_into().ok()?));
        let kind = u16::from_ne_bytes(header[2..4].try_into().ok()?);
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let cases = [
            ("IPv4", "10.1.2.3", 24),
            ("IPv4, one host", "169.254.169.77", 32),
            ("IPv4, all", "1.2.3.4", 0),
            ("IPv6", "2001:db8::1", 64),
        ];
        for (case, address, prefix_len) in cases {
            let address: IpAddr = address.parse().expect("case");
            let body = new_address(7, address, prefix_len);
            let want = Address { address, prefix_len, flags: 0, scope: 0 };
            assert_eq!(parse_address(&body), Some((7, want)), "{case}");
        }
    }

    #[test]
    fn the_network_s_broadcast_address() {
        let body = new_address(7, IpAddr::from([10, 1, 2, 3]), 20);
        let all = Attributes(&body[ADDRESS_LEN..]).find(|(kind, _)| *kind == ADDRESS_BROADCAST);
        assert_eq!(all.map(|(_, value)| value), Some(&[10, 1, 15, 255][..]));
    }

    #[test]
    fn messages_end_where_they_are_cut_short() {
        let whole = message(NEW_LINK, 0, 3, &[1; 8]);
        assert_eq!(Messages(&whole).collect::<Vec<_>>(), [(NEW_LINK, 3, &[1; 8][..])]);
        for length in 0..whole.len() {
            assert_eq!(Messages(&whole[..length]).count(), 0, "{length}");
        }
        let mut endless = whole;
        endless[..4].copy_from_slice(&0_u32.to_ne_bytes());
        assert_eq!(Messages(&endless).count(), 0, "a length of 0");
        assert_eq!(Attributes(&[0; 8]).count(), 0, "an attribute of length 0");
    }

    #[test]
    fn finds_the_loopback_interface() {
        let mut socket = Socket::open().expect("open");
        let index = socket.index_of("lo").expect("every namespace has one");
        let found = socket.addresses(index).expect("addresses");
        assert!(found.iter().all(|address| address.address.is_loopback()), "{found:?}");
        let none = socket.index_of("no-such-link").expect_err("no interface");
        assert_eq!(none.raw_os_error(), Some(libc::ENODEV));
        let long = socket.index_of("a-name-that-is-too-long").expect_err("no name");
        assert_eq!(long.raw_os_error(), Some(libc::EINVAL));
    }
}
