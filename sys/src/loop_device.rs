//! Loop devices: a file as a block device, so that the filesystem in it can be mounted.
//!
//! A device is taken, given its file and marked to free itself in one step, `LOOP_CONFIGURE`
//! (Linux 5.8). From then on the kernel keeps it for as long as it is open or mounted, so that
//! nothing has to be remembered and nothing is left when a process is killed.
//!
//! Source: loop(4).

#![expect(unsafe_code, reason = "loop devices are set up by ioctl")]

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use rustix::io::Errno;

/// How often another device is asked for when somebody else was faster.
const ATTEMPTS_MAX: usize = 100;

const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// A loop device. It is freed when this is dropped and nothing is mounted from it.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _device: OwnedFd,
}

impl LoopDevice {
    /// Makes a device of the file `backing`.
    ///
    /// # Errors
    ///
    /// The file or the devices cannot be opened, all are taken, or the kernel is older than 5.8.
    pub fn attach(backing: &Path, read_only: bool) -> io::Result<Self> {
        let about = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"))
        };
        let open = |path: &Path, writable| {
            let mut options = OpenOptions::new();
            options.read(true).write(writable).custom_flags(libc::O_CLOEXEC);
            options.open(path).map_err(about(path))
        };
        let file = open(backing, !read_only)?;
        let control_path = Path::new("/dev/loop-control");
        let control = open(control_path, true)?;
        for _ in 0..ATTEMPTS_MAX {
            let path = free_device(&control).map_err(about(control_path))?;
            let device = open(&path, !read_only)?;
            match configure(&device, &file, read_only) {
                Ok(()) => return Ok(Self { path, _device: device.into() }),
                Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
                Err(error) => return Err(about(&path)(error)),
            }
        }
        Err(about(control_path)(Errno::BUSY.into()))
    }

    /// The device, as `/dev/loop0`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A device that nobody uses, or not yet.
fn free_device(control: &File) -> io::Result<PathBuf> {
    // SAFETY: LOOP_CTL_GET_FREE has no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    if number < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(format!("/dev/loop{number}").into())
    }
}

fn configure(device: &File, backing: &File, read_only: bool) -> io::Result<()> {
    let fd = u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?;
    let read_only = if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    let config = LoopConfig {
        fd,
        block_size: 0,
        info: LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_AUTOCLEAR | read_only,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one `loop_config`, which lives on this stack and has the
    // layout of the kernel's.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
