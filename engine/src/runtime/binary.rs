//! Which program is the shim of a task or a sandbox.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::{Error, bundle::Bundle, resolve};

/// The shim's binary. Of what was found it is looked for when it is first needed, and kept.
#[derive(Debug)]
pub(super) struct Binary(OnceLock<PathBuf>);

impl Binary {
    /// The one that a client asked for, or else the one that a bundle says.
    pub(super) fn new(asked: Option<&Path>) -> Self {
        Self(asked.map_or_else(OnceLock::new, |binary| binary.to_owned().into()))
    }

    /// The binary of whoever has the `bundle`.
    ///
    /// # Errors
    ///
    /// `Bundle`: there is too little of something to read it now. Another program than the one that made
    /// what is there does not know how to clean it up, so none is guessed.
    pub(super) fn of(&self, bundle: &Bundle) -> Result<&Path, Error> {
        if let Some(known) = self.0.get() {
            return Ok(known);
        }
        let found = adopted(bundle)?;
        Ok(self.0.get_or_init(|| found))
    }
}

/// The shim's binary for a bundle that was found. An upgrade may have taken the one away that the
/// task was made with, so one of the same name will do.
fn adopted(bundle: &Bundle) -> Result<PathBuf, Error> {
    let recorded = bundle.find_binary()?.filter(|path| path.is_absolute());
    let name = recorded.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let name = name.unwrap_or(resolve::OWN_SHIM).to_owned();
    Ok(match recorded {
        Some(path) if path.is_file() => path,
        _ => resolve::search(&name).unwrap_or_else(|| PathBuf::from(name)),
    })
}
