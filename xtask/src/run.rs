//! Commands that chores run.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// The directory of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    parent.expect("this crate is a member of a workspace").to_owned()
}

/// Cargo, with `words`, in the workspace.
pub(crate) fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(workspace()).args(words);
    command
}

/// Runs `command` with its output shown; its failure is an error.
pub(crate) fn must(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status = command.status().with_context(|| format!("start `{line}`"))?;
    ensure!(status.success(), "`{line}` failed");
    Ok(())
}

/// Runs `command` with its standard output shown and given line by line to `look`; gives whether
/// it succeeded.
pub(crate) fn watch(command: &mut Command, mut look: impl FnMut(&str)) -> Result<bool> {
    let line = line(command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("start `{line}`"))?;
    let output = child.stdout.take().expect("the standard output is a pipe");
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        look(&line);
    }
    Ok(child.wait()?.success())
}

/// Fails at once unless this process is root's, and says what for.
pub(crate) fn needs_root(why: &str) -> Result<()> {
    let id = Command::new("id").arg("-u").output().context("start id")?;
    ensure!(
        id.stdout == b"0\n",
        "this needs root: {why}. Try `sudo -E env PATH=\"$PATH\" cargo xtask ...`"
    );
    Ok(())
}

fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}
