//! Finds changes.

use std::{
    ffi::{CStr, CString},
    io::Write,
    os::fd::OwnedFd,
};

use rustix::fs::{FileType, Stat, fgetxattr};

use super::{
    emit::{Change, Emitter},
    source::{at, kind, names, open_directory, same},
};
use crate::diff::{DiffError, error::shown, tar::Writer};

/// The longest path in a layer, in bytes; longer ones no system could open.
const PATH_LEN_MAX: usize = 4095;

/// How an overlay's upper directory says what it hides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    /// The extended attribute of opaque directories.
    pub(super) opaque: &'static CStr,
}

/// A walk over both trees at once.
pub(super) struct Walk<W: Write> {
    lower: Option<OwnedFd>,
    upper: OwnedFd,
    /// Given if the upper tree has only the changes.
    marks: Option<Marks>,
    emitter: Emitter<W>,
    levels: Vec<Level>,
}

/// A directory in which the walk is.
struct Level {
    path: Vec<u8>,
    /// Names in either tree, last first.
    names: Vec<CString>,
    /// Whether there is such a directory in the lower tree.
    has_lower: bool,
    /// Whether a name that the upper tree does not have was removed.
    complete: bool,
}

/// The directory of a level, open in both trees.
struct Opened {
    lower: Option<OwnedFd>,
    upper: OwnedFd,
}

impl<W: Write> Walk<W> {
    pub(super) fn new(
        lower: Option<OwnedFd>,
        upper: OwnedFd,
        marks: Option<Marks>,
        mtime_max: Option<i64>,
        writer: Writer<W>,
    ) -> Self {
        let emitter = Emitter::new(writer, mtime_max);
        Self { lower, upper, marks, emitter, levels: Vec::new() }
    }

    /// Writes all changes, and gives the writer back.
    pub(super) fn run(mut self) -> Result<Writer<W>, DiffError> {
        let has_lower = self.lower.is_some();
        let mut opened = self.enter(Vec::new(), has_lower, self.marks.is_none())?;
        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.names.pop() else {
                self.levels.pop();
                if let Some(level) = self.levels.last() {
                    opened = self.open(&level.path, level.has_lower)?;
                }
                continue;
            };
            let path = joined(&level.path, &name)?;
            let (has_lower, complete) = (level.has_lower, level.complete);
            let Some(lower_stat) = self.visit(&opened, &name, &path)? else { continue };
            let is_directory = |stat: &Stat| kind(stat) == FileType::Directory;
            let has_lower = has_lower && lower_stat.as_ref().is_some_and(is_directory);
            opened = self.enter(path, has_lower, complete)?;
        }
        Ok(self.emitter.into_writer())
    }

    /// Looks at one name. Returns the lower tree's file if the upper tree has a directory, which
    /// then is to be walked.
    #[expect(clippy::option_option, reason = "one says whether to walk, the other what is below")]
    fn visit(
        &mut self,
        opened: &Opened,
        name: &CStr,
        path: &[u8],
    ) -> Result<Option<Option<Stat>>, DiffError> {
        let failed = |source| DiffError::Source { operation: "read", path: shown(path), source };
        let upper_at = at(&opened.upper, name);
        let lower_at = opened.lower.as_ref().map(|lower| at(lower, name));
        let lower_stat = lower_at.map(|at| at.stat()).transpose().map_err(failed)?.flatten();
        let upper_stat = upper_at.stat().map_err(failed)?;
        let upper_stat = upper_stat.filter(|stat| self.marks.is_none() || !is_whiteout(stat));
        let Some(upper_stat) = upper_stat else {
            if lower_stat.is_some() {
                self.emitter.removal(&self.upper, path)?;
            }
            return Ok(None);
        };
        let change = match (lower_at, &lower_stat) {
            (Some(lower_at), Some(lower_stat)) => {
                let pair = ((lower_at, lower_stat), (upper_at, &upper_stat));
                if same(pair.0, pair.1).map_err(failed)? { Change::None } else { Change::Some }
            }
            _ => Change::Some,
        };
        self.emitter.file(&self.upper, upper_at, &upper_stat, path, change)?;
        Ok((kind(&upper_stat) == FileType::Directory).then_some(lower_stat))
    }

    /// Starts with a directory, which is there in the upper tree.
    fn enter(
        &mut self,
        path: Vec<u8>,
        has_lower: bool,
        complete: bool,
    ) -> Result<Opened, DiffError> {
        let opened = self.open(&path, has_lower)?;
        let failed = |source| DiffError::Source { operation: "list", path: shown(&path), source };
        let complete = complete || self.marks.is_some_and(|marks| is_opaque(&opened.upper, marks));
        let mut all = names(&opened.upper).map_err(failed)?;
        if let Some(lower) = opened.lower.as_ref().filter(|_| complete) {
            all.extend(names(lower).map_err(failed)?);
            all.sort_unstable();
            all.dedup();
        }
        all.reverse();
        self.levels.push(Level { path, names: all, has_lower, complete });
        Ok(opened)
    }

    fn open(&self, path: &[u8], has_lower: bool) -> Result<Opened, DiffError> {
        let failed = |source| DiffError::Source { operation: "open", path: shown(path), source };
        let upper = open_directory(&self.upper, path).map_err(failed)?;
        let lower = self.lower.as_ref().filter(|_| has_lower);
        let lower = lower.map(|lower| open_directory(lower, path)).transpose().map_err(failed)?;
        Ok(Opened { lower, upper })
    }
}

fn joined(directory: &[u8], name: &CStr) -> Result<Vec<u8>, DiffError> {
    let path = match directory {
        b"" => name.to_bytes().to_vec(),
        directory => [directory, b"/", name.to_bytes()].concat(),
    };
    if path.len() > PATH_LEN_MAX {
        let source = rustix::io::Errno::NAMETOOLONG.into();
        return Err(DiffError::Source { operation: "name", path: shown(&path), source });
    }
    Ok(path)
}

fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_opaque(directory: &OwnedFd, marks: Marks) -> bool {
    let mut value = [0; 1];
    fgetxattr(directory, marks.opaque, value.as_mut_slice()).is_ok_and(|len| &value[..len] == b"y")
}
