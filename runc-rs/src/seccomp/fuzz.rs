//! What is fuzzed of the compiler; see [`crate::fuzz`].

use sys::seccomp::Instruction;

use super::{
    INSTRUCTIONS_MAX, compile as compile_profile,
    interpret::{Call, run},
};
use crate::spec::seccomp::LinuxSeccomp;

/// A profile as text.
pub(crate) fn profile(data: &[u8]) {
    if let Ok(profile) = serde_json::from_slice(data) {
        compile(&profile);
    }
}

/// Compiles a profile, and runs the program: it is one that the kernel takes, and every call gets
/// an answer.
pub(crate) fn compile(profile: &LinuxSeccomp) {
    let Ok(program) = compile_profile(profile) else { return };
    let code = &program.instructions;
    check(code);
    for token in [0xc000_003e, 0x4000_0003, 0xc000_00b7, 0] {
        for number in [0, 1, 16, 56, 59, 101, 435, 0x4000_0001, u32::MAX] {
            for argument in [0, 1, 1 << 32, u64::MAX] {
                let call = Call { token, number, arguments: [argument; 6] };
                let (_, steps) = run(code, &call);
                assert!(steps <= code.len(), "{call:?} takes {steps} steps");
            }
        }
    }
}

/// The rules of the kernel's `bpf_check_classic`, as far as they can be broken.
fn check(code: &[Instruction]) {
    assert!(!code.is_empty() && code.len() <= INSTRUCTIONS_MAX, "{} instructions", code.len());
    assert_eq!(code.last().map(|last| last.code), Some(0x06), "does not end in an answer");
    for (at, instruction) in code.iter().enumerate() {
        let rest = code.len() - at - 1;
        let reach = match instruction.code {
            0x05 => instruction.operand as usize,
            0x15 | 0x25 | 0x35 | 0x45 => {
                usize::from(instruction.jump_true.max(instruction.jump_false))
            }
            _ => continue,
        };
        assert!(reach < rest, "instruction {at} jumps {reach} of {rest}");
    }
}
