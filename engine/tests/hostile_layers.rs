//! Layers that were made to do harm, and layers that are merely odd. Needs root.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use engine::diff::{Applied, Compression, DiffError, Encoder, Limits, apply};
use snapshotter::Mount;
use sys::error::Chain;

/// An archive in the making, which may be as wrong as one likes.
#[derive(Clone, Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn entry(self, kind: u8, name: &str, link: &str, data: &[u8]) -> Self {
        self.raw(kind, name, link, data, |_| {})
    }

    /// `change` may change the header before it gets its checksum.
    fn raw(
        mut self,
        kind: u8,
        name: &str,
        link: &str,
        data: &[u8],
        change: impl FnOnce(&mut [u8; 512]),
    ) -> Self {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, b"0000755\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", data.len()).as_bytes());
        put(136, b"00000000001\0");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        change(&mut header);
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str) -> Self {
        self.entry(b'0', name, "", b"evil")
    }

    fn directory(self, name: &str) -> Self {
        self.entry(b'5', name, "", b"")
    }

    fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(b'2', name, to, b"")
    }

    fn hard_link(self, name: &str, to: &str) -> Self {
        self.entry(b'1', name, to, b"")
    }

    /// An extended header with one record.
    fn pax(self, key: &str, value: &[u8]) -> Self {
        let rest = key.len() + value.len() + 3;
        let len = (rest..).find(|len| len - len.to_string().len() == rest).expect("some length");
        let record = [format!("{len} {key}=").as_bytes(), value, b"\n"].concat();
        self.entry(b'x', "pax", "", &record)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A target, and a directory beside it that must stay as it is.
struct Scene {
    scratch: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Scene {
    fn new() -> Self {
        let scratch = tempfile::tempdir().expect("scratch");
        for name in ["root", "outside", "below"] {
            fs::create_dir(scratch.path().join(name)).expect("mkdir");
        }
        fs::write(scratch.path().join("outside/secret"), "secret").expect("write");
        let before = look(&scratch.path().join("outside"));
        Self { scratch, before }
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    fn outside(&self) -> String {
        self.scratch.path().join("outside").to_str().expect("text").to_owned()
    }

    fn apply(&self, kind: Target, bytes: &[u8]) -> Result<Applied, DiffError> {
        let root = self.root().display().to_string();
        let mount = match kind {
            Target::Plain => Mount::bind(root, false),
            Target::Overlay => Mount {
                kind: "overlay".to_owned(),
                source: "overlay".to_owned(),
                target: String::new(),
                options: vec![
                    format!("upperdir={root}"),
                    format!("lowerdir={}", self.scratch.path().join("below").display()),
                ],
            },
        };
        let limits = Limits { bytes_max: 64 << 20, file_bytes_max: 1 << 30, entries_max: 10_000 };
        apply(bytes, &[mount], &limits)
    }

    fn check(&self, case: &str) {
        assert_eq!(look(&self.scratch.path().join("outside")), self.before, "{case}: outside");
        let beside = fs::read_dir(self.scratch.path()).expect("list").count();
        assert_eq!(beside, 3, "{case}: something is beside the root");
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    Plain,
    Overlay,
}

const TARGETS: [Target; 2] = [Target::Plain, Target::Overlay];

/// What is below and at `root`, in short.
fn look(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        let stat = fs::symlink_metadata(&path).expect("stat");
        let mut text = format!("{:o} {}", stat.mode(), stat.uid());
        if stat.is_dir() {
            paths.extend(fs::read_dir(&path).expect("list").map(|e| e.expect("list").path()));
            let mut value = [0; 8];
            if rustix::fs::getxattr(&path, "trusted.overlay.opaque", value.as_mut_slice()).is_ok() {
                text.push_str(" opaque");
            }
        } else if stat.is_file() {
            text.push_str(&format!(" {:?}", fs::read(&path).expect("read").len()));
        } else if stat.file_type().is_char_device() {
            text.push_str(&format!(" {}", stat.rdev()));
        }
        found.insert(path.strip_prefix(root).expect("below").to_owned(), text);
    }
    found
}

/// The paths below `root`, with marks for what is not a file or directory.
fn paths(root: &Path) -> Vec<String> {
    let marked = |(path, text): (PathBuf, String)| {
        let mark = match text.as_str() {
            text if text.ends_with(" opaque") => " opaque",
            text if text.starts_with("20000 ") && text.ends_with(" 0") => " whiteout",
            text if text.starts_with("120777") => " link",
            _ => "",
        };
        format!("{}{mark}", path.display())
    };
    look(root).into_iter().map(marked).filter(|path| !path.is_empty()).collect()
}

#[test]
fn nothing_outside_is_touched() {
    let new = Archive::default;
    type Make = fn(Archive, &str) -> Archive;
    let cases: [(&str, Make, bool); 19] = [
        ("parent", |a, _| a.file("../outside/evil"), true),
        ("many parents", |a, _| a.file("../../../../../../outside/evil"), true),
        ("absolute", |a, out| a.file(&format!("{out}/evil")), true),
        ("through an absolute link", |a, out| a.symlink("l", out).file("l/evil"), true),
        ("through a relative link", |a, _| a.symlink("l", "../outside").file("l/evil"), true),
        (
            "through two links",
            |a, out| a.symlink("l", out).symlink("m", "l").file("m/x/evil"),
            true,
        ),
        ("hard link", |a, out| a.hard_link("h", &format!("{out}/secret")), false),
        ("hard link to a parent", |a, _| a.hard_link("h", "../outside/secret"), false),
        (
            "hard link through a link",
            |a, out| a.symlink("l", out).hard_link("h", "l/secret"),
            false,
        ),
        ("hard link to a link", |a, out| a.symlink("l", out).hard_link("h", "l"), true),
        ("directory in place of a link", |a, out| a.symlink("l", out).directory("l"), true),
        ("file in place of a link", |a, out| a.symlink("l", out).file("l"), true),
        ("fifo in place of a link", |a, out| a.symlink("l", out).entry(b'6', "l", "", b""), true),
        (
            "link in place of a used directory",
            |a, out| a.directory("d").file("d/a").symlink("d", out).file("d/evil"),
            true,
        ),
        ("whiteout through a link", |a, out| a.symlink("l", out).file("l/.wh.secret"), true),
        ("opaque through a link", |a, out| a.symlink("l", out).file("l/.wh..wh..opq"), true),
        ("whiteout of the parent", |a, _| a.file("a/.wh..."), false),
        ("whiteout of itself", |a, _| a.file("a/.wh.."), false),
        (
            "extended path",
            |a, out| a.pax("path", format!("{out}/../outside/evil").as_bytes()).file("x"),
            true,
        ),
    ];
    for (case, make, want) in cases {
        for target in TARGETS {
            let scene = Scene::new();
            let bytes = make(new(), &scene.outside()).end();
            let result = scene.apply(target, &bytes);
            assert_eq!(result.is_ok(), want, "{case}, {target:?}: {result:?}");
            scene.check(case);
        }
    }
}

#[test]
fn refusals_name_the_entry() {
    let new = Archive::default;
    let long = "n".repeat(300);
    let number = |at: usize, bytes: &'static [u8]| {
        move |header: &mut [u8; 512]| header[at..at + bytes.len()].copy_from_slice(bytes)
    };
    let cases = [
        ("loop of links", new().symlink("a", "b").symlink("b", "a").file("a/x"), "\"a/x\""),
        ("file as a directory", new().file("f").file("f/x"), "\"f/x\""),
        ("type", new().entry(b'Z', "z", "", b""), "entry \"z\": unhandled tar header type 'Z'"),
        ("long name", new().pax("path", long.as_bytes()).file("x"), "for layer entry \"nnn"),
        ("zero in a name", new().file("a").pax("path", b"a\0b").file("x"), "after entry \"a\""),
        ("negative size", new().raw(b'0', "x", "", b"", number(124, &[0xff; 12])), "field size"),
        ("size not octal", new().raw(b'0', "x", "", b"", number(124, b"9")), "field size"),
        (
            "no user",
            new().raw(b'0', "x", "", b"", number(108, &[0x80, 0, 0, 0, 255, 255, 255, 255])),
            "field uid",
        ),
        ("too much in a name", new().pax("path", &[b'/'; 5000]).file("x"), "path is larger"),
        ("below a whiteout", new().file("a/.wh.b/c"), "\"a/.wh.b/c\": is below a whiteout"),
        ("no link target", new().symlink("l", ""), "\"l\": has an empty name"),
        (
            "large file",
            new().pax("GNU.sparse.size", b"99999999999999").pax("GNU.sparse.map", b"0,4").file("x"),
            "bytes of files",
        ),
        (
            "sparse overlap",
            new().pax("GNU.sparse.size", b"9").pax("GNU.sparse.map", b"3,2,0,2").file("x"),
            "sparse file map",
        ),
        (
            "large extended header",
            new().raw(b'x', "p", "", b"", number(124, b"77777777777")),
            "extended header is larger",
        ),
        (
            "many extended headers",
            (0..20).fold(new(), |archive, _| archive.pax("a", b"b")).file("x"),
            "number of extended headers",
        ),
        (
            "many entries",
            (0..10_001).fold(new(), |archive, _| archive.directory("d")),
            "more than 10000 entries",
        ),
    ];
    for (case, archive, want) in cases {
        for target in TARGETS {
            let scene = Scene::new();
            let error = scene.apply(target, &archive.clone().end()).expect_err(case);
            let text = Chain(&error).to_string();
            assert!(text.contains(want), "{case}, {target:?}: {text}");
            scene.check(case);
        }
    }
}

#[test]
fn odd_but_good() {
    let new = Archive::default;
    let cases: [(&str, Archive, &[&str]); 9] = [
        ("the root", new().directory("./").directory("/"), &[]),
        ("missing parents", new().file("a/b/c"), &["a", "a/b", "a/b/c"]),
        ("same file twice", new().file("a").file("a"), &["a"]),
        ("file, then directory", new().file("a").directory("a").file("a/b"), &["a", "a/b"]),
        ("directory, then file", new().directory("a").file("a/b").file("a"), &["a"]),
        (
            "link to what is missing",
            new().symlink("l", "/x/y").file("l/z"),
            &["l link", "x", "x/y", "x/y/z"],
        ),
        ("global header", new().entry(b'g', "pax", "", b"12 path=abc\n").file("a"), &["a"]),
        ("files of aufs", new().file(".wh..wh.aufs").file(".wh..wh.plnk/1").file("a"), &["a"]),
        (
            "attributes for the kernel",
            new().pax("SCHILY.xattr.trusted.overlay.opaque", b"y").directory("d"),
            &["d"],
        ),
    ];
    for (case, archive, want) in cases {
        for target in TARGETS {
            let scene = Scene::new();
            let result = scene.apply(target, &archive.clone().end());
            assert!(result.is_ok(), "{case}, {target:?}: {result:?}");
            assert_eq!(paths(&scene.root()), want, "{case}, {target:?}");
        }
    }
}

/// `old` and `d/old` are from a lower layer; for an overlay, they are not in the upper directory.
#[test]
fn whiteouts() {
    let new = Archive::default;
    let cases: [(&str, Archive, &[&str], &[&str]); 8] = [
        ("file", new().file(".wh.old"), &["d", "d/old"], &["old whiteout"]),
        ("directory", new().file(".wh.d"), &["old"], &["d whiteout"]),
        ("of nothing", new().file(".wh.x"), &["d", "d/old", "old"], &["x whiteout"]),
        (
            "opaque",
            new().directory("d").file("d/.wh..wh..opq").file("d/new"),
            &["d", "d/new", "old"],
            &["d opaque", "d/new"],
        ),
        (
            "opaque, late",
            new().file("d/new").file("d/.wh..wh..opq"),
            &["d", "d/new", "old"],
            &["d opaque", "d/new"],
        ),
        ("then the file", new().file(".wh.old").file("old"), &["d", "d/old", "old"], &["old"]),
        ("after the file", new().file("old").file(".wh.old"), &["d", "d/old", "old"], &["old"]),
        (
            "then the directory",
            new().file(".wh.d").directory("d").file("d/new"),
            &["d", "d/new", "old"],
            &["d opaque", "d/new"],
        ),
    ];
    for (case, archive, plain, overlay) in cases {
        let archive = archive.end();
        for target in TARGETS {
            let scene = Scene::new();
            if target == Target::Plain {
                fs::create_dir(scene.root().join("d")).expect("mkdir");
                fs::write(scene.root().join("d/old"), "").expect("write");
                fs::write(scene.root().join("old"), "").expect("write");
            }
            let result = scene.apply(target, &archive);
            assert!(result.is_ok(), "{case}, {target:?}: {result:?}");
            let want = if target == Target::Plain { plain } else { overlay };
            assert_eq!(paths(&scene.root()), want, "{case}, {target:?}");
        }
    }
}

#[test]
fn bombs() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut encoder = Encoder::new(compression, Vec::new()).expect("encoder");
        encoder.write_all(&vec![0; 70 << 20]).expect("write");
        let bomb = encoder.finish().expect("finish");
        let error = Scene::new().apply(Target::Plain, &bomb).expect_err("too large");
        assert!(matches!(error, DiffError::TooLarge { what: "bytes", .. }), "{error:?}");
    }
}

/// Cuts and flips a layer that has some of everything. Whatever the result is, it is a result.
#[test]
fn damage() {
    let good = Archive::default()
        .directory("d")
        .pax("SCHILY.xattr.user.a", b"b")
        .file("d/f")
        .symlink("d/l", "/outside")
        .hard_link("h", "d/f")
        .pax("GNU.sparse.size", b"9")
        .pax("GNU.sparse.map", b"5,4")
        .file("s")
        .entry(b'3', "dev", "", b"")
        .file("d/.wh..wh..opq")
        .file(".wh.x")
        .end();
    assert!(Scene::new().apply(Target::Overlay, &good).is_ok());
    let scene = Scene::new();
    for len in (0..good.len()).step_by(97) {
        let result = scene.apply(Target::Plain, &good[..len]);
        let (block, within) = (&good[len / 512 * 512..], len % 512);
        // The padding behind data may be missing, and so may the end.
        let may_end = within == 0 || (within >= 4 && block.starts_with(b"evil"));
        assert!(result.is_err() || may_end || len > good.len() - 1024, "cut at {len}");
    }
    let mut state = 7_u64;
    for _ in 0..2000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = usize::try_from(state >> 33).expect("small") % good.len();
        let mut bytes = good.clone();
        bytes[at] ^= 1 << ((state >> 20) & 7);
        let header = at / 512 * 512;
        // With the right checksum the damage gets further.
        let sum: u32 = (header..header + 512)
            .map(|at| if (148..156).contains(&(at - header)) { 32 } else { u32::from(bytes[at]) })
            .sum();
        bytes[header + 148..header + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let _ = scene.apply(if state & 64 == 0 { Target::Plain } else { Target::Overlay }, &bytes);
        scene.check("damage");
    }
}
