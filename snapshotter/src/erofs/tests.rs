//! Images, as this program's structures and as the kernel's filesystem.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, lsetxattr, makedev, mknodat};

use sys::tree::open_root;

use super::{
    build,
    format::{BLOCK, directory, directory_len, seal},
    gather, place, write,
};

#[test]
fn the_checksum_is_the_kernels() {
    let mut block = vec![0_u8; BLOCK as usize];
    block[1024..1033].copy_from_slice(b"123456789");
    seal(&mut block[..1033]);
    // The bytes of the sum itself count as what they were.
    let got = u32::from_le_bytes(block[1028..1032].try_into().expect("four"));
    assert_eq!(got, !0xE306_9283, "CRC-32C of the usual test, without the last inversion");
}

#[test]
fn blocks_of_directories() {
    let long = [b'n'; 255];
    // 12 + 255 bytes each: fifteen in a block.
    let cases = [("empty", 0, 0), ("one", 1, 267), ("full", 15, 4005), ("next", 16, 4096 + 267)];
    for (case, count, want) in cases {
        let names = std::iter::repeat_n(long.as_slice(), count);
        assert_eq!(directory_len(names.clone()), want, "{case}");
        let bytes = directory(names.map(|name| (name, 36, 0o100_644)));
        assert_eq!(bytes.len() as u64, want, "{case}");
    }
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    let name = CString::new(name).expect("no zeros");
    lsetxattr(path, &name, value, XattrFlags::empty()).expect("attributes can be set");
}

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device).expect("makes a node");
}

/// A capability, as capabilities(7) has them in version 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A tree with all that there may be in one.
fn make_tree(root: &Path) {
    let path = |name: &str| root.join(name);
    for name in ["empty", "many", "deep"] {
        fs::create_dir(path(name)).expect("makes a directory");
    }
    for size in [0, 1, 100, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 100_001] {
        let bytes: Vec<u8> = (0..size).map(|at: usize| (at % 251) as u8).collect();
        fs::write(path(&format!("size {size}")), bytes).expect("writes");
    }
    for number in 0..1000 {
        fs::write(path("many").join(format!("{number:0>90}")), [b'x'; 10]).expect("writes");
    }
    let mut deep = path("deep");
    for _ in 0..100 {
        deep.push("d");
        fs::create_dir(&deep).expect("makes a directory");
    }
    fs::write(deep.join("bottom"), "bottom").expect("writes");
    let odd = std::ffi::OsStr::from_bytes(b"!before dots \xff\n\\");
    fs::write(root.join(odd), "odd").expect("writes");
    fs::hard_link(path("size 4097"), path("many/link")).expect("links");
    symlink("size 1", path("to file")).expect("links");
    symlink("t".repeat(4095), path("to nothing")).expect("links");
    node(&path("whiteout"), FileType::CharacterDevice, 0);
    node(&path("device"), FileType::BlockDevice, makedev(259, 70_000));
    node(&path("pipe"), FileType::Fifo, 0);
    let sparse = fs::File::create(path("sparse")).expect("makes");
    sparse.set_len(3 << 30).expect("holes");
    sparse.write_all_at(b"in the middle", 1 << 30).expect("writes");
    chown(path("size 100"), Some(70_000), Some(4_000_000_000)).expect("owned");
    fs::set_permissions(path("size 100"), fs::Permissions::from_mode(0o4711)).expect("mode");
    set_xattr(&path("size 100"), "user.short", b"1");
    set_xattr(&path("size 100"), "security.capability", &CAPABILITY);
    set_xattr(&path("size 4096"), "user.long", &[b'v'; 3000]);
    set_xattr(&path("empty"), "trusted.overlay.opaque", b"y");
    set_xattr(&path("to file"), "trusted.of.a.link", b"link");
    let time = fs::FileTimes::new()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 123_456_789));
    let file = fs::File::options().write(true).open(path("size 1")).expect("opens");
    file.set_times(time).expect("has a time");
}

/// What a file is, for comparisons.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    device: u64,
    size: u64,
    time: (i64, i64),
    content: Vec<u8>,
    xattrs: Vec<(String, Vec<u8>)>,
}

const XATTRS: [&str; 5] = [
    "user.short",
    "user.long",
    "security.capability",
    "trusted.overlay.opaque",
    "trusted.of.a.link",
];

fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut seen, mut pending) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = pending.pop() {
        let stat = fs::symlink_metadata(&path).expect("is there");
        let content = if stat.is_dir() {
            let entries = fs::read_dir(&path).expect("lists");
            pending.extend(entries.map(|entry| entry.expect("lists").path()));
            Vec::new()
        } else if stat.is_symlink() {
            fs::read_link(&path).expect("reads").into_os_string().into_encoded_bytes()
        } else if stat.is_file() && stat.len() > 1 << 30 {
            let mut around = vec![0; 1 << 20];
            let file = fs::File::open(&path).expect("opens");
            file.read_exact_at(&mut around, (1 << 30) - 1000).expect("reads");
            around
        } else if stat.is_file() {
            fs::read(&path).expect("reads")
        } else {
            Vec::new()
        };
        let value = |name: &&str| {
            let mut value = [0; 4096];
            let len = lgetxattr(&path, CString::new(*name).expect("no zeros"), &mut value).ok()?;
            Some((name.to_string(), value[..len].to_vec()))
        };
        let is_root = path == root;
        let one = Seen {
            mode: stat.mode(),
            owner: (stat.uid(), stat.gid()),
            links: stat.nlink(),
            device: stat.rdev(),
            size: if stat.is_dir() { 0 } else { stat.len() },
            time: if is_root { (0, 0) } else { (stat.mtime(), stat.mtime_nsec()) },
            content,
            xattrs: XATTRS.iter().filter_map(value).collect(),
        };
        seen.insert(path.strip_prefix(root).expect("below").to_owned(), one);
    }
    seen
}

#[test]
fn the_kernel_sees_the_same_tree() {
    let scratch = tempfile::tempdir().expect("scratch");
    let path = |name: &str| scratch.path().join(name);
    fs::create_dir(path("tree")).expect("makes");
    fs::create_dir(path("at")).expect("makes");
    make_tree(&path("tree"));
    build(&path("tree"), &path("image")).expect("builds");
    build(&path("tree"), &path("again")).expect("builds");
    let (image, again) = (fs::File::open(path("image")), fs::File::open(path("again")));
    let (image, again) = (image.expect("opens"), again.expect("opens"));
    let len = image.metadata().expect("stat").len();
    assert_eq!(len, again.metadata().expect("stat").len());
    let blocks = image.metadata().expect("stat").blocks() * 512;
    assert!(blocks < 4 << 20, "holes stay holes: {blocks} of {len}");
    let (mut one, mut two) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    image.read_exact_at(&mut one, 0).expect("reads");
    again.read_exact_at(&mut two, 0).expect("reads");
    assert!(one == two, "images of one tree are the same");
    let one = sys::mount::Mount {
        kind: "erofs".to_owned(),
        source: path("image").display().to_string(),
        target: String::new(),
        options: vec!["ro".to_owned(), "loop".to_owned()],
    };
    one.mount(&path("at")).unwrap_or_else(|error| panic!("{}", sys::error::Chain(&error)));
    let (got, want) = (look(&path("at")), look(&path("tree")));
    sys::mount::unmount_all(&path("at")).expect("unmounts");
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, want) in want {
        assert!(got[&name] == want, "{}: {:?}", name.display(), (got[&name].mode, want.mode));
    }
}

#[test]
fn what_is_held_in_memory_has_a_bound() {
    type Make = fn(&Path);
    let cases: [(&str, Make); 5] = [
        ("names", |root| {
            fs::write(root.join("n".repeat(200)), "").expect("writes");
        }),
        ("names of directories", |root| {
            fs::create_dir(root.join("d".repeat(200))).expect("makes");
        }),
        ("names of one file", |root| {
            fs::write(root.join("a"), "").expect("writes");
            fs::hard_link(root.join("a"), root.join("l".repeat(199))).expect("links");
        }),
        ("attributes", |root| set_xattr(root, "user.a", &[b'v'; 183])),
        ("links", |root| symlink("t".repeat(199), root.join("l")).expect("links")),
    ];
    for (case, make) in cases {
        let tree = tempfile::tempdir().expect("scratch");
        make(tree.path());
        let open = || open_root(tree.path()).expect("opens");
        assert!(gather::gather(open(), 200).is_ok(), "{case}");
        let refused = gather::gather(open(), 199).expect_err(case).to_string();
        assert!(refused.ends_with("of the files have more than 199 bytes"), "{case}: {refused}");
    }
}

/// The device is one that no driver has, which says `ENXIO` to who opens it.
#[test]
fn files_that_become_devices_are_not_opened() {
    let scratch = tempfile::tempdir().expect("scratch");
    let (tree, file) = (scratch.path().join("tree"), scratch.path().join("tree/file"));
    fs::create_dir(&tree).expect("makes");
    fs::write(&file, "1").expect("writes");
    let open = || open_root(&tree).expect("opens");
    let nodes = gather::gather(open(), gather::HELD_MAX).expect("looks");
    let places = place::place(&nodes).expect("fits");
    fs::remove_file(&file).expect("removes");
    node(&file, FileType::CharacterDevice, 0);
    let image = tempfile::tempfile().expect("scratch");
    let refused = write::write(open(), &nodes, &places, &image).expect_err("was changed");
    assert_eq!(refused.to_string(), "the tree was changed while it was read");
}

/// Debian's erofs-utils.
#[test]
fn needs_erofs_utils() {
    let scratch = tempfile::tempdir().expect("scratch");
    let path = |name: &str| scratch.path().join(name);
    fs::create_dir(path("tree")).expect("makes");
    make_tree(&path("tree"));
    // What checks reads all that a file seems to have.
    fs::remove_file(path("tree/sparse")).expect("removes");
    build(&path("tree"), &path("image")).expect("builds");
    let output = Command::new("fsck.erofs").args(["-d3", "--extract"]).arg(path("image")).output();
    let output = output.expect("fsck.erofs is installed");
    let told = String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat())
        .into_owned();
    assert!(output.status.success() && told.contains("No errors found"), "{output:?}");
}
