//! Content that namespaces do not share: containerd's sharing policy "isolated".

use std::fs;

use anyhow::Result;
use integration::{
    daemon::{Daemon, Kind},
    image,
};
use proto::containerd::services::{
    content::v1::{InfoRequest, WriteAction, WriteContentRequest},
    namespaces::v1::{CreateNamespaceRequest, Namespace},
};
use rustix::process::Signal;

use crate::{
    Row,
    objects::labels,
    stores::{WRITE, commit, write, written},
};

/// Starts the engine again with the policy.
pub(crate) fn configure(daemon: &mut Daemon) -> Result<()> {
    let section = match daemon.options().kind {
        Kind::Gantryd => "[content]\nsharing_policy",
        _ => "[plugins.\"io.containerd.metadata.v1.bolt\"]\ncontent_sharing_policy",
    };
    daemon.stop(Signal::TERM)?;
    let file = daemon.options().scratch.join("config.toml");
    let text = fs::read_to_string(&file)?;
    fs::write(&file, format!("{text}\n{section} = \"isolated\"\n"))?;
    daemon.launch_again()
}

pub(crate) fn rows() -> Vec<Row> {
    use WriteAction::{Stat, Write};
    let row = |call, message: &WriteContentRequest| Row::new(call, WRITE, message).showing(written);
    let [hello, bye] = [b"hello", &b"bye"[..]].map(image::digest);
    let expecting = |reference: &str, expected: &str, total| WriteContentRequest {
        expected: expected.to_owned(),
        total,
        ..write(reference, Stat, b"")
    };
    let info = |call, digest: &str| {
        let path = "/containerd.services.content.v1.Content/Info";
        Row::new(call, path, &InfoRequest { digest: digest.to_owned() })
    };
    let shareable = Namespace {
        name: "open".to_owned(),
        labels: labels(&[("containerd.io/namespace.shareable", "true")]),
    };
    let create = CreateNamespaceRequest { namespace: Some(shareable) };
    vec![
        row("isolated: commit", &commit("r1", b"hello", 5, &hello)),
        info("isolated: info of what another namespace has", &hello).of(Some("two")),
        row("isolated: begin what another namespace has", &expecting("r2", &hello, 5))
            .of(Some("two")),
        row("isolated: commit what another namespace has", &expecting("r2", &hello, 5))
            .then(&commit("r2", b"", 5, &hello))
            .of(Some("two")),
        row("isolated: send what another namespace has", &write("r2", Write, b"hello"))
            .then(&WriteContentRequest { offset: 5, ..commit("r2", b"", 5, &hello) })
            .of(Some("two")),
        row("isolated: begin what is there", &expecting("r3", &hello, 5)).of(Some("two")),
        Row::new(
            "isolated: a namespace that shares",
            "/containerd.services.namespaces.v1.Namespaces/Create",
            &create,
        ),
        row("isolated: commit in it", &commit("r1", b"bye", 3, &bye)).of(Some("open")),
        row("isolated: begin what it has", &expecting("r4", &bye, 3)).of(Some("two")),
        row("isolated: commit what it has", &expecting("r4", &bye, 3))
            .then(&WriteContentRequest { offset: 3, ..commit("r4", b"", 3, &bye) })
            .of(Some("two")),
        row("isolated: begin what it has not", &expecting("r5", &hello, 5)).of(Some("three")),
    ]
}
