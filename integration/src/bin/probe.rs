//! A program to put into a container where nothing else is.
//!
//! Says where it finds itself, from inside, and then does what its arguments ask for:
//! `exit <code>`, `sleep <seconds>`, `echo <words>`; without arguments it only says.
//!
//! Outside of containers, `peak <file> <program> <words>` writes into a file how much memory a
//! program had resident at most, in KiB. A child counts what the one who starts it has resident,
//! too, so that has to be a small program.

use std::{env, fs, io::Write, process::ExitCode, thread, time::Duration};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => say(&whereabouts()),
        ["exit", code] => return ExitCode::from(code.parse::<u8>().unwrap_or(u8::MAX)),
        ["sleep", seconds] => {
            say("sleeping\n");
            thread::sleep(Duration::from_secs(seconds.parse().unwrap_or(1)));
        }
        ["echo", rest @ ..] => say(&format!("{}\n", rest.join(" "))),
        ["peak", file, program, rest @ ..] => return peak(file, program, rest),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

fn peak(file: &str, program: &str, words: &[&str]) -> ExitCode {
    let child = std::process::Command::new(program).args(words).spawn();
    let Ok((status, usage)) = child.and_then(sys::usage::wait) else { return ExitCode::from(2) };
    match fs::write(file, usage.peak_kib.to_string()) {
        Ok(()) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn say(text: &str) {
    // Whoever listened may have gone; there is nobody left to tell.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn whereabouts() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let status = read("/proc/self/status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("?", |(_, value)| value.trim()).replace('\t', " ")
    };
    let mounts = read("/proc/self/mountinfo").lines().count();
    format!(
        "I am process {} on host {:?}, user {}.\nI see {mounts} mounts; seccomp mode {}; \
         capabilities {}.\n",
        std::process::id(),
        read("/proc/sys/kernel/hostname"),
        field("Uid").split(' ').next().unwrap_or("?"),
        field("Seccomp"),
        field("CapEff"),
    )
}
