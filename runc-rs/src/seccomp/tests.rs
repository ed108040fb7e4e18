//! Compares this compiler with libseccomp, whose programs `tests/data/seccomp` has.

use std::collections::BTreeSet;

use sys::seccomp::Instruction;

use super::{
    architecture::{Architecture, X32_BIT},
    interpret::{Call, run},
    numbers, *,
};
use crate::spec::seccomp::{LinuxSeccompArg, LinuxSyscall};

macro_rules! fixture {
    ($name:literal) => {
        (
            $name,
            include_str!(concat!("../../tests/data/seccomp/", $name, ".json")),
            include_bytes!(concat!("../../tests/data/seccomp/", $name, ".bpf")).as_slice(),
        )
    };
}

const FIXTURES: [(&str, &str, &[u8]); 7] = [
    fixture!("containerd"),
    fixture!("podman"),
    fixture!("arbitrary-errno"),
    fixture!("arbitrary-allow"),
    fixture!("arbitrary-kill"),
    fixture!("arbitrary-trap"),
    fixture!("arbitrary-long"),
];

fn parse_program(bytes: &[u8]) -> Vec<Instruction> {
    let instruction = |raw: &[u8]| Instruction {
        code: u16::from_le_bytes([raw[0], raw[1]]),
        jump_true: raw[2],
        jump_false: raw[3],
        operand: u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]),
    };
    bytes.chunks_exact(8).map(instruction).collect()
}

/// Numbers without pattern, the same in each run.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn of(&mut self, list: &[u64]) -> u64 {
        let at = usize::try_from(self.next() % list.len() as u64).expect("is an index");
        list[at]
    }
}

/// Values at which a condition of the profile may change its mind.
fn interesting(profile: &LinuxSeccomp) -> Vec<u64> {
    let mut values = BTreeSet::from([0, 1, 19, 23, u64::MAX, 1 << 31, 1 << 32]);
    for arg in profile.syscalls.iter().flat_map(|rule| &rule.args) {
        for value in [arg.value, arg.value_two, arg.value & arg.value_two] {
            values.extend([value, value.wrapping_add(1), value.wrapping_sub(1)]);
            values.extend([value ^ 1 << 32, value & 0xffff_ffff, !value]);
        }
    }
    values.into_iter().collect()
}

/// The highest number that the profile names on an architecture; calls above it are new.
fn last_named(profile: &LinuxSeccomp, architecture: Architecture) -> Option<u32> {
    let passes = ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"];
    if passes.contains(&profile.default_action.as_str()) {
        return None;
    }
    let names = profile.syscalls.iter().flat_map(|rule| &rule.names);
    names.filter_map(|name| architecture.number(numbers::row(name)?)).max()
}

/// Whether a call is of an architecture, among those that share its token.
fn is_of(architecture: Architecture, call: &Call) -> bool {
    let is_x32 = call.number & X32_BIT != 0;
    architecture.token == call.token
        && (!architecture.is_x86_64() || !is_x32)
        && (!architecture.is_x32() || is_x32)
}

fn call_numbers() -> impl Iterator<Item = u32> {
    let mips = (3990..4500).chain(5000..5500).chain(6000..6500);
    let arm_private = 0xf_0000..0xf_0010;
    let x32 = X32_BIT..X32_BIT + 600;
    (0..600).chain(mips).chain(arm_private).chain(x32).chain([u32::MAX, 0x7fff_ffff])
}

#[test]
fn decides_as_libseccomp() {
    for (name, text, bytes) in FIXTURES {
        let profile: LinuxSeccomp = serde_json::from_str(text).expect("is valid");
        let theirs = parse_program(bytes);
        let ours = compile(&profile).expect("compiles").instructions;
        let mut architectures = vec![Architecture::named("SCMP_ARCH_X86_64").expect("is known")];
        architectures
            .extend(profile.architectures.iter().filter_map(|name| Architecture::named(name)));
        let last: Vec<_> = architectures.iter().map(|&a| (a, last_named(&profile, a))).collect();
        let values = interesting(&profile);
        let mut tokens: BTreeSet<u32> = architectures.iter().map(|a| a.token).collect();
        tokens.insert(0xdead_beef);
        let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
        for token in tokens {
            for number in call_numbers() {
                for _ in 0..16 {
                    let arguments = std::array::from_fn(|_| draw.of(&values));
                    let call = Call { token, number, arguments };
                    let last = last.iter().find(|(architecture, _)| is_of(*architecture, &call));
                    let is_new = last.is_some_and(|(_, last)| last.is_some_and(|n| number > n));
                    let want = if is_new { 0x0005_0026 } else { run(&theirs, &call).0 };
                    assert_eq!(run(&ours, &call).0, want, "{name}: {call:x?}");
                }
            }
        }
    }
}

/// Measured for the first: 675 instructions by the prototype, 993 or 1239 by libseccomp.
#[test]
fn programs_are_short() {
    for (name, text, bytes) in &FIXTURES[..2] {
        let profile: LinuxSeccomp = serde_json::from_str(text).expect("is valid");
        let ours = compile(&profile).expect("compiles").instructions.len();
        let theirs = bytes.len() / 8;
        println!("{name}: {ours} {theirs}");
        assert!(ours < theirs, "{name}: {ours} instead of {theirs}");
    }
}

fn rule(names: &[&str], action: &str, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let names = names.iter().map(|&name| name.to_owned()).collect();
    LinuxSyscall { names, action: action.to_owned(), errno_ret: None, args }
}

fn equals(index: u32, value: u64) -> LinuxSeccompArg {
    LinuxSeccompArg { index, value, value_two: 0, op: "SCMP_CMP_EQ".to_owned() }
}

fn profile(default: &str, syscalls: Vec<LinuxSyscall>) -> LinuxSeccomp {
    LinuxSeccomp { default_action: default.to_owned(), syscalls, ..LinuxSeccomp::default() }
}

#[test]
fn order_of_rules() {
    let cases = [
        (
            "the first that holds",
            vec![
                rule(&["read"], "SCMP_ACT_KILL", vec![equals(0, 1), equals(1, 2)]),
                rule(&["read"], "SCMP_ACT_TRAP", vec![equals(0, 1)]),
            ],
            [0, 0x0003_0000, 0x7fff_0000],
        ),
        (
            "one without conditions decides",
            vec![
                rule(&["read"], "SCMP_ACT_KILL", vec![equals(0, 1)]),
                rule(&["read"], "SCMP_ACT_LOG", vec![]),
                rule(&["read"], "SCMP_ACT_TRAP", vec![]),
            ],
            [0x7ffc_0000; 3],
        ),
        (
            "two conditions on one argument: either",
            vec![rule(&["read"], "SCMP_ACT_TRAP", vec![equals(0, 1), equals(0, 2), equals(1, 5)])],
            [0x0003_0000, 0x0003_0000, 0x7fff_0000],
        ),
        (
            "unknown names are ignored",
            vec![rule(&["call_of_tomorrow"], "SCMP_ACT_KILL", vec![])],
            [0x7fff_0000; 3],
        ),
        (
            "the default action is void",
            vec![
                rule(&["read"], "SCMP_ACT_ALLOW", vec![]),
                rule(&["read"], "SCMP_ACT_TRAP", vec![equals(0, 1)]),
            ],
            [0x0003_0000, 0x0003_0000, 0x7fff_0000],
        ),
    ];
    let native = Architecture::native();
    let number = native.number(numbers::row("read").expect("is known")).expect("is native");
    for (case, rules, want) in cases {
        let program = compile(&profile("SCMP_ACT_ALLOW", rules)).expect(case).instructions;
        let got = [[1, 2], [1, 3], [0, 0]].map(|[first, second]| {
            let arguments = [first, second, 0, 0, 0, 0];
            run(&program, &Call { token: native.token, number, arguments }).0
        });
        assert_eq!(got, want, "{case}");
    }
}

#[test]
fn refuses() {
    let allow = |name: &str| rule(&[name], "SCMP_ACT_ALLOW", vec![]);
    let notify = |name: &str| rule(&[name], "SCMP_ACT_NOTIFY", vec![]);
    let with = |args| vec![LinuxSyscall { args, ..allow("read") }];
    let errno = LinuxSyscall { errno_ret: Some(4096), ..rule(&["read"], "SCMP_ACT_ERRNO", vec![]) };
    let operator = LinuxSeccompArg { op: "==".to_owned(), ..equals(0, 1) };
    let trap = |rules| profile("SCMP_ACT_TRAP", rules);
    let flags = Some(vec!["SECCOMP_FILTER_FLAG_LOG".to_owned(), "FAST".to_owned()]);
    let cases = [
        (profile("ALLOW", vec![]), Error::Action("ALLOW".to_owned())),
        (profile("", vec![allow("read")]), Error::Action(String::new())),
        (profile("SCMP_ACT_NOTIFY", vec![]), Error::NotifyByDefault),
        (trap(vec![notify("write")]), Error::NotifyWrite),
        (trap(vec![notify("read")]), Error::NoListener),
        (trap(vec![allow("")]), Error::EmptyName),
        (trap(vec![errno]), Error::ErrorNumber(4096)),
        (trap(with(vec![operator])), Error::Operator("==".to_owned())),
        (trap(with(vec![equals(6, 1)])), Error::Argument { name: "read".to_owned(), index: 6 }),
        (LinuxSeccomp { flags, ..trap(vec![]) }, Error::Flag("FAST".to_owned())),
        (
            LinuxSeccomp { architectures: vec!["Z80".to_owned()], ..trap(vec![]) },
            Error::Architecture("Z80".to_owned()),
        ),
    ];
    for (seccomp, want) in cases {
        assert_eq!(compile(&seccomp), Err(want.clone()), "{want}");
    }
}

#[test]
fn flags_and_listener() {
    use sys::seccomp::{FLAG_LOG, FLAG_SPEC_ALLOW};
    let mut seccomp = profile("SCMP_ACT_ALLOW", vec![rule(&["read"], "SCMP_ACT_NOTIFY", vec![])]);
    seccomp.listener_path = "/run/agent".to_owned();
    seccomp.listener_metadata = "who".to_owned();
    let program = compile(&seccomp).expect("compiles");
    let listener = Listener { path: PathBuf::from("/run/agent"), metadata: "who".to_owned() };
    assert_eq!(program.listener, Some(listener));
    assert_eq!(program.flags, FLAG_SPEC_ALLOW | FLAG_NEW_LISTENER);

    let flags = ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"];
    let mut seccomp = profile("SCMP_ACT_ALLOW", vec![]);
    seccomp.flags = Some(flags.map(str::to_owned).to_vec());
    assert_eq!(compile(&seccomp).map(|program| program.flags), Ok(FLAG_LOG));
}
