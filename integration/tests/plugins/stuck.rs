//! A plugin that takes calls and answers none, and an engine that is to stop meanwhile.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, Choice},
    image::{self, Flavour},
    process::Running,
    stage::Stage,
    wait,
};
use rustix::process::Signal;

use crate::{IMAGE, PLUGIN, reconfigure, remove_root, section};

/// A part of the engine that is the stuck program, and a client that needs it.
pub(crate) struct Part {
    pub(crate) kind: &'static str,
    configuration: &'static str,
    /// What a message to the plugin has in it that is sent for that client.
    message: &'static str,
    call: fn(&Cell) -> Result<Running>,
}

/// Those that there are.
pub(crate) const PARTS: [Part; 3] = [
    Part {
        kind: "snapshot",
        configuration: "",
        message: "stuck-key",
        call: |cell| cell.spawn(&["snapshots", "--snapshotter", PLUGIN, "prepare", "stuck-key"]),
    },
    Part {
        kind: "content",
        configuration: "",
        message: "stuck-note",
        call: |cell| {
            let mut ingest = cell.command(&["content", "ingest", "stuck-note"]);
            ingest.stdin(File::open(cell.file("config.toml"))?);
            Running::start(&mut ingest)
        },
    },
    Part {
        kind: "diff",
        configuration: "\n[diff]\norder = [\"gantry\"]\n",
        message: "application/vnd.oci.image.layer",
        call: |cell| {
            let image = image::layered(Flavour::Oci, "plugin")?;
            fs::write(cell.file("image.tar"), image::oci_archive(&image, IMAGE))?;
            cell.spawn(&["images", "import", &cell.file("image.tar").display().to_string()])
        },
    },
];

impl Part {
    /// Starts an engine with such a plugin, has a client wait for it, and stops the engine.
    pub(crate) fn stop(&self, stage: &Stage) -> Result<()> {
        let plugin = Stuck::listen(self.kind)?;
        let mut cell = Cell::bare(Choice::OWN, stage)?;
        let section = section(PLUGIN, self.kind, &plugin.address);
        reconfigure(&mut cell, &(section + self.configuration))?;
        let client = (self.call)(&cell)?;
        let _connection = plugin.wait_for(self.message)?;
        cell.daemon().stop(Signal::TERM).with_context(|| cell.running_daemon().log())?;
        let said = client.finish()?.refused()?;
        ensure!(!said.is_empty(), "the client was told nothing");
        // Nothing of it keeps the engine from coming back.
        cell.daemon().launch_again()?;
        cell.ok(&["namespaces", "ls"])?;
        drop(cell);
        remove_root(stage, Choice::OWN)
    }
}

/// A plugin's socket.
struct Stuck {
    address: PathBuf,
    listener: UnixListener,
}

impl Stuck {
    fn listen(kind: &str) -> Result<Self> {
        let address = PathBuf::from(format!("/run/stuck-{kind}.sock"));
        let listener = UnixListener::bind(&address).context("bind the plugin's socket")?;
        listener.set_nonblocking(true)?;
        Ok(Self { address, listener })
    }

    /// Waits until `message` was sent, and gives the connection, which stays open.
    fn wait_for(&self, message: &str) -> Result<UnixStream> {
        let mut open: Vec<(UnixStream, Vec<u8>)> = Vec::new();
        wait::until("a call to the plugin", || {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    open.push((stream, Vec::new()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            for (place, (stream, said)) in open.iter_mut().enumerate() {
                hear(stream, said)?;
                if said.windows(message.len()).any(|part| part == message.as_bytes()) {
                    return Ok(Some(open.swap_remove(place).0));
                }
            }
            Ok(None)
        })
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.address);
    }
}

/// Reads what has come.
fn hear(stream: &mut UnixStream, said: &mut Vec<u8>) -> Result<()> {
    match stream.read_to_end(said) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error.into()),
        _ => Ok(()),
    }
}
