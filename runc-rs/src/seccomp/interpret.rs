//! A BPF machine for tests and fuzzing: says what the kernel would make of a call.

use sys::seccomp::Instruction;

/// What a filter can see of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) token: u32,
    pub(super) number: u32,
    pub(super) arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        let halves = |value: u64| [value as u32, (value >> 32) as u32];
        match offset {
            0 => self.number,
            4 => self.token,
            16.. => {
                let index = (offset - 16) / 4;
                let [low, high] = halves(self.arguments[index as usize / 2]);
                if index.is_multiple_of(2) { low } else { high }
            }
            _ => panic!("the filter loads from offset {offset}"),
        }
    }
}

/// Runs `program` on `call`; also says how many instructions it took.
pub(super) fn run(program: &[Instruction], call: &Call) -> (u32, usize) {
    let (mut at, mut accumulator, mut steps) = (0, 0, 0);
    loop {
        let Instruction { code, jump_true, jump_false, operand } = program[at];
        steps += 1;
        at += 1;
        let mut jump = |holds: bool| at += usize::from(if holds { jump_true } else { jump_false });
        match code {
            0x20 => accumulator = call.word(operand),
            0x54 => accumulator &= operand,
            0x05 => at += operand as usize,
            0x15 => jump(accumulator == operand),
            0x25 => jump(accumulator > operand),
            0x35 => jump(accumulator >= operand),
            0x45 => jump(accumulator & operand != 0),
            0x06 => return (operand, steps),
            _ => panic!("instruction {code:#x}"),
        }
    }
}
