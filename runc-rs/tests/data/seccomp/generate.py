#!/usr/bin/python3
"""Makes the profiles in this directory and has libseccomp compile them.

For each profile there is NAME.json, an OCI `linux.seccomp`, and NAME.bpf, the program that
libseccomp makes of it (struct sock_filter, little endian). The tests of the `seccomp` module
compare what both compilers decide; they need only the files, so that neither libseccomp nor
Python has to be there.

Needs python3-seccomp (Debian). Arguments: the Go source of containerd's default profile, and
podman's seccomp.json. Calls that this libseccomp does not know are left out of the profiles.
"""

import json
import os
import random
import re
import sys

import seccomp

HERE = os.path.dirname(os.path.abspath(__file__))
NATIVE_AND_SISTERS = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
OPERATORS = {
    "SCMP_CMP_NE": seccomp.NE, "SCMP_CMP_LT": seccomp.LT, "SCMP_CMP_LE": seccomp.LE,
    "SCMP_CMP_EQ": seccomp.EQ, "SCMP_CMP_GE": seccomp.GE, "SCMP_CMP_GT": seccomp.GT,
    "SCMP_CMP_MASKED_EQ": seccomp.MASKED_EQ,
}
ARCHITECTURES = {
    "SCMP_ARCH_X86_64": seccomp.Arch.X86_64, "SCMP_ARCH_X86": seccomp.Arch.X86,
    "SCMP_ARCH_X32": seccomp.Arch.X32, "SCMP_ARCH_ARM": seccomp.Arch.ARM,
    "SCMP_ARCH_AARCH64": seccomp.Arch.AARCH64, "SCMP_ARCH_RISCV64": seccomp.Arch.RISCV64,
    "SCMP_ARCH_MIPSEL": seccomp.Arch.MIPSEL, "SCMP_ARCH_MIPSEL64": seccomp.Arch.MIPSEL64,
    "SCMP_ARCH_MIPSEL64N32": seccomp.Arch.MIPSEL64N32,
    "SCMP_ARCH_PPC64LE": seccomp.Arch.PPC64LE,
}


def action(name, errno):
    errno = 1 if errno is None else errno
    return {
        "SCMP_ACT_ALLOW": seccomp.ALLOW, "SCMP_ACT_LOG": seccomp.LOG,
        "SCMP_ACT_KILL": seccomp.KILL, "SCMP_ACT_KILL_THREAD": seccomp.KILL,
        "SCMP_ACT_KILL_PROCESS": seccomp.KILL_PROCESS, "SCMP_ACT_TRAP": seccomp.TRAP,
        "SCMP_ACT_NOTIFY": seccomp.NOTIFY, "SCMP_ACT_ERRNO": seccomp.ERRNO(errno),
        "SCMP_ACT_TRACE": seccomp.TRACE(errno),
    }[name]


COLUMNS = ["X86_64", "X86", "X32", "AARCH64", "ARM", "RISCV64", None, None, "PPC64LE", None, None,
           "MIPSEL", "MIPSEL64", "MIPSEL64N32"]
BASES = {"X32": 0x40000000, "MIPSEL": 4000, "MIPSEL64": 5000, "MIPSEL64N32": 6000}
NUMBERS = {
    name: [None if n == "N" else int(n, 0) for n in numbers.split(", ")]
    for name, numbers in re.findall(r'\("(\w+)", \[([^]]*)\]', open(
        os.path.join(HERE, "../../../src/seccomp/numbers.rs")).read())
}


def known(name):
    """Whether this libseccomp has the call, with the same numbers as our table.

    It is older than the table; multiplexed calls have numbers from -299 to -100 in it.
    """
    if name not in NUMBERS or seccomp.resolve_syscall(seccomp.Arch(), name) == -1:
        return False
    for column, number in zip(COLUMNS, NUMBERS[name]):
        if column is None:
            continue
        theirs = seccomp.resolve_syscall(ARCHITECTURES["SCMP_ARCH_" + column], name)
        if number is not None:
            number = number - 0xf000 + 0xf0000 if number >= 0xf000 else number + BASES.get(column, 0)
        if theirs != number and not (-300 < theirs <= -100 or theirs < -300 and number is None):
            return False
    return True


def compile_(profile):
    default = action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    out = seccomp.SyscallFilter(default)
    for architecture in profile.get("architectures", []):
        if architecture != "SCMP_ARCH_X86_64":
            out.add_arch(ARCHITECTURES[architecture])
    for rule in profile["syscalls"]:
        act = action(rule["action"], rule.get("errnoRet"))
        if act == default:
            continue
        args = [
            seccomp.Arg(arg["index"], OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo", 0))
            for arg in rule.get("args") or []
        ]
        indices = [arg["index"] for arg in rule.get("args") or []]
        for name in rule["names"]:
            if len(set(indices)) < len(indices):
                for arg in args:
                    out.add_rule(act, name, arg)
            else:
                out.add_rule(act, name, *args)
    return out


def write(name, profile):
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if known(name)]
    profile["syscalls"] = [rule for rule in profile["syscalls"] if rule["names"]]
    program = compile_(profile)
    with open(os.path.join(HERE, name + ".json"), "w") as file:
        json.dump(profile, file, indent=None, separators=(",", ":"))
        file.write("\n")
    with open(os.path.join(HERE, name + ".bpf"), "wb") as file:
        program.export_bpf(file)


def containerd(path):
    text = open(path).read()
    begin = text.index("syscalls := ")
    base = text[begin:text.index("s := &specs.LinuxSeccomp", begin)]
    names = re.findall(r'"([a-z0-9_]+)"', base[:base.index("Args:")])
    constants = {"unix.AF_ALG": 38, "unix.AF_VSOCK": 40, "unix.AF_ALG + 1": 39}
    operators = {"OpEqualTo": "EQ", "OpLessThan": "LT", "OpGreaterThan": "GT",
                 "OpNotEqual": "NE", "OpMaskedEqual": "MASKED_EQ"}
    rules = [{"names": names, "action": "SCMP_ACT_ALLOW"}]
    single = re.compile(
        r'Names:\s+\[\]string\{"(\w+)"\},\s+Action: specs.ActAllow,\s+Args: .*?Index: (\d),\s+'
        r'Value: ([^,]+),\s+Op:\s+specs\.(\w+)', re.S)
    for name, index, value, operator in single.findall(base):
        value = constants[value] if value in constants else int(value, 0)
        rules.append({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": int(index), "value": value, "op": "SCMP_CMP_" + operators[operator]}]})
    rules += [
        {"names": ["process_vm_readv", "process_vm_writev", "ptrace"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["arch_prctl", "modify_ldt"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 0x7e020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["chroot"], "action": "SCMP_ACT_ALLOW"},
    ]
    return {"defaultAction": "SCMP_ACT_ERRNO", "architectures": NATIVE_AND_SISTERS,
            "syscalls": rules}


def podman(path):
    profile = json.load(open(path))
    rules = []
    for rule in profile["syscalls"]:
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        if "amd64" not in includes.get("arches", ["amd64"]) or includes.get("caps"):
            continue
        rules.append({key: rule[key] for key in ("names", "action", "errnoRet", "args")
                      if rule.get(key) is not None})
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "architectures": NATIVE_AND_SISTERS, "syscalls": rules}


def arbitrary(seed, architectures, default):
    """Rules with conditions of all kinds; one action per call, for order not to matter."""
    draw = random.Random(seed)
    calls = [name for name in NUMBERS if known(name)]
    actions = [("SCMP_ACT_ALLOW", None), ("SCMP_ACT_ERRNO", 13), ("SCMP_ACT_ERRNO", None),
               ("SCMP_ACT_TRAP", None), ("SCMP_ACT_LOG", None), ("SCMP_ACT_KILL_PROCESS", None),
               ("SCMP_ACT_KILL_THREAD", None), ("SCMP_ACT_TRACE", 7)]
    values = [0, 1, 2, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x1ffffffff,
              0x123456789abcdef0, 2**64 - 1]
    rules = []
    for name in draw.sample(calls, 150):
        act, errno = draw.choice([a for a in actions if a[0] != default])
        if draw.random() < 0.5:
            rules.append({"names": [name], "action": act, "errnoRet": errno})
            continue
        # libseccomp 2.5 merges the rules of a call into one tree, and goes wrong where ordered
        # comparisons of one argument meet; so only one rule has them.
        for operators in [list(OPERATORS), ["SCMP_CMP_EQ"]][:draw.randint(1, 2)]:
            indices = draw.sample(range(6), draw.choice([1, 1, 2, 3]))
            rules.append({"names": [name], "action": act, "errnoRet": errno, "args": [
                {"index": index, "value": draw.choice(values), "valueTwo": draw.choice(values),
                 "op": draw.choice(operators)} for index in indices]})
            if operators != ["SCMP_CMP_EQ"] and len(indices) > 1:
                break
    for rule in rules:
        if rule.get("errnoRet") is None:
            rule.pop("errnoRet", None)
    return {"defaultAction": default, "architectures": architectures, "syscalls": rules}


def main():
    write("containerd", containerd(sys.argv[1]))
    write("podman", podman(sys.argv[2]))
    write("arbitrary-errno", arbitrary(1, NATIVE_AND_SISTERS, "SCMP_ACT_ERRNO"))
    write("arbitrary-allow", arbitrary(2, ["SCMP_ARCH_X86"], "SCMP_ACT_ALLOW"))
    write("arbitrary-kill", arbitrary(
        3, ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_RISCV64"], "SCMP_ACT_KILL_PROCESS"))
    write("arbitrary-trap", arbitrary(
        4, ["SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32",
            "SCMP_ARCH_PPC64LE"], "SCMP_ACT_TRAP"))
    write("arbitrary-long", arbitrary(5, NATIVE_AND_SISTERS, "SCMP_ACT_LOG"))


main()
