//! The architectures that a profile may list.

use super::numbers::{self, TABLES};

/// The names of all architectures, as profiles spell them, sorted.
pub const NAMES: [&str; 18] = [
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

/// The bit that tells the x32 calls from the x86-64 ones, with which they share a token.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Where ARM's private calls begin; the tables keep them as 0xf000 and up.
const ARM_PRIVATE: u32 = 0x000f_0000;

const WIDE: u32 = 0x8000_0000;
const LITTLE: u32 = 0x4000_0000;
const N32: u32 = 0x2000_0000;

/// How one architecture makes system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Architecture {
    /// What the kernel calls it (`AUDIT_ARCH_*`).
    pub(super) token: u32,
    /// Whether arguments have 64 bits; otherwise the upper halves are not looked at.
    pub(super) wide: bool,
    /// Its column in the number table.
    table: usize,
    /// What is added to the numbers of the table.
    base: u32,
}

/// The architecture that this program was built for.
#[cfg(target_arch = "x86_64")]
pub(super) const NATIVE: &str = "SCMP_ARCH_X86_64";
#[cfg(target_arch = "x86")]
pub(super) const NATIVE: &str = "SCMP_ARCH_X86";
#[cfg(target_arch = "aarch64")]
pub(super) const NATIVE: &str = "SCMP_ARCH_AARCH64";
#[cfg(target_arch = "arm")]
pub(super) const NATIVE: &str = "SCMP_ARCH_ARM";
#[cfg(target_arch = "riscv64")]
pub(super) const NATIVE: &str = "SCMP_ARCH_RISCV64";
#[cfg(target_arch = "loongarch64")]
pub(super) const NATIVE: &str = "SCMP_ARCH_LOONGARCH64";
#[cfg(all(target_arch = "powerpc64", target_endian = "little"))]
pub(super) const NATIVE: &str = "SCMP_ARCH_PPC64LE";
#[cfg(all(target_arch = "powerpc64", target_endian = "big"))]
pub(super) const NATIVE: &str = "SCMP_ARCH_PPC64";
#[cfg(target_arch = "s390x")]
pub(super) const NATIVE: &str = "SCMP_ARCH_S390X";

impl Architecture {
    /// The architecture that profiles call `name`.
    pub(super) fn named(name: &str) -> Option<Self> {
        // ELF machine numbers (`EM_*`), with what makes audit tokens of them.
        let (token, table, base) = match name {
            "SCMP_ARCH_X86_64" => (62 | WIDE | LITTLE, 0, 0),
            "SCMP_ARCH_X86" => (3 | LITTLE, 1, 0),
            "SCMP_ARCH_X32" => (62 | WIDE | LITTLE, 2, X32_BIT),
            "SCMP_ARCH_AARCH64" => (183 | WIDE | LITTLE, 3, 0),
            "SCMP_ARCH_ARM" => (40 | LITTLE, 4, 0),
            "SCMP_ARCH_RISCV64" => (243 | WIDE | LITTLE, 5, 0),
            "SCMP_ARCH_LOONGARCH64" => (258 | WIDE | LITTLE, 6, 0),
            "SCMP_ARCH_PPC" => (20, 7, 0),
            "SCMP_ARCH_PPC64" => (21 | WIDE, 8, 0),
            "SCMP_ARCH_PPC64LE" => (21 | WIDE | LITTLE, 8, 0),
            "SCMP_ARCH_S390" => (22, 9, 0),
            "SCMP_ARCH_S390X" => (22 | WIDE, 10, 0),
            "SCMP_ARCH_MIPS" => (8, 11, 4000),
            "SCMP_ARCH_MIPSEL" => (8 | LITTLE, 11, 4000),
            "SCMP_ARCH_MIPS64" => (8 | WIDE, 12, 5000),
            "SCMP_ARCH_MIPSEL64" => (8 | WIDE | LITTLE, 12, 5000),
            "SCMP_ARCH_MIPS64N32" => (8 | WIDE | N32, 13, 6000),
            "SCMP_ARCH_MIPSEL64N32" => (8 | WIDE | LITTLE | N32, 13, 6000),
            _ => return None,
        };
        let wide = token & WIDE != 0 && token & N32 == 0 && base != X32_BIT;
        Some(Self { token, wide, table, base })
    }

    /// The architecture that this program was built for.
    pub(super) fn native() -> Self {
        Self::named(NATIVE).expect("every NATIVE is a known name")
    }

    /// Whether this is x32, which lives in the number space of x86-64.
    pub(super) fn is_x32(self) -> bool {
        self.base == X32_BIT
    }

    /// Whether this is x86-64.
    pub(super) fn is_x86_64(self) -> bool {
        self.table == 0
    }

    /// Whether calls that the kernel does not know arrive as number 0 (`setup`, long unused).
    pub(super) fn unknown_calls_are_zero(self) -> bool {
        matches!(self.table, 9 | 10)
    }

    /// The number of a call, given its row of the number table.
    pub(super) fn number(self, row: &[u16; TABLES]) -> Option<u32> {
        match row[self.table] {
            numbers::N => None,
            private @ 0xf000.. => Some(ARM_PRIVATE + u32::from(private - 0xf000)),
            number => Some(self.base + u32::from(number)),
        }
    }
}

/// A call that is also, or only, a function of another one: `socketcall` or `ipc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Multiplexed {
    /// The call that does the work.
    pub(super) through: &'static str,
    /// The value of its first argument that selects the function.
    pub(super) function: u32,
}

impl Multiplexed {
    /// The other way to make the call `name`, on architectures that have it.
    ///
    /// Sources: `linux/net.h`, `SYS_*`; `linux/ipc.h`.
    pub(super) fn of(name: &str) -> Option<Self> {
        let (through, function) = match name {
            "socket" => ("socketcall", 1),
            "bind" => ("socketcall", 2),
            "connect" => ("socketcall", 3),
            "listen" => ("socketcall", 4),
            "accept" => ("socketcall", 5),
            "getsockname" => ("socketcall", 6),
            "getpeername" => ("socketcall", 7),
            "socketpair" => ("socketcall", 8),
            "send" => ("socketcall", 9),
            "recv" => ("socketcall", 10),
            "sendto" => ("socketcall", 11),
            "recvfrom" => ("socketcall", 12),
            "shutdown" => ("socketcall", 13),
            "setsockopt" => ("socketcall", 14),
            "getsockopt" => ("socketcall", 15),
            "sendmsg" => ("socketcall", 16),
            "recvmsg" => ("socketcall", 17),
            "accept4" => ("socketcall", 18),
            "recvmmsg" => ("socketcall", 19),
            "sendmmsg" => ("socketcall", 20),
            "semop" => ("ipc", 1),
            "semget" => ("ipc", 2),
            "semctl" => ("ipc", 3),
            "semtimedop" => ("ipc", 4),
            "msgsnd" => ("ipc", 11),
            "msgrcv" => ("ipc", 12),
            "msgget" => ("ipc", 13),
            "msgctl" => ("ipc", 14),
            "shmat" => ("ipc", 21),
            "shmdt" => ("ipc", 22),
            "shmget" => ("ipc", 23),
            "shmctl" => ("ipc", 24),
            _ => return None,
        };
        Some(Self { through, function })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_known() {
        for name in NAMES {
            assert!(Architecture::named(name).is_some(), "{name}");
        }
        assert!(NAMES.is_sorted());
    }

    #[test]
    fn numbers_by_architecture() {
        let cases = [
            ("SCMP_ARCH_X86_64", "openat", Some(257)),
            ("SCMP_ARCH_X86", "openat", Some(295)),
            ("SCMP_ARCH_X32", "openat", Some(0x4000_0101)),
            ("SCMP_ARCH_X32", "readv", Some(0x4000_0203)),
            ("SCMP_ARCH_AARCH64", "openat", Some(56)),
            ("SCMP_ARCH_AARCH64", "open", None),
            ("SCMP_ARCH_ARM", "set_tls", Some(0xf0005)),
            ("SCMP_ARCH_MIPSEL64", "openat", Some(5247)),
            ("SCMP_ARCH_S390X", "exit", Some(1)),
        ];
        for (architecture, call, want) in cases {
            let row = numbers::row(call);
            let got = row
                .and_then(|row| Architecture::named(architecture).expect("is known").number(row));
            assert_eq!(got, want, "{call} on {architecture}");
        }
    }

    /// The table is generated; the C library's headers are a second opinion.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn numbers_agree_with_libc() {
        let cases = [
            ("read", libc::SYS_read),
            ("clone3", libc::SYS_clone3),
            ("seccomp", libc::SYS_seccomp),
            ("bpf", libc::SYS_bpf),
            ("mount_setattr", libc::SYS_mount_setattr),
            ("fchmodat2", libc::SYS_fchmodat2),
        ];
        for (name, want) in cases {
            let row = numbers::row(name).unwrap_or_else(|| panic!("{name} is missing"));
            let got = Architecture::native().number(row).map(i64::from);
            assert_eq!(got, Some(want), "{name}");
        }
    }
}
