//! Layers over the real kernel. Needs root, for owners, devices and overlays.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

use engine::{
    diff::{Applied, CompareOptions, Compared, Compression, DiffError, Limits, apply, compare},
    digest::Digest,
};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat,
    utimensat,
};
use snapshotter::Mount;

const UNCOMPRESSED: CompareOptions =
    CompareOptions { compression: Compression::Uncompressed, mtime_max: None };

/// What a file is, as far as layers keep it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    mtime: i64,
    links: u64,
    /// The digest of a file's content, or where a link leads.
    content: String,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// All files below `root`, by path.
fn tree(root: &Path) -> Tree {
    let mut files = BTreeMap::new();
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        let stat = fs::symlink_metadata(&path).expect("stat");
        let kind = stat.file_type();
        let content = if stat.is_dir() {
            paths.extend(fs::read_dir(&path).expect("list").map(|e| e.expect("list").path()));
            String::new()
        } else if stat.is_symlink() {
            fs::read_link(&path).expect("readlink").display().to_string()
        } else if kind.is_file() {
            Digest::of(&fs::read(&path).expect("read")).to_string()
        } else {
            assert!(kind.is_char_device() || kind.is_block_device() || kind.is_fifo());
            String::new()
        };
        let file = File {
            mode: stat.mode(),
            owner: (stat.uid(), stat.gid()),
            device: stat.rdev(),
            mtime: stat.mtime(),
            links: if stat.is_dir() { 0 } else { stat.nlink() },
            content,
            xattrs: xattrs(&path),
        };
        if path != root {
            files.insert(path.strip_prefix(root).expect("below").to_owned(), file);
        }
    }
    files
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = [0; 4096];
    let len = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap_or(0);
    let value = |name: &[u8]| {
        let mut value = [0; 256];
        let len = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).expect("an attribute");
        (name.to_vec(), value[..len].to_vec())
    };
    names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(value).collect()
}

type Tree = BTreeMap<PathBuf, File>;

/// Shows only what differs.
fn assert_same(got: Tree, mut want: Tree, case: &str) {
    let mut only = Tree::new();
    for (path, file) in got {
        if want.get(&path) == Some(&file) {
            want.remove(&path);
        } else {
            only.insert(path, file);
        }
    }
    assert!(only.is_empty() && want.is_empty(), "{case}: got {only:#?} instead of {want:#?}");
}

fn bind(path: &Path) -> Vec<Mount> {
    vec![Mount::bind(path.to_str().expect("text").to_owned(), false)]
}

fn overlay(upper: &Path, lower: &[&Path]) -> Vec<Mount> {
    let mut options = vec![format!("upperdir={}", upper.display())];
    if !lower.is_empty() {
        let lower: Vec<_> = lower.iter().map(|path| path.display().to_string()).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
    }
    let overlay = "overlay".to_owned();
    vec![Mount { kind: overlay.clone(), source: overlay, target: String::new(), options }]
}

fn layer(lower: &[Mount], upper: &[Mount], options: &CompareOptions) -> (Vec<u8>, Compared) {
    let mut bytes = Vec::new();
    let compared = compare(lower, upper, options, &mut bytes).expect("compare");
    assert_eq!(compared.digest, Digest::of(&bytes));
    assert_eq!(compared.size, bytes.len() as u64);
    (bytes, compared)
}

fn applied(bytes: &[u8], mounts: &[Mount]) -> Result<Applied, DiffError> {
    apply(bytes, mounts, &Limits::default())
}

/// A random tree, or changes to a tree, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % bound
    }

    /// A path of a few names, so that changes meet what is there.
    fn path(&mut self, root: &Path) -> PathBuf {
        let mut path = root.to_owned();
        for _ in 0..=self.below(3) {
            let names: [&[u8]; 9] = [
                b"a",
                b"b",
                b"c",
                b"d",
                "ü".as_bytes(),
                b"\xff\xfe",
                b"new\nline",
                b" =",
                &[b'n'; 255],
            ];
            let name = names[usize::try_from(self.below(9)).expect("small")];
            path.push(OsStr::from_bytes(name));
        }
        path
    }

    fn change(&mut self, root: &Path) {
        let path = self.path(root);
        let parent = path.parent().expect("below the root").to_owned();
        // A file may be in the way, or a link, through which nothing must be made.
        let blocked = parent
            .ancestors()
            .take_while(|path| *path != root)
            .any(|path| fs::symlink_metadata(path).is_ok_and(|stat| !stat.is_dir()));
        if blocked {
            return;
        }
        fs::create_dir_all(&parent).expect("mkdir");
        let exists = fs::symlink_metadata(&path).ok();
        match (self.below(12), exists) {
            (0..=2, Some(stat)) if stat.is_dir() => fs::remove_dir_all(&path).expect("remove"),
            (0..=2, Some(_)) => fs::remove_file(&path).expect("remove"),
            (3, Some(stat)) if !stat.is_symlink() => {
                let mode = [0o644, 0o755, 0o4711, 0o1777, 0o600][self.below(5) as usize];
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            }
            (4, Some(_)) => {
                // The largest is the last but one, which stands for "do not change".
                let id = [1000, 3_000_000, u32::MAX - 1][self.below(3) as usize];
                std::os::unix::fs::lchown(&path, Some(id), Some(id / 2)).expect("chown");
            }
            (5, Some(stat)) if stat.is_file() || stat.is_dir() => {
                let name = ["user.test", "user.ü\n", "user.empty"][self.below(3) as usize];
                let value = self.below(99).to_le_bytes();
                let value: &[u8] = if name == "user.empty" { &[] } else { &value };
                lsetxattr(&path, name, value, XattrFlags::empty()).expect("xattr");
            }
            (6, Some(stat)) if stat.is_file() => {
                // cap_net_raw, as file capabilities are kept.
                let value = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                lsetxattr(&path, "security.capability", &value, XattrFlags::empty())
                    .expect("capability");
            }
            // The time of a directory alone is no change, as with containerd.
            (7, Some(stat)) if !stat.is_dir() => {
                // Times before 1970 do not come back; another test has them.
                let seconds = [0, 1, 1_234_567_890][self.below(3) as usize];
                let nanoseconds = [0, 1, 999_999_999][self.below(3) as usize];
                let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
                let times = Timestamps { last_access: time, last_modification: time };
                utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("times");
            }
            (_, Some(_)) => {}
            (_, None) => self.create(&path, root),
        }
    }

    fn create(&mut self, path: &Path, root: &Path) {
        let mode = Mode::from_raw_mode(0o640);
        match self.below(11) {
            0..=2 => {
                let len = usize::try_from(self.below(3) * self.below(3000)).expect("small");
                let byte = u8::try_from(self.below(256)).expect("a byte");
                fs::write(path, vec![byte; len]).expect("write");
            }
            3 | 4 => fs::create_dir(path).expect("mkdir"),
            5 => symlink("x/".repeat(usize::try_from(self.below(70) + 1).expect("small")), path)
                .expect("symlink"),
            6 => {
                let other = self.path(root);
                if fs::symlink_metadata(&other).is_ok_and(|stat| !stat.is_dir()) {
                    let _ = fs::hard_link(other, path);
                }
            }
            7 => {
                // A hole, data, and a hole that is the end.
                let file = fs::File::create(path).expect("create");
                file.write_all_at(b"data", 1 + self.below(300_000)).expect("write");
                file.set_len(1 << 20).expect("grow");
            }
            8 => mknodat(CWD, path, FileType::BlockDevice, mode, makedev(259, 300_000))
                .expect("mknod"),
            9 => mknodat(CWD, path, FileType::Fifo, mode, 0).expect("mkfifo"),
            _ => {
                mknodat(CWD, path, FileType::CharacterDevice, mode, makedev(1, 300)).expect("mknod")
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg("-T").args([from, to]).status();
    assert!(status.expect("cp").success());
}

/// Times of this run are set to one that is the same in each; layers keep whole seconds.
fn settle(root: &Path) {
    let status = Command::new("find")
        .arg(root)
        .args(["-newermt", "@1700000000", "-exec", "touch", "-h", "-d", "@1600000000", "{}", "+"])
        .status();
    assert!(status.expect("find").success());
}

#[test]
fn random_trees_come_back() {
    for seed in 0..25 {
        let scratch = tempfile::tempdir().expect("scratch");
        let at = |name: &str| {
            let path = scratch.path().join(name);
            fs::create_dir_all(&path).expect("mkdir");
            path
        };
        let (old, new, copy_of_old) = (at("old"), at("new"), at("copy"));
        let mut random = Random(seed);
        for _ in 0..60 {
            random.change(&old);
        }
        settle(&old);
        copy(&old, &new);
        copy(&old, &copy_of_old);
        for _ in 0..40 {
            random.change(&new);
        }
        settle(&new);

        let (whole, compared) = layer(&[], &bind(&new), &UNCOMPRESSED);
        assert_eq!(
            layer(&[], &bind(&new), &UNCOMPRESSED).0,
            whole,
            "seed {seed}: not the same twice"
        );
        let fresh = at("fresh");
        let result = applied(&whole, &bind(&fresh)).expect("apply");
        assert_eq!(result.diff_id, compared.diff_id);
        assert_same(tree(&fresh), tree(&new), &format!("seed {seed}, from nothing"));

        let (changes, _) = layer(&bind(&old), &bind(&new), &UNCOMPRESSED);
        applied(&changes, &bind(&copy_of_old)).expect("apply changes");
        let links = |mut files: Tree| {
            // A name that has not changed stays with its old inode.
            files.values_mut().for_each(|file| file.links = 0);
            files
        };
        assert_same(links(tree(&copy_of_old)), links(tree(&new)), &format!("seed {seed}, changes"));

        let upper = at("upper");
        applied(&changes, &overlay(&upper, &[&old])).expect("apply to an overlay");
        let (direct, _) = layer(&bind(&old), &overlay(&upper, &[&old]), &UNCOMPRESSED);
        assert_eq!(direct, changes, "seed {seed}: the layer of the upper directory differs");
        let (twice, _) = layer(&[], &overlay(&upper, &[&old]), &UNCOMPRESSED);
        let merged = at("merged");
        applied(&twice, &bind(&merged)).expect("apply what the overlay shows");
        assert_same(links(tree(&merged)), links(tree(&new)), &format!("seed {seed}, merged"));
    }
}

#[test]
fn what_an_archive_cannot_hold_is_refused() {
    let scratch = tempfile::tempdir().expect("scratch");
    fs::write(scratch.path().join("file"), "x").expect("write");
    let path = scratch.path().join("file");
    lsetxattr(&path, "user.a=b", b"x", XattrFlags::empty()).expect("xattr");
    let mut bytes = Vec::new();
    let error =
        compare(&[], &bind(scratch.path()), &UNCOMPRESSED, &mut bytes).expect_err("is refused");
    let DiffError::Source { path, source, .. } = &error else { panic!("{error}") };
    assert_eq!(path, "file");
    assert!(source.to_string().contains("user.a=b"), "{source}");
}

#[test]
fn times_before_1970_come_back_as_1970() {
    let scratch = tempfile::tempdir().expect("scratch");
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    for folder in [&from, &to] {
        fs::create_dir(folder).expect("mkdir");
    }
    fs::write(from.join("file"), "x").expect("write");
    let time = Timespec { tv_sec: -86_401, tv_nsec: 500_000_000 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, from.join("file"), &times, AtFlags::empty()).expect("times");
    let (bytes, _) = layer(&[], &bind(&from), &UNCOMPRESSED);
    applied(&bytes, &bind(&to)).expect("apply");
    let stat = fs::metadata(to.join("file")).expect("stat");
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (0, 0));
}

/// The diff ID is the one that containerd gives the same tree, so it must never change.
#[test]
fn form() {
    let scratch = tempfile::tempdir().expect("scratch");
    let root = scratch.path().join("root");
    let script = r#"
        umask 022; mkdir -p "$1/d/e" && cd "$1" || exit 1
        echo hello > d/file; chmod 4711 d/file; chown 1:2 d/file
        ln d/file hard; ln -s ../d/file d/e/soft; ln -s "$(printf 'l%.0s' $(seq 150))" long
        mkfifo fifo; mknod null c 1 3; mknod disk b 259 300000
        name=$(printf 'n%.0s' $(seq 120)); echo x > "$name"
        split=split/$(printf 's%.0s' $(seq 90)); mkdir -p "$split"; echo y > "$split/file-name"
        mkdir ümlaut; echo z > ümlaut/ß; chown 3000000:4000000 ümlaut/ß
        find . -exec touch -h -d @1600000000 {} +
        touch -h -d @-86400.5 d/file; touch -h -d @99999999999 fifo
    "#;
    let made = Command::new("sh").args(["-ec", script, "sh"]).arg(&root).status().expect("sh");
    assert!(made.success());
    let (_, compared) = layer(&[], &bind(&root), &UNCOMPRESSED);
    let want = "sha256:46200f03806ca9c4442d244ed02cf7f11e8f02b68a5fbaaba5081f798ec6aac3";
    assert_eq!(compared.diff_id.to_string(), want);
}
