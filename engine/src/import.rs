//! Takes over the records of a containerd, for whoever puts this daemon in its place on a live node.
//!
//! Containers that run are found by their bundles (see [`crate::runtime`]), but clients look for
//! their records first. So namespaces, containers, images and blobs are copied, and containerd's
//! own files are only read: whoever goes back finds them as they were. Not taken over are snapshots,
//! whose files stay where running containers have them mounted (images are unpacked anew), leases,
//! and unfinished writes. Times are those of the copy.
//!
//! May be repeated: what is there already is left as it is.
//!
//! Source: containerd, `core/metadata/buckets.go`.

mod bolt;

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};

use prost::Message;
use prost_types::Any;
use rustix::fs::{FlockOperation, flock};

use self::bolt::Bucket;
use crate::{
    content::{self, NewWrite},
    digest::Digest,
    error::Error,
    labels::Labels,
    metadata::{self, Container, Image, Runtime},
    namespace::{Namespace, Scope},
    oci::Descriptor,
};

/// The largest database that is read, in bytes.
const DATABASE_LEN_MAX: u64 = 4 << 30;

/// How much of a blob is copied at a time, in bytes.
const CHUNK_LEN: usize = 1 << 20;

/// What came of an import.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// How many containers are new.
    pub containers: usize,
    /// How many images are new.
    pub images: usize,
    /// How many blobs are new.
    pub blobs: usize,
    /// What could not be taken over, and why.
    pub left: Vec<String>,
}

/// Copies the records and blobs of the containerd whose root is `from`.
///
/// # Errors
///
/// - `Unavailable`: that containerd runs.
/// - `InvalidArgument`: its database cannot be understood.
/// - `File`, `Database`: reading it, or writing ours. A record that is no good is
///   [left](Imported::left).
pub fn import(
    from: &Path,
    metadata: &metadata::Store,
    content: &content::Store,
) -> Result<Imported, Error> {
    let bytes = read_database(&from.join("io.containerd.metadata.v1.bolt/meta.db"))?;
    let records = Bucket::read(&bytes)
        .map_err(|error| Error::InvalidArgument(format!("{}: {error}", from.display())))?;
    let blobs = from.join("io.containerd.content.v1.content/blobs");
    let mut import = Import { metadata, content, blobs, done: Imported::default() };
    for (name, bucket) in records.bucket("v1").buckets() {
        match name.parse::<Namespace>() {
            Ok(namespace) => import.namespace(&namespace, bucket)?,
            Err(error) => import.done.left.push(format!("namespace {name:?}: {error}")),
        }
    }
    Ok(import.done)
}

/// Reads the database of a containerd that does not run: one that runs has it locked.
fn read_database(path: &Path) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let message = format!("a containerd that runs has {}", path.display());
            return Err(Error::Unavailable(message));
        }
        locked => locked.map_err(|error| Error::file("lock", path)(error.into()))?,
    }
    let mut bytes = Vec::new();
    let read = file.take(DATABASE_LEN_MAX).read_to_end(&mut bytes);
    read.map_err(Error::file("read", path))?;
    Ok(bytes)
}

struct Import<'a> {
    metadata: &'a metadata::Store,
    content: &'a content::Store,
    /// Where containerd has its blobs.
    blobs: PathBuf,
    done: Imported,
}

impl Import<'_> {
    fn namespace(&mut self, namespace: &Namespace, bucket: &Bucket<'_>) -> Result<(), Error> {
        let made = self.metadata.create_namespace(namespace, labels(bucket));
        self.note(&format!("namespace {namespace}"), made)?;
        let scope = Scope::new(namespace.clone());
        // What an image needs comes before it.
        for (name, blob) in bucket.bucket("content").bucket("blob").buckets() {
            let copied = self.blob(&scope, &name, blob);
            self.done.blobs += self.note(&format!("blob {name}"), copied)?;
        }
        for (name, record) in bucket.bucket("images").buckets() {
            let made = image(&name, record).and_then(|it| self.metadata.create_image(&scope, it));
            self.done.images += self.note(&format!("image {name:?}"), made)?;
        }
        for (id, record) in bucket.bucket("containers").buckets() {
            let made = container(&id, record)
                .and_then(|container| self.metadata.create_container(namespace, container));
            self.done.containers += self.note(&format!("container {id:?}"), made)?;
        }
        Ok(())
    }

    /// Counts what is new, and notes what is no good. What fails for another reason than the record's
    /// own would fail for the next record too.
    fn note<T>(&mut self, what: &str, made: Result<T, Error>) -> Result<usize, Error> {
        match made {
            Ok(_) => Ok(1),
            Err(Error::AlreadyExists(_)) => Ok(0),
            Err(Error::File { operation: "open", source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                self.done.left.push(format!("{what}: its file is missing"));
                Ok(0)
            }
            Err(error @ (Error::InvalidArgument(_) | Error::FailedPrecondition(_))) => {
                self.done.left.push(format!("{what}: {error}"));
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Copies a blob, which is hashed on the way.
    fn blob(&self, scope: &Scope, name: &str, record: &Bucket<'_>) -> Result<(), Error> {
        let digest: Digest = name.parse()?;
        let path = self.blobs.join(digest.algorithm().name()).join(digest.hex());
        let mut file = File::open(&path).map_err(Error::file("open", &path))?;
        let size = file.metadata().map_err(Error::file("stat", &path))?.len();
        let reference = format!("import-{digest}");
        let mut new = NewWrite::new(&reference);
        new.total = size;
        new.expected = Some(digest.clone());
        let mut writer = self.content.writer(scope, new)?;
        if writer.is_shared() {
            return writer.commit(size, None, labels(record)).map(drop);
        }
        writer.truncate()?;
        let mut chunk = vec![0; CHUNK_LEN];
        loop {
            match file.read(&mut chunk).map_err(Error::file("read", &path))? {
                0 => break,
                len => writer.write(&chunk[..len])?,
            }
        }
        writer.commit(size, Some(&digest), labels(record)).map(drop)
    }
}

fn labels(bucket: &Bucket<'_>) -> Labels {
    texts(bucket.bucket("labels"))
}

fn texts(bucket: &Bucket<'_>) -> Labels {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    bucket.values().map(|(key, value)| (key, text(value))).collect()
}

fn image(name: &str, record: &Bucket<'_>) -> Result<Image, Error> {
    let target = record.bucket("target");
    let now = SystemTime::now();
    Ok(Image {
        name: name.to_owned(),
        labels: labels(record),
        target: Descriptor {
            media_type: target.text("mediatype"),
            digest: target.text("digest").parse()?,
            size: varint(target.value("size")),
            platform: None,
            annotations: texts(record.bucket("annotations")),
            urls: Vec::new(),
        },
        created: now,
        updated: now,
    })
}

fn container(id: &str, record: &Bucket<'_>) -> Result<Container, Error> {
    let runtime = record.bucket("runtime");
    let extensions = record.bucket("extensions").values();
    let extensions = extensions.map(|(key, value)| Ok((key, any(value)?.unwrap_or_default())));
    let now = SystemTime::now();
    Ok(Container {
        id: id.to_owned(),
        labels: labels(record),
        image: record.text("image"),
        runtime: Runtime { name: runtime.text("name"), options: any(runtime.value("options"))? },
        spec: any(record.value("spec"))?,
        snapshotter: record.text("snapshotter"),
        snapshot_key: record.text("snapshotKey"),
        created: now,
        updated: now,
        extensions: extensions.collect::<Result<_, Error>>()?,
        sandbox: record.text("sandboxid"),
    })
}

/// An encoded message; `None` for no bytes.
fn any(bytes: &[u8]) -> Result<Option<Any>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let decoded = Any::decode(bytes);
    decoded.map(Some).map_err(|error| Error::InvalidArgument(format!("malformed message: {error}")))
}

/// A number as Go's `binary.PutVarint` writes it; 0 for what is none, or negative.
fn varint(bytes: &[u8]) -> u64 {
    let Ok(zigzag) = prost::encoding::decode_varint(&mut &*bytes) else { return 0 };
    if zigzag & 1 == 0 { zigzag >> 1 } else { 0 }
}

/// Opens what is needed below `root`, and imports from the containerd whose root is `from`.
///
/// # Errors
///
/// Those of [`import`]; `Database` when a daemon runs on `root`.
pub fn import_into(root: &Path, from: &Path) -> Result<Imported, Error> {
    fs::create_dir_all(root).map_err(Error::file("create", root))?;
    crate::db::refuse_lost(root)?;
    let metadata = metadata::Store::open(&root.join("metadata.redb"))?;
    let content = content::Store::open(&root.join("content"), metadata.clone())?;
    import(from, &metadata, &content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let cases: [(&str, &[u8], u64); 5] = [
            ("nothing", &[], 0),
            ("small", &[6], 3),
            ("two bytes", &[0xac, 0x02], 150),
            ("negative", &[5], 0),
            ("cut short", &[0x80], 0),
        ];
        for (case, bytes, want) in cases {
            assert_eq!(varint(bytes), want, "{case}");
        }
    }

    #[test]
    fn what_is_no_database_is_named() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (root, from) = (directory.path().join("root"), directory.path().join("from"));
        let error = import_into(&root, &from).expect_err("missing");
        assert!(error.to_string().contains("meta.db"), "{error}");
        let folder = from.join("io.containerd.metadata.v1.bolt");
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join("meta.db"), "no database").expect("written");
        let error = import_into(&root, &from).expect_err("no database");
        assert!(error.to_string().contains("not a bolt database"), "{error}");
        let lock = File::open(folder.join("meta.db")).expect("there");
        flock(&lock, FlockOperation::LockExclusive).expect("locked");
        let error = import_into(&root, &from).expect_err("in use");
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
    }
}
