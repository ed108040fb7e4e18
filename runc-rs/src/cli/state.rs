//! `state`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::flags::{ANYWHERE, Parsed};
use crate::{
    container::{Container, Status},
    error::Error,
    settings::Settings,
};

/// What `state` and `list` show of a container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View {
    oci_version: String,
    pub(super) id: String,
    pub(super) pid: i32,
    pub(super) status: String,
    pub(super) bundle: String,
    rootfs: String,
    pub(super) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    pub(super) owner: String,
}

impl View {
    pub(super) fn new(container: &Container, owner: String) -> Result<Self, Error> {
        let status = container.status()?;
        let state = container.state();
        Ok(Self {
            oci_version: state.config.version.clone(),
            id: state.id.clone(),
            pid: if status == Status::Stopped { 0 } else { state.init_process_pid },
            status: status.to_string(),
            bundle: state.bundle().to_owned(),
            rootfs: state.config.rootfs.clone(),
            created: state.created.clone(),
            annotations: state.annotations(),
            owner,
        })
    }
}

pub(super) fn run(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &[], ANYWHERE)?;
    parsed.expect("state", 1, 1)?;
    let container = super::container(settings, &parsed)?;
    let view = View::new(&container, String::new())?;
    let text = serde_json::to_string_pretty(&view)
        .map_err(|error| Error::system("write", "state", std::io::Error::other(error)))?;
    super::write_out(&text)?;
    Ok(0)
}
