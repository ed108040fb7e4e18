//! `gantryd db repair` on files with damage anywhere: it ends with a store that opens, says what was lost, and
//! every blob is still there. Needs root, for owners.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use engine::{
    content,
    daemon::Daemon,
    db::Root,
    digest::Digest,
    filter::Filter,
    labels::Labels,
    metadata::{self, Image},
    namespace::{Namespace, Scope},
    oci::Descriptor,
};

/// How many images there are: so many that their table has branches.
const IMAGES: usize = 120;

/// How often the file is damaged in each way.
const ROUNDS: u64 = 6;

fn namespace() -> Namespace {
    "default".parse().expect("a namespace")
}

/// A root whose database, as it is after a stop and after a crash, is damaged again and again.
struct Fixture {
    folder: tempfile::TempDir,
    blobs: Vec<Digest>,
    stopped: Vec<u8>,
    killed: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("metadata.redb");
        let store = metadata::Store::open(&path).expect("opens");
        let content = content::Store::open(&folder.path().join("content"), store.clone());
        let (content, scope) = (content.expect("opens"), Scope::new(namespace()));
        let put = |number: u8| content.put(&scope, &[number; 999], Labels::new()).expect("stores");
        let blobs: Vec<_> = (0..4).map(put).collect();
        for number in 0..IMAGES {
            let target = Descriptor {
                media_type: "application/x".to_owned(),
                digest: blobs[number % blobs.len()].clone(),
                size: 999,
                platform: None,
                annotations: Labels::new(),
                urls: Vec::new(),
            };
            let image = Image {
                name: format!("registry.test/{number:0120}"),
                labels: Labels::new(),
                target,
                created: std::time::UNIX_EPOCH,
                updated: std::time::UNIX_EPOCH,
            };
            store.create_image(&scope, image).expect("makes");
        }
        let killed = fs::read(&path).expect("reads");
        drop((content, store));
        let stopped = fs::read(&path).expect("reads");
        Self { folder, blobs, stopped, killed }
    }

    fn root(&self) -> &Path {
        self.folder.path()
    }

    fn database(&self) -> PathBuf {
        self.root().join("metadata.redb")
    }

    fn gantryd(&self, word: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gantryd"));
        command.arg("--root").arg(self.root()).args(["db", word]).output().expect("runs")
    }

    /// What a repair says of a database with these bytes, after a look at what it has made.
    fn repair(&self, case: &str, bytes: &[u8]) -> String {
        for entry in fs::read_dir(self.root()).expect("reads").flatten() {
            if entry.file_name().to_string_lossy().starts_with("metadata.redb") {
                fs::remove_file(entry.path()).expect("removes");
            }
        }
        fs::write(self.database(), bytes).expect("writes");
        let output = self.gantryd("repair");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{case}: {}: {said}{complained}", output.status);
        let report = Root::open(self.root()).expect("is free").check(true).expect("checks");
        assert_eq!(report.problems, [], "{case}: {said}");
        let store = metadata::Store::open(&self.database()).expect(case);
        let found = store.contents(&namespace(), &Filter::default()).expect(case);
        let found: Vec<_> = found.into_iter().map(|info| info.digest).collect();
        for blob in &self.blobs {
            assert!(found.contains(blob), "{case}: {blob} is lost: {said}");
        }
        let images = store.images(&namespace(), &Filter::default()).expect(case).len();
        // One flipped bit can make another namespace's image of it.
        let is_elsewhere = said.contains(" has no record");
        let told = said.contains("lost") || said.contains("took over nothing") || is_elsewhere;
        // redb goes back to the commit before when a stop has cut the last one short, as it would seem.
        let went_back = case.starts_with("killed") && images + 1 == IMAGES;
        let good = images == IMAGES || told || went_back;
        assert!(good, "{case}: {images} images, and it says {said:?}");
        said
    }

    fn start(&self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let state = tempfile::tempdir().expect("a temporary directory");
        let config = engine::config::Config {
            root: Some(self.root().to_owned()),
            state: Some(state.path().to_owned()),
            ..Default::default()
        };
        let paths = config.paths(engine::config::Layout::Gantry);
        let built =
            runtime.expect("starts").block_on(async { Daemon::build(config, &paths).map(drop) });
        built.expect("starts");
    }
}

/// Numbers that look like chance and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("below a length")
    }
}

#[test]
fn any_damage_ends_in_a_store() {
    let fixture = Fixture::new();
    type Damage = fn(&mut Vec<u8>, &mut Numbers);
    let ways: [(&str, Damage); 5] = [
        ("flipped bytes", |bytes, numbers| {
            for _ in 0..40 {
                let at = numbers.below(bytes.len());
                bytes[at] ^= 1 << numbers.below(8);
            }
        }),
        ("zeros in a page", |bytes, numbers| page(bytes, numbers).fill(0)),
        ("a page that says it is a branch", |bytes, numbers| page(bytes, numbers).fill(2)),
        ("a page in the place of another", |bytes, numbers| {
            let other = page(bytes, numbers).to_vec();
            page(bytes, numbers).copy_from_slice(&other);
        }),
        ("cut off", |bytes, numbers| bytes.truncate(numbers.below(bytes.len()))),
    ];
    for (before, good) in [("stopped", &fixture.stopped), ("killed", &fixture.killed)] {
        fixture.repair(before, good);
        for (way, damage) in ways {
            for seed in 1..=ROUNDS / 2 {
                let mut bytes = good.clone();
                damage(&mut bytes, &mut Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
                fixture.repair(&format!("{before}, {way}, {seed}"), &bytes);
            }
            fixture.start();
        }
    }
}

/// One of the pages that have something.
fn page<'a>(bytes: &'a mut [u8], numbers: &mut Numbers) -> &'a mut [u8] {
    let used: Vec<_> = bytes
        .chunks(4096)
        .enumerate()
        .filter(|(number, page)| *number > 0 && page.len() == 4096 && page[0] != 0)
        .map(|(number, _)| number)
        .collect();
    let number = used[numbers.below(used.len())];
    &mut bytes[number * 4096..(number + 1) * 4096]
}

/// The pages that the header is on tell where all others are.
#[test]
fn without_a_header_blobs_make_the_store() {
    let fixture = Fixture::new();
    let mut bytes = fixture.stopped.clone();
    bytes[..4096].fill(0);
    let said = fixture.repair("no header", &bytes);
    assert!(said.contains("took over nothing of the old database: it has no header"), "{said}");
    assert!(said.contains("made records of 4 blobs in namespace \"default\""), "{said}");
    fixture.start();
}

/// What is no good is put aside where it need not be copied.
#[test]
fn a_blob_on_another_mount_is_put_aside_there() {
    let fixture = Fixture::new();
    let blobs = fixture.root().join("content/blobs");
    let wrong = &fixture.blobs[0];
    fs::remove_file(blobs.join("sha256").join(wrong.hex())).expect("removes");
    fs::write(blobs.join("sha256").join(wrong.hex()), "x").expect("writes");
    let script = "mount --bind \"$1\" \"$1\" && exec \"$2\" --root \"$3\" db repair";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .args([&blobs, Path::new(env!("CARGO_BIN_EXE_gantryd")), fixture.root()])
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let folders = fs::read_dir(&blobs).expect("reads").flatten().map(|entry| entry.path());
    let aside: Vec<_> = folders
        .filter(|path| path.to_string_lossy().contains("/aside-"))
        .map(|path| path.join(format!("sha256-{}", wrong.hex())))
        .collect();
    let [aside] = &aside[..] else { panic!("one folder: {aside:?}, {said}") };
    assert_eq!(fs::read_to_string(aside).expect("is there"), "x");
}
