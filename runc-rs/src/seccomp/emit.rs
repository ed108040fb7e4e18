//! Writes tables as a BPF program.
//!
//! Jumps in BPF go forward only, and conditional ones 255 instructions at most. So the program
//! is written from its end to its beginning: whoever jumps knows where to, and whether it is
//! near. What is too far away gets a stop in between, a jump or a copy of the return.
//!
//! ```text
//!  load architecture; equal? ── for each token ──> load number; binary search ──> return
//!      │ none                                                        └──> argument tests ──> return
//!      └──> kill
//! ```

use sys::seccomp::Instruction;

use super::{
    profile::{Action, Condition, Operator, Profile},
    table::{Case, Range, Table, Verdict},
};

/// `struct seccomp_data`: offsets of what a filter can see.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `BPF_LD | BPF_W | BPF_ABS` and its kin.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// How far a conditional jump may go, less room for the stops of its own two targets.
const NEAR_MAX: usize = 250;

/// The program for `tables`.
pub(super) fn program(profile: &Profile<'_>, tables: &[Table]) -> Vec<Instruction> {
    let mut emitter = Emitter {
        default: Target::Return(profile.default),
        code: Vec::with_capacity(1024),
        returns: Vec::new(),
    };
    let mut next = Target::Return(Action::KILL_THREAD);
    let mut searches = Vec::with_capacity(tables.len());
    for table in tables.iter().rev() {
        let search = emitter.search(&table.ranges);
        let head = emitter.load(NUMBER, search);
        searches.push((table.token, head));
    }
    for (token, head) in searches {
        next = emitter.branch(JUMP_EQUAL, token, head, next);
    }
    emitter.load(ARCHITECTURE, next);
    emitter.code.reverse();
    emitter.code
}

/// Where a jump goes.
#[derive(Clone, Copy)]
enum Target {
    /// To an instruction that returns this action, wherever there is one.
    Return(Action),
    /// To the instruction at this index of the reversed program.
    At(usize),
}

struct Emitter {
    default: Target,
    /// The program, last instruction first.
    code: Vec<Instruction>,
    /// For each action, the return that was written last.
    returns: Vec<(Action, usize)>,
}

impl Emitter {
    fn push(&mut self, code: u16, operand: u32) -> usize {
        self.code.push(Instruction { code, jump_true: 0, jump_false: 0, operand });
        self.code.len() - 1
    }

    /// A place that a conditional jump, to be written next, reaches and from which it goes on
    /// to `target`.
    fn near(&mut self, target: Target) -> usize {
        match target {
            Target::At(at) if self.code.len() - at <= NEAR_MAX => at,
            Target::At(at) => {
                let skip = self.code.len() - at - 1;
                self.push(JUMP, u32::try_from(skip).expect("programs are short"))
            }
            Target::Return(action) => {
                let known = self.returns.iter_mut().find(|(known, _)| *known == action);
                if let Some((_, at)) = known {
                    if self.code.len() - *at > NEAR_MAX {
                        *at = self.code.len();
                        self.push(RETURN, action.0);
                    }
                    // Looked up again because `push` needs all of `self`.
                    return self
                        .returns
                        .iter()
                        .find_map(|(known, at)| (*known == action).then_some(*at))
                        .expect("it was found above");
                }
                let at = self.push(RETURN, action.0);
                self.returns.push((action, at));
                at
            }
        }
    }

    /// A conditional jump.
    fn branch(&mut self, code: u16, operand: u32, yes: Target, no: Target) -> Target {
        let yes = self.near(yes);
        let no = self.near(no);
        let here = self.code.len();
        let skip = |to: usize| u8::try_from(here - to - 1).expect("NEAR_MAX leaves room");
        let (jump_true, jump_false) = (skip(yes), skip(no));
        self.code.push(Instruction { code, jump_true, jump_false, operand });
        Target::At(here)
    }

    /// An instruction that is followed by `next`.
    fn then(&mut self, code: u16, operand: u32, next: Target) -> Target {
        match next {
            Target::At(at) if at + 1 == self.code.len() => {}
            Target::At(at) => {
                let skip = self.code.len() - at - 1;
                self.push(JUMP, u32::try_from(skip).expect("programs are short"));
            }
            Target::Return(action) => {
                self.push(RETURN, action.0);
            }
        }
        Target::At(self.push(code, operand))
    }

    fn load(&mut self, offset: u32, next: Target) -> Target {
        self.then(LOAD, offset, next)
    }

    /// Finds the range of the loaded number by halving.
    fn search(&mut self, ranges: &[Range]) -> Target {
        match ranges {
            [Range { verdict: Verdict::Always(action), .. }] => Target::Return(*action),
            [Range { verdict: Verdict::Depends(cases), .. }] => self.cases(cases),
            // A lone call among others that share a fate takes one comparison, not two.
            [before, one, after]
                if before.verdict == after.verdict && one.start + 1 == after.start =>
            {
                let no = self.search(std::slice::from_ref(before));
                let yes = self.search(std::slice::from_ref(one));
                self.branch(JUMP_EQUAL, one.start, yes, no)
            }
            _ => {
                let (below, above) = ranges.split_at(ranges.len() / 2);
                let yes = self.search(above);
                let no = self.search(below);
                self.branch(JUMP_GREATER_OR_EQUAL, above[0].start, yes, no)
            }
        }
    }

    /// Tries cases one after the other.
    fn cases(&mut self, cases: &[Case]) -> Target {
        let mut next = self.default;
        for case in cases.iter().rev() {
            let mut yes = Target::Return(case.action);
            for condition in case.conditions.iter().rev() {
                yes = self.condition(*condition, case.wide, yes, next);
            }
            next = yes;
        }
        next
    }

    fn condition(&mut self, condition: Condition, wide: bool, yes: Target, no: Target) -> Target {
        let test = match condition.operator {
            Operator::Equal => Test::equal(u64::MAX),
            Operator::MaskedEqual(mask) => Test::equal(mask),
            Operator::Greater => Test::order(JUMP_GREATER),
            Operator::GreaterOrEqual => Test::order(JUMP_GREATER_OR_EQUAL),
            Operator::NotEqual => {
                return self.test(condition, Test::equal(u64::MAX), wide, (no, yes));
            }
            Operator::Less => {
                return self.test(condition, Test::order(JUMP_GREATER_OR_EQUAL), wide, (no, yes));
            }
            Operator::LessOrEqual => {
                return self.test(condition, Test::order(JUMP_GREATER), wide, (no, yes));
            }
        };
        self.test(condition, test, wide, (yes, no))
    }

    /// Compares an argument, upper half first if it has one.
    fn test(
        &mut self,
        condition: Condition,
        test: Test,
        wide: bool,
        (yes, no): (Target, Target),
    ) -> Target {
        let [high, low] = halves(condition.value);
        let [high_mask, low_mask] = halves(test.mask);
        let offset = ARGUMENTS + 8 * u32::from(condition.argument);
        let (high_offset, low_offset) = if cfg!(target_endian = "little") {
            (offset + 4, offset)
        } else {
            (offset, offset + 4)
        };
        let mut next = yes;
        if low_mask != 0 {
            next = self.branch(test.low, low, yes, no);
            next = self.masked(low_offset, low_mask, next);
        }
        if !wide || high_mask == 0 {
            return next;
        }
        next = self.branch(JUMP_EQUAL, high, next, no);
        if test.low != JUMP_EQUAL {
            next = self.branch(JUMP_GREATER, high, yes, next);
        }
        self.masked(high_offset, high_mask, next)
    }

    fn masked(&mut self, offset: u32, mask: u32, next: Target) -> Target {
        let next = if mask == u32::MAX { next } else { self.then(AND, mask, next) };
        self.load(offset, next)
    }
}

/// A comparison that BPF has, on 64 bits by way of their halves.
#[derive(Clone, Copy)]
struct Test {
    /// How the lower halves compare when the upper ones are equal.
    low: u16,
    mask: u64,
}

impl Test {
    fn equal(mask: u64) -> Self {
        Self { low: JUMP_EQUAL, mask }
    }

    fn order(low: u16) -> Self {
        Self { low, mask: u64::MAX }
    }
}

/// The upper and the lower 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "to truncate is what it is for")]
fn halves(value: u64) -> [u32; 2] {
    [(value >> 32) as u32, value as u32]
}
