//! Terminals: a tty inside, keys, the window's size, attach.

use anyhow::Result;
use integration::{
    cell::{Cell, IMAGE},
    process::OnTerminal,
};

use super::{Case, has, same};

pub(crate) const CASES: &[Case] = &[
    Case { name: "tty_is_one", run: is_one },
    Case { name: "tty_keys", run: keys },
    Case { name: "tty_ctrl_c", run: ctrl_c },
    Case { name: "tty_resize", run: resize },
    Case { name: "tty_exit_code", run: exit_code },
    Case { name: "tty_exec", run: exec },
    Case { name: "tty_attach", run: attach },
];

fn on_terminal(cell: &Cell, flags: &[&str], argv: &[&str]) -> Result<OnTerminal> {
    let words = cell.run_words(&[&["-t"], flags].concat(), &cell.id(), argv);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    OnTerminal::start(&cell.command(&words), 24, 80)
}

fn is_one(cell: &mut Cell) -> Result<()> {
    // It waits for a key: Debian's ctr loses what is written right before the end.
    let script = "tty; test -t 0 -a -t 1 -a -t 2 && echo all three; read key";
    let mut terminal = on_terminal(cell, &["--rm"], &["sh", "-c", script])?;
    terminal.wait_for("/dev/pts/0")?;
    terminal.wait_for("all three")?;
    terminal.type_keys("\n")?;
    same(terminal.finish()?, 0)
}

fn keys(cell: &mut Cell) -> Result<()> {
    let mut terminal = on_terminal(cell, &["--rm"], &["sh"])?;
    terminal.wait_for("# ")?;
    terminal.type_keys("echo $((6*7))\n")?;
    terminal.wait_for("42")?;
    terminal.type_keys("exit\n")?;
    same(terminal.finish()?, 0)
}

fn ctrl_c(cell: &mut Cell) -> Result<()> {
    let script = "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 1; done";
    let mut terminal = on_terminal(cell, &["--rm"], &["sh", "-c", script])?;
    terminal.wait_for("ready")?;
    terminal.type_keys("\u{3}")?;
    terminal.wait_for("interrupted")?;
    same(terminal.finish()?, 3)
}

fn resize(cell: &mut Cell) -> Result<()> {
    let mut terminal = on_terminal(cell, &["--rm"], &["sh"])?;
    terminal.wait_for("# ")?;
    terminal.type_keys("while ! stty size | grep '33 99'; do :; done; echo changed; exit\n")?;
    terminal.resize_until(33, 99, "\n33 99")?;
    same(terminal.finish()?, 0)
}

fn exit_code(cell: &mut Cell) -> Result<()> {
    same(on_terminal(cell, &["--rm"], &["sh", "-c", "exit 7"])?.finish()?, 7)
}

fn exec(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let words = ["tasks", "exec", "-t", "--exec-id", "e", &id, "sh", "-c", "tty; exit 9"];
    let mut terminal = OnTerminal::start(&cell.command(&words), 24, 80)?;
    let shown = terminal.wait_for("/dev/pts/");
    let code = terminal.finish();
    cell.remove(&id)?;
    shown?;
    same(code?, 9)
}

fn attach(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    cell.ok(&["containers", "create", "-t", IMAGE, &id, "sh"])?;
    let start = cell.command(&["tasks", "start", "-d", &id]);
    same(OnTerminal::start(&start, 24, 80)?.finish()?, 0)?;
    let mut terminal = OnTerminal::start(&cell.command(&["tasks", "attach", &id]), 24, 80)?;
    // The prompt says that what is typed from now on gets there.
    let shown = terminal.type_until("\n", "# ").and_then(|()| {
        terminal.type_keys("echo $((6*7)); exit 5\n")?;
        terminal.wait_for("42")
    });
    let code = terminal.finish();
    cell.ctr(&["tasks", "rm", "-f", &id])?;
    cell.ok(&["containers", "rm", &id])?;
    shown?;
    has(&code?.to_string(), "5")
}
