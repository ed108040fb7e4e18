//! What is fuzzed: a function for each thing that clients, images and archives write.
//!
//! Nothing that comes in may panic, take more than it may, or change what is not its own. The
//! functions are called by `fuzz/`, which looks for new inputs, and by this crate's tests, which run
//! the seeds and what is near them.

use std::{
    borrow::Cow,
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use snapshotter::Mount;

use crate::{
    diff::{
        self, Decoder, Encoder, Limits,
        tar::{Reader, Stream},
    },
    digest::Digest,
    filter::{Fields, Filter},
    labels::LABEL_LEN_MAX,
    oci::{Config, Descriptor, Document, media_type},
    reference::Reference,
};

/// A target: its name, which is that of its directory of seeds, and what is called.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 8] = [
    ("layer", layer),
    ("apply", apply),
    ("decompress", decompress),
    ("filter", filter),
    ("reference", reference),
    ("digest", digest),
    ("document", document),
    ("label", label),
];

/// The most that is made of one input, in bytes.
const BYTES_MAX: u64 = 1 << 22;

/// Runs one target.
///
/// # Panics
///
/// When there is no such target, or on a fault.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("target is listed");
    target(data);
}

/// A layer, with headers of all kinds, of which only the data may be as long as it likes.
fn layer(data: &[u8]) {
    let data = with_checksums(data);
    let Ok(decoder) = Decoder::new(data.as_slice()) else { return };
    let mut reader = Reader::new(Stream::new(decoder, BYTES_MAX));
    let mut read = 0;
    while let Ok(Some(entry)) = reader.next() {
        assert!(entry.path.len() <= 4096 && !entry.path.contains(&0), "{entry:?}");
        assert!(!entry.link.contains(&0), "{entry:?}");
        while let Ok(chunk @ [_, ..]) = reader.data(BYTES_MAX) {
            read += chunk.len() as u64;
        }
        assert!(read <= BYTES_MAX, "{read}");
    }
}

/// A layer, applied to a directory beside one that must stay as it is.
fn apply(data: &[u8]) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("gantry-fuzz-{}-{number}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    let (inside, outside) = (folder.join("inside"), folder.join("outside"));
    for folder in [&folder, &inside, &outside] {
        fs::create_dir(folder).expect("creates");
    }
    let secret = outside.join("secret");
    fs::write(&secret, "secret").expect("writes");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("sets");
    let before = look(&folder);
    let mounts = [Mount::bind(inside.to_str().expect("text").to_owned(), false)];
    let limits = Limits { bytes_max: BYTES_MAX, file_bytes_max: BYTES_MAX, entries_max: 1 << 10 };
    // What it holds may well be refused.
    let _ = diff::apply(with_checksums(data).as_slice(), &mounts, &limits);
    assert_eq!(look(&folder), before, "what is outside was changed");
    sys::tree::remove(&folder).expect("removes");
}

/// What is beside the target.
fn look(folder: &Path) -> (Vec<String>, Vec<String>, Vec<u8>, u32) {
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).expect("lists");
        let names = entries.map(|entry| entry.expect("lists").file_name());
        let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let secret = folder.join("outside/secret");
    let mode = fs::metadata(&secret).expect("is there").permissions().mode();
    (names(folder), names(&folder.join("outside")), fs::read(secret).expect("reads"), mode)
}

/// The blocks that look like headers get the checksums that these need to be read at all.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for block in data.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    data
}

/// A compressed stream; what comes of it is compressed again, and read.
fn decompress(data: &[u8]) {
    let Ok(decoder) = Decoder::new(data) else { return };
    let compression = decoder.compression();
    let mut plain = Vec::new();
    if decoder.take(BYTES_MAX).read_to_end(&mut plain).is_err() {
        return;
    }
    let mut encoder = Encoder::new(compression, Vec::new()).expect("compresses");
    std::io::Write::write_all(&mut encoder, &plain).expect("compresses");
    let packed = encoder.finish().expect("compresses");
    let mut again = Vec::new();
    Decoder::new(packed.as_slice()).expect("reads").read_to_end(&mut again).expect("reads");
    assert!(again == plain, "{compression} changes what it holds");
}

/// A filter, and an object for it.
fn filter(data: &[u8]) {
    struct Object<'a>(&'a str);
    impl Fields for Object<'_> {
        fn field<'a>(&'a self, path: &[String]) -> Option<Cow<'a, str>> {
            (path.first()? == "name").then_some(Cow::Borrowed(self.0))
        }
    }
    let text = String::from_utf8_lossy(data);
    let Ok(filter) = Filter::parse_all(&[&text]) else { return };
    for name in ["", "name", &text] {
        filter.matches(&Object(name));
    }
}

/// A name of an image.
fn reference(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for parsed in [text.parse::<Reference>(), Reference::parse_short(&text)] {
        let Ok(parsed) = parsed else { continue };
        let again: Reference = parsed.to_string().parse().expect("its own text can be read");
        assert_eq!(again, parsed);
        let is_part = |part: &str| !matches!(part, "" | "." | "..");
        assert!(parsed.path().split('/').all(is_part), "{parsed}");
        assert!(!parsed.host().contains('/') && !parsed.object().contains('/'), "{parsed}");
    }
}

/// A digest, which becomes a path.
fn digest(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert!(digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest}");
    }
}

/// An index, a manifest or a configuration.
fn document(data: &[u8]) {
    let types = [media_type::OCI_INDEX, media_type::OCI_MANIFEST, media_type::OCI_CONFIG];
    for media_type in types {
        let descriptor = Descriptor::of(media_type, data);
        if let Ok(document) = Document::parse(&descriptor, data) {
            document.children();
        }
        // What is not exactly what the descriptor says is nothing.
        let other = Descriptor::of(media_type, b"other");
        assert!(data == b"other" || Document::parse(&other, data).is_err());
    }
    let descriptor = Descriptor::of(media_type::OCI_CONFIG, data);
    if let Ok(config) = Config::parse(&descriptor, data) {
        crate::oci::chain_ids(&config.rootfs.diff_ids);
    }
}

/// A label, `key=value`, as garbage collection reads it.
fn label(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (key, value) = text.split_once('=').unwrap_or((&text, ""));
    crate::gc::fuzz(key, value);
    let refused = crate::labels::check_one(key, value).is_err();
    assert_eq!(refused, key.is_empty() || key.len() + value.len() > LABEL_LEN_MAX);
}
