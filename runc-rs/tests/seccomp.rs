//! Filters on the real kernel. Needs no rights: a thread gives up gaining any.

use runc_rs::{seccomp::compile, spec::seccomp::LinuxSeccomp};
use rustix::{
    fs::{CWD, Mode, mkdirat},
    io::Errno,
    process::Pid,
};

/// Runs `test` in a thread of its own under the filter for `profile`.
fn under<T: Send + 'static>(profile: &str, test: fn() -> T) -> T {
    let profile: LinuxSeccomp = serde_json::from_str(profile).expect("is valid");
    let program = compile(&profile).expect("compiles");
    let thread = std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).expect("is always allowed");
        sys::seccomp::load(&program.instructions, program.flags).expect("loads");
        test()
    });
    thread.join().expect("the test does not panic")
}

fn make_directory() -> Result<(), Errno> {
    mkdirat(CWD, "/dev/null/nothing", Mode::RWXU)
}

#[test]
fn an_error_of_the_profile() {
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":
        [{"names":["mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":7}]}"#;
    assert_eq!(under(profile, make_directory), Err(Errno::TOOBIG));
}

#[test]
fn arguments_are_compared() {
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":
        [{"names":["kill"],"action":"SCMP_ACT_ERRNO","errnoRet":7,
          "args":[{"index":0,"value":2147483647,"op":"SCMP_CMP_EQ"}]}]}"#;
    let got = under(profile, || {
        [i32::MAX, i32::MAX - 1]
            .map(|pid| rustix::process::test_kill_process(Pid::from_raw(pid).expect("is not 0")))
    });
    assert_eq!(got, [Err(Errno::TOOBIG), Err(Errno::SRCH)]);
}

#[test]
fn the_default_profile_of_engines() {
    let profile = include_str!("data/seccomp/containerd.json");
    let got = under(profile, || (make_directory(), set_hostname()));
    assert_eq!(got, (Err(Errno::NOTDIR), Err(Errno::PERM)));
}

/// Fails in this way even for root, if it is allowed to fail.
fn set_hostname() -> Result<(), Errno> {
    rustix::system::sethostname(&[b'x'; 65])
}
