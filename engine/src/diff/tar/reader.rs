//! Reads entries.

use std::io::Read;

use super::{
    BLOCK_LEN, PATH_LEN_MAX, SPECIAL_COUNT_MAX, SPECIAL_LEN_MAX, Stream, TarError,
    header::{Entry, Header, Kind, Type, text},
    pax::Extended,
    sparse::{self, TextMap},
    stream::StreamError,
};
use crate::diff::{DiffError, error::shown};

/// The entries of an archive, in order.
pub(crate) struct Reader<R> {
    stream: Stream<R>,
    /// The data of the last entry that was not read yet.
    data: u64,
    padding: u64,
    /// The path of the last entry, for errors.
    last: Vec<u8>,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(stream: Stream<R>) -> Self {
        Self { stream, data: 0, padding: 0, last: Vec::new() }
    }

    /// The next entry; data of the last one that was not read is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, DiffError> {
        let entry = self.read().map_err(|error| self.error(error))?;
        if let Some(entry) = &entry {
            self.last.clone_from(&entry.path);
        }
        Ok(entry)
    }

    /// The next bytes of the entry's data, at most `max`; none at its end.
    pub(crate) fn data(&mut self, max: u64) -> Result<&[u8], DiffError> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let Self { stream, data, last, .. } = self;
        let chunk = stream.chunk(max.min(*data)).map_err(|error| error.of(last))?;
        *data -= chunk.len() as u64;
        Ok(chunk)
    }

    /// The stream, behind the entries.
    pub(crate) fn into_stream(self) -> Stream<R> {
        self.stream
    }

    fn error(&self, error: StreamError) -> DiffError {
        error.of(&self.last)
    }

    fn read(&mut self) -> Result<Option<Entry>, StreamError> {
        self.stream.skip(self.data)?;
        self.stream.skip_padding(self.padding)?;
        (self.data, self.padding) = (0, 0);
        let mut extended = Extended::default();
        for _ in 0..SPECIAL_COUNT_MAX {
            let Some(block) = self.stream.block()? else { return Ok(None) };
            let Some(header) = Header::new(&block)? else { return Ok(None) };
            let path = extended.path.clone().unwrap_or_else(|| header.path());
            match header.kind(&path) {
                Type::Pax => extended.add(&self.special(&header)?)?,
                Type::GnuLongName => extended.path = Some(text(&self.special(&header)?).to_vec()),
                Type::GnuLongLink => extended.link = Some(text(&self.special(&header)?).to_vec()),
                Type::PaxGlobal | Type::Label => drop(self.special(&header)?),
                Type::GnuSparse => return self.gnu_sparse(&header, path, extended).map(Some),
                Type::Entry(kind) => return self.entry(&header, path, kind, extended).map(Some),
            }
        }
        let max = SPECIAL_COUNT_MAX as u64;
        Err(TarError::TooLarge { what: "number of extended headers", max }.into())
    }

    /// The data of a header that is not an entry.
    fn special(&mut self, header: &Header<'_>) -> Result<Vec<u8>, StreamError> {
        let len = header.size()?;
        if len > SPECIAL_LEN_MAX {
            let max = SPECIAL_LEN_MAX;
            return Err(TarError::TooLarge { what: "extended header", max }.into());
        }
        let mut data = Vec::new();
        let mut rest = len;
        while rest > 0 {
            let chunk = self.stream.chunk(rest)?;
            data.extend_from_slice(chunk);
            rest -= chunk.len() as u64;
        }
        self.stream.skip(padding(len))?;
        Ok(data)
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        path: Vec<u8>,
        kind: Kind,
        mut extended: Extended,
    ) -> Result<Entry, StreamError> {
        let mut entry = header.entry(path, kind)?;
        extended.apply(&mut entry);
        if let Some(size) = extended.size.filter(|_| matches!(kind, Kind::Regular | Kind::Other(_)))
        {
            (entry.size, entry.stored) = (size, size);
        }
        self.data = entry.stored;
        self.padding = padding(entry.stored);
        if kind == Kind::Regular && extended.sparse.present {
            self.pax_sparse(&mut entry, &extended)?;
        }
        checked(entry)
    }

    fn pax_sparse(&mut self, entry: &mut Entry, extended: &Extended) -> Result<(), StreamError> {
        let sparse = &extended.sparse;
        let pieces = match sparse.version {
            (1, 0) => self.text_map()?,
            (0, 0 | 1) if !sparse.map.is_empty() => sparse.pieces()?,
            // Records that are not understood: the data is all there is, as for older readers.
            _ => return Ok(()),
        };
        if let Some(name) = &sparse.name {
            entry.path.clone_from(name);
        }
        entry.size = sparse.real_size.unwrap_or(entry.size);
        entry.stored = self.data;
        sparse::check(&pieces, entry.size, entry.stored)?;
        entry.pieces = Some(pieces);
        Ok(())
    }

    /// Reads the map in front of the data.
    fn text_map(&mut self) -> Result<Vec<super::header::Piece>, StreamError> {
        let mut map = TextMap::default();
        loop {
            let Some(rest) = self.data.checked_sub(BLOCK_LEN as u64) else {
                return Err(TarError::Sparse.into());
            };
            let block = self.stream.block()?.ok_or(TarError::Truncated)?;
            self.data = rest;
            if map.add(&block)? {
                return Ok(map.pieces());
            }
        }
    }

    fn gnu_sparse(
        &mut self,
        header: &Header<'_>,
        path: Vec<u8>,
        mut extended: Extended,
    ) -> Result<Entry, StreamError> {
        let mut entry = header.entry(path, Kind::Regular)?;
        extended.apply(&mut entry);
        let (slots, mut more, size) = header.gnu_sparse();
        let mut pieces = Vec::new();
        sparse::gnu_pieces(slots, &mut pieces)?;
        while more {
            let block = self.stream.block()?.ok_or(TarError::Truncated)?;
            sparse::gnu_pieces(&block[..504], &mut pieces)?;
            more = block[504] != 0;
        }
        entry.size = size?;
        sparse::check(&pieces, entry.size, entry.stored)?;
        entry.pieces = Some(pieces);
        self.data = entry.stored;
        self.padding = padding(entry.stored);
        checked(entry)
    }
}

impl StreamError {
    fn of(self, last: &[u8]) -> DiffError {
        match self {
            Self::Diff(error) => error,
            Self::Tar(source) => DiffError::Tar { after: shown(last), source },
        }
    }
}

fn checked(entry: Entry) -> Result<Entry, StreamError> {
    if entry.path.len() > PATH_LEN_MAX || entry.link.len() > PATH_LEN_MAX {
        return Err(TarError::TooLarge { what: "path", max: PATH_LEN_MAX as u64 }.into());
    }
    if i64::try_from(entry.size).is_err() {
        return Err(TarError::Number { field: "size" }.into());
    }
    Ok(entry)
}

/// What follows `len` bytes up to the next block.
fn padding(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK_LEN as u64
}
