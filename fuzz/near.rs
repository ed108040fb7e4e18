//! Makes texts near others, the same ones in each run, for the tests of the crates that have fuzz
//! targets: each includes this file.

use std::{fs, path::Path};

/// How many changed texts are made of each seed.
pub(crate) const ROUNDS: usize = 300;

/// The most changes made to a text.
const CHANGES_MAX: usize = 4;

/// What texts are made of that break programs.
const WORDS: [&[u8]; 24] = [
    b"-1",
    b"0",
    b"2147483648",
    b"4294967295",
    b"4294967296",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"1e999",
    b"0.5",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"\"\"",
    b"\"\\u0000\"",
    b"\"\\ud800\"",
    b"../",
    b"/..",
    b"//",
    b"\n",
    b"=",
    b"\xff",
];

/// Numbers without pattern, the same in each run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end.max(1) as u64).expect("is an index")
    }
}

/// Changes a text in one place.
fn change(draw: &mut Draw, text: &mut Vec<u8>, other: &[u8]) {
    let at = draw.below(text.len() + 1);
    let end = (at + draw.below(16)).min(text.len());
    match draw.below(7) {
        0 if at < text.len() => text[at] ^= 1 << draw.below(8),
        1 => drop(text.drain(at..end)),
        2 => drop(text.splice(at..at, WORDS[draw.below(WORDS.len())].iter().copied())),
        3 => {
            // In the place of a value, where that has more to say.
            let value = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
            let length = text[at..].iter().take_while(|byte| value(byte)).count();
            text.splice(at..at + length, WORDS[draw.below(WORDS.len())].iter().copied());
        }
        4 => {
            let from = draw.below(other.len() + 1);
            let to = (from + draw.below(64)).min(other.len());
            text.splice(at..end, other[from..to].iter().copied());
        }
        5 => drop(text.splice(at..at, vec![b"[{\"/. "[draw.below(6)]; 300])),
        _ => text.truncate(at),
    }
}

/// The seeds in a directory, by their paths.
pub(crate) fn seeds(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(directory).expect("read seeds");
    let mut seeds: Vec<_> = entries
        .map(|entry| entry.expect("read entry").path())
        .map(|path| (path.display().to_string(), fs::read(&path).expect("read seed")))
        .collect();
    seeds.sort();
    seeds
}

/// Runs a target on its seeds, and on what is near them.
#[expect(clippy::print_stdout, reason = "the test's, which shows it when it fails")]
pub(crate) fn run(name: &str, target: fn(&[u8]), seeds: &[(String, Vec<u8>)], rounds: usize) {
    assert!(!seeds.is_empty(), "{name} has no seeds");
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    for (path, seed) in seeds {
        // Shown when it panics.
        println!("{name}: {path}");
        target(seed);
        // The large ones take their time.
        for round in 0..rounds.min((4 << 20) / (seed.len() + 1)) {
            let mut text = seed.clone();
            let other = &seeds[draw.below(seeds.len())].1;
            for _ in 0..=draw.below(CHANGES_MAX) {
                change(&mut draw, &mut text, other);
            }
            println!("{name}: {path}, round {round}: {:?}", String::from_utf8_lossy(&text));
            target(&text);
        }
    }
}
