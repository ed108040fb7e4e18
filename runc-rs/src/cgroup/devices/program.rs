//! Writes a device set as an eBPF program.
//!
//! ```text
//!  r2 = type, r3 = access, r4 = major, r5 = minor   (from struct bpf_cgroup_dev_ctx)
//!  for each exception: does it match? return the opposite of the default
//!  return the default
//! ```
//!
//! An allowing exception must cover all that is asked for; a denying one matches when it covers
//! any of it. That is what v1 does (`security/device_cgroup.c`).

use sys::bpf::Instruction;

use super::{Access, DeviceSet, Devices, Kind};

/// `BPF_LDX | BPF_MEM | BPF_W`.
pub(super) const LOAD_WORD: u8 = 0x61;
/// `BPF_ALU | BPF_MOV | BPF_X` and kin, all on 32 bits.
pub(super) const MOVE_REGISTER: u8 = 0xbc;
pub(super) const MOVE: u8 = 0xb4;
pub(super) const AND: u8 = 0x54;
pub(super) const SHIFT_RIGHT: u8 = 0x74;
/// `BPF_JMP32 | BPF_JEQ | BPF_K` and kin.
pub(super) const JUMP_EQUAL: u8 = 0x16;
pub(super) const JUMP_NOT_EQUAL: u8 = 0x56;
pub(super) const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5e;
/// `BPF_JMP | BPF_EXIT`.
pub(super) const EXIT: u8 = 0x95;

/// `BPF_DEVCG_DEV_BLOCK` and `BPF_DEVCG_DEV_CHAR`.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

/// The program that allows what `set` allows.
pub(in crate::cgroup) fn program(set: &DeviceSet) -> Vec<Instruction> {
    let mut code = Vec::with_capacity(8 + 8 * set.exceptions.len());
    code.extend([
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ]);
    for (devices, access) in &set.exceptions {
        exception(&mut code, *devices, *access, !set.default_allow);
    }
    code.extend(answer(set.default_allow));
    code
}

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE, 0, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

/// Adds the test for one exception: every jump goes behind its answer.
fn exception(code: &mut Vec<Instruction>, devices: Devices, access: Access, allow: bool) {
    let kind = match devices.kind {
        Kind::Block => BLOCK,
        Kind::Character => CHARACTER,
    };
    let begin = code.len();
    code.push(instruction(JUMP_NOT_EQUAL, 2, 0, 0, kind));
    if access != Access::ALL {
        code.push(instruction(MOVE_REGISTER, 1, 3, 0, 0));
        code.push(instruction(AND, 1, 0, 0, access.bits()));
        code.push(if allow {
            instruction(JUMP_NOT_EQUAL_REGISTER, 1, 3, 0, 0)
        } else {
            instruction(JUMP_EQUAL, 1, 0, 0, 0)
        });
    }
    if let Some(major) = devices.major {
        code.push(instruction(JUMP_NOT_EQUAL, 4, 0, 0, major.cast_signed()));
    }
    if let Some(minor) = devices.minor {
        code.push(instruction(JUMP_NOT_EQUAL, 5, 0, 0, minor.cast_signed()));
    }
    code.extend(answer(allow));
    let end = code.len();
    for (at, instruction) in code.iter_mut().enumerate().skip(begin) {
        if matches!(instruction.code, JUMP_EQUAL | JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER) {
            instruction.offset =
                i16::try_from(end - at - 1).expect("an exception has ten instructions at most");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{interpret::run, tests::rule},
        *,
    };

    #[test]
    fn decides() {
        let (block, character) = (1, 2);
        let (mknod, read, write) = (1, 2, 4);
        let listed = ["allow c 1:3 rw", "allow b 8:* r", "allow c *:* m", "allow c 4294967295:1 r"];
        let all_but = ["allow a *:* rwm", "deny c 1:3 w", "deny b 8:* rwm"];
        /// Name, rules, request (kind, access, major, minor), and the answer.
        type Case<'a> = (&'a str, &'a [&'a str], (u32, u32, u32, u32), bool);
        let cases: [Case<'_>; 14] = [
            ("listed", &listed, (character, read | write, 1, 3), true),
            ("listed in part", &listed, (character, read | write | mknod, 1, 3), false),
            ("other minor", &listed, (character, read, 1, 5), false),
            ("other kind", &listed, (block, read, 1, 3), false),
            ("any minor", &listed, (block, read, 8, 77), true),
            ("any device", &listed, (character, mknod, 99, 1), true),
            ("any device, other use", &listed, (character, read, 99, 1), false),
            ("a high number", &listed, (character, read, u32::MAX, 1), true),
            ("not listed", &listed, (block, mknod, 8, 1), false),
            ("no exception", &all_but, (character, read, 1, 5), true),
            ("excepted use", &all_but, (character, write, 1, 3), false),
            ("other use", &all_but, (character, read, 1, 3), true),
            ("excepted use among others", &all_but, (character, read | write, 1, 3), false),
            ("excepted device", &all_but, (block, read, 8, 0), false),
        ];
        for (case, rules, (kind, access, major, minor), want) in cases {
            let mut set = DeviceSet::default();
            for (index, text) in rules.iter().enumerate() {
                set.apply(index, &rule(text)).expect(case);
            }
            assert_eq!(run(&program(&set), kind, access, major, minor), want, "{case}");
        }
    }

    #[test]
    fn the_kernel_takes_it() {
        let rules = [rule("deny a *:* rwm"), rule("allow c 10:229 rw")];
        let set = DeviceSet::of_container(&rules).expect("is valid");
        match sys::bpf::load_device_program(&program(&set)) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                assert!(!rustix::process::geteuid().is_root(), "root may load programs: {error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
