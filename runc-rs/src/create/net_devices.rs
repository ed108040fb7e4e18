//! Network interfaces of the host that a container gets.
//!
//! An interface is moved and renamed in one step, so that no name is in the way on either side. The
//! kernel takes its addresses away then; those that somebody has set for good are set again, as are
//! not those that came from elsewhere (a lease, the neighbourhood). What becomes of an interface
//! when its Linux network namespace ends is the kernel's business: a physical one comes back.

use std::{collections::BTreeMap, io, os::fd::AsFd as _, os::fd::OwnedFd};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use sys::rtnetlink::Socket;

use crate::{
    error::{Cause, Error},
    spec::NetDevice,
};

/// Addresses that neither expire nor came by themselves.
const PERMANENT: u32 = 0x80;

/// Moves the interfaces to the Linux network namespace of the process `pid`.
pub(super) fn move_all(pid: i32, devices: &BTreeMap<String, NetDevice>) -> Result<(), Error> {
    if devices.is_empty() {
        return Ok(());
    }
    let path = format!("/proc/{pid}/ns/net");
    let namespace = open(&path)?;
    let fail = |error| Error::system("open", "routing socket", error);
    let mut here = Socket::open().map_err(fail)?;
    let mut there = socket_in(&namespace)?;
    for (name, device) in devices {
        let new_name = if device.name.is_empty() { name } else { &device.name };
        move_one((&mut here, name), (&mut there, new_name), &namespace).map_err(
            |(what, error)| {
                let text = format!(
                    "error creating network interfaces: move netDevice {name} to namespace {path}: \
                     {what}: {}",
                    Cause(error)
                );
                Error::Process(text)
            },
        )?;
    }
    Ok(())
}

fn move_one(
    (here, name): (&mut Socket, &str),
    (there, new_name): (&mut Socket, &str),
    namespace: &OwnedFd,
) -> Result<(), (String, io::Error)> {
    let as_text = |what: &str| {
        let what = what.to_owned();
        move |error| (what, error)
    };
    let no_link = format!("link not found for interface {name} on runtime namespace");
    let index = here.index_of(name).map_err(as_text(&no_link))?;
    // Nobody is to use it while it changes.
    here.set_up(index, false).map_err(as_text("fail to set link down"))?;
    let addresses = here.addresses(index).map_err(as_text("fail to get ip addresses"))?;
    here.move_to(index, new_name, namespace.as_fd())
        .map_err(as_text(&format!("fail to move network device {name}")))?;
    let no_link = format!("link not found for interface {new_name}");
    let index = there.index_of(new_name).map_err(as_text(&no_link))?;
    for address in addresses {
        if address.flags & PERMANENT != 0 && address.scope == 0 {
            there
                .add_address(index, address.address, address.prefix_len)
                .map_err(as_text(&format!("fail to set up address {}", address.address)))?;
        }
    }
    there.set_up(index, true).map_err(as_text(&format!("fail to set up interface {new_name}")))
}

/// Opens a socket in another namespace, to which this process goes for a moment: it has one thread,
/// so nobody notices.
fn socket_in(namespace: &OwnedFd) -> Result<Socket, Error> {
    let fail = |error| Error::system("open routing socket in", "network namespace", error);
    let own = open("/proc/self/ns/net")?;
    let kind = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), kind).map_err(|error| fail(error.into()))?;
    let socket = Socket::open();
    move_into_link_name_space(own.as_fd(), kind).map_err(|error| fail(error.into()))?;
    socket.map_err(fail)
}

fn open(path: &str) -> Result<OwnedFd, Error> {
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::file("open", path, error))
}
