//! What was done, and what was about to be done: outside of the machine, so that it is not lost.
//!
//! A line is `<verb> <kind> <name>`. `make` and `drop` come before the attempt; `made` and `dropped`
//! after it was acknowledged, or when it was seen how an attempt has ended.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};

/// Whether something must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Present,
    Absent,
    /// The power was cut in the middle.
    Unknown,
}

/// The ledger. A clone is another handle on the same.
#[derive(Clone)]
pub(crate) struct Ledger {
    shared: Arc<Mutex<Book>>,
}

struct Book {
    file: File,
    states: BTreeMap<(String, String), State>,
}

impl Ledger {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let text = if path.exists() { fs::read_to_string(path)? } else { String::new() };
        let mut states = BTreeMap::new();
        // What was cut off at the end tells of nothing that was acknowledged, and goes.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        for line in whole.lines() {
            let (verb, kind, name) = parse(line)?;
            states.insert((kind.to_owned(), name.to_owned()), state(verb)?);
        }
        let file = File::options().create(true).append(true).open(path)?;
        file.set_len(whole.len() as u64)?;
        Ok(Self { shared: Arc::new(Mutex::new(Book { file, states })) })
    }

    /// Notes a line, which is on the host's disk when this returns.
    pub(crate) fn note(&self, verb: &str, kind: &str, name: &str) -> Result<()> {
        let mut book = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(book.file, "{verb} {kind} {name}")?;
        book.file.sync_data()?;
        book.states.insert((kind.to_owned(), name.to_owned()), state(verb)?);
        Ok(())
    }

    /// What is known of everything of a kind.
    pub(crate) fn of(&self, kind: &str) -> Vec<(String, State)> {
        let book = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let of_kind = book.states.iter().filter(|((its, _), _)| its == kind);
        of_kind.map(|((_, name), state)| (name.clone(), *state)).collect()
    }
}

fn parse(line: &str) -> Result<(&str, &str, &str)> {
    let mut words = line.split(' ');
    let mut next = || words.next().with_context(|| format!("a line of the ledger: {line:?}"));
    Ok((next()?, next()?, next()?))
}

fn state(verb: &str) -> Result<State> {
    Ok(match verb {
        "make" | "drop" => State::Unknown,
        "made" => State::Present,
        "dropped" => State::Absent,
        _ => bail!("a verb of the ledger: {verb:?}"),
    })
}
