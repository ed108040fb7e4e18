//! An eBPF machine for tests and fuzzing: says what the kernel would make of a request.

use sys::bpf::Instruction;

use super::program::{
    AND, EXIT, JUMP_EQUAL, JUMP_NOT_EQUAL, JUMP_NOT_EQUAL_REGISTER, LOAD_WORD, MOVE, MOVE_REGISTER,
    SHIFT_RIGHT,
};

/// Runs a program on a request, as the kernel does.
pub(in crate::cgroup) fn run(
    program: &[Instruction],
    kind: u32,
    access: u32,
    major: u32,
    minor: u32,
) -> bool {
    let context = [access << 16 | kind, major, minor];
    let mut registers = [0_u32; 11];
    let mut at = 0;
    loop {
        let Instruction { code, registers: pair, offset, immediate } = program[at];
        let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
        let immediate = immediate.cast_unsigned();
        at += 1;
        let jumps = match code {
            LOAD_WORD => {
                registers[to] = context[offset as usize / 4];
                false
            }
            MOVE_REGISTER => {
                registers[to] = registers[from];
                false
            }
            MOVE => {
                registers[to] = immediate;
                false
            }
            AND => {
                registers[to] &= immediate;
                false
            }
            SHIFT_RIGHT => {
                registers[to] >>= immediate;
                false
            }
            JUMP_EQUAL => registers[to] == immediate,
            JUMP_NOT_EQUAL => registers[to] != immediate,
            JUMP_NOT_EQUAL_REGISTER => registers[to] != registers[from],
            EXIT => return registers[0] == 1,
            _ => panic!("instruction {code:#x}"),
        };
        if jumps {
            at += offset as usize;
        }
    }
}
