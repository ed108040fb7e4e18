//! `gantryd db`: what it finds in damaged stores, and what it makes of them. Needs root, for owners.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use engine::{
    content,
    daemon::Daemon,
    db::{Report, Root, refuse_lost},
    digest::Digest,
    error::Error,
    labels::Labels,
    metadata::{self, Image, Resource},
    namespace::{Namespace, Scope},
    oci::Descriptor,
};
use redb::{Database, TableDefinition};
use snapshotter::{
    Key, Overlay, OverlayOptions, Snapshotter, Transactions,
    records::{CHILDREN, SNAPSHOTS},
};

type Bytes = &'static [u8];

/// A root with one of everything, which no daemon uses.
struct Fixture {
    folder: tempfile::TempDir,
    blob: Digest,
}

fn namespace() -> Namespace {
    "default".parse().expect("a namespace")
}

fn key(name: &str) -> Key {
    Key::new("default", name).expect("test names are short")
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let root = folder.path();
        let metadata = metadata::Store::open(&root.join("metadata.redb")).expect("opens");
        let content = content::Store::open(&root.join("content"), metadata.clone());
        let mut scope = Scope::new(namespace());
        metadata.create_lease(&scope.namespace, "lease", Labels::new()).expect("makes");
        scope.lease = Some("lease".to_owned());
        let manifest = br#"{"layers":[]}"#;
        let blob = content.expect("opens").put(&scope, manifest, Labels::new()).expect("stores");
        let image = Image {
            name: "image".to_owned(),
            labels: Labels::new(),
            target: Descriptor {
                media_type: "application/x".to_owned(),
                digest: blob.clone(),
                size: manifest.len() as u64,
                platform: None,
                annotations: Labels::new(),
                urls: Vec::new(),
            },
            created: std::time::UNIX_EPOCH,
            updated: std::time::UNIX_EPOCH,
        };
        metadata.create_image(&scope, image).expect("makes");
        let records: Arc<dyn Transactions> = Arc::new(metadata);
        let overlay =
            Overlay::open(&root.join("snapshots/overlayfs"), records, OverlayOptions::default());
        let overlay = overlay.expect("opens");
        overlay.prepare(&key("layer-key"), None, Labels::new()).expect("prepares");
        overlay.commit(&key("layer"), &key("layer-key"), Labels::new()).expect("commits");
        overlay.prepare(&key("active"), Some(&key("layer")), Labels::new()).expect("prepares");
        overlay.sync().expect("syncs");
        Self { folder, blob }
    }

    fn root(&self) -> &Path {
        self.folder.path()
    }

    fn database(&self) -> PathBuf {
        self.root().join("metadata.redb")
    }

    fn blob_file(&self) -> PathBuf {
        self.root().join("content/blobs/sha256").join(self.blob.hex())
    }

    fn directory(&self, id: u64) -> PathBuf {
        self.root().join("snapshots/overlayfs/snapshots").join(id.to_string())
    }

    fn write(&self, change: impl FnOnce(&redb::WriteTransaction)) {
        let database = Database::open(self.database()).expect("opens");
        let transaction = database.begin_write().expect("begins");
        change(&transaction);
        transaction.commit().expect("commits");
    }

    /// Puts a row, or with no value removes it.
    fn put(&self, table: &str, key: &str, value: Option<&[u8]>) {
        self.write(|transaction| {
            let table = TableDefinition::<Bytes, Bytes>::new(table);
            let mut table = transaction.open_table(table).expect("opens");
            match value {
                Some(value) => table.insert(key.as_bytes(), value).expect("writes"),
                None => table.remove(key.as_bytes()).expect("writes"),
            };
        });
    }

    fn put_snapshot(&self, name: &str, value: &str) {
        self.write(|transaction| {
            let mut table = transaction.open_table(SNAPSHOTS).expect("opens");
            table.insert(("overlayfs", "default", name), value.as_bytes()).expect("writes");
        });
    }

    fn check(&self, deep: bool) -> Vec<String> {
        let report: Report = Root::open(self.root()).expect("is free").check(deep).expect("checks");
        report.problems.iter().map(ToString::to_string).collect()
    }

    fn repair(&self) -> Vec<String> {
        let root = Root::open(self.root()).expect("is free");
        let repaired = root.repair(true, &namespace(), "now").expect("repairs");
        assert_eq!(repaired.left, [], "after {:?}", repaired.done);
        repaired.done
    }

    fn metadata(&self) -> metadata::Store {
        metadata::Store::open(&self.database()).expect("opens")
    }
}

const SNAPSHOT: &str = r#"{"id":9,"kind":"active","created":1,"updated":1"#;

/// How to damage a store, and what is said of it; DIGEST stands for the blob's.
type Case = (&'static str, fn(&Fixture), &'static [&'static str]);

const CASES: &[Case] = &[
    ("nothing", |_| {}, &[]),
    (
        "a record that does not decode",
        |it| it.put("images", "default\0bad", Some(&[0x0a, 0x05, 0x01])),
        &["images default/bad labels: buffer underflow"],
    ),
    (
        "a key without a name",
        |it| it.put("containers", "default", Some(&[])),
        &["containers default: not 2 names"],
    ),
    (
        "a digest that is none",
        |it| it.put("content", "default\0sha256:1", Some(&[])),
        &["content default/sha256:1: invalid checksum digest length"],
    ),
    (
        "a namespace that is none",
        |it| it.put("namespaces", "a/b", Some(&[])),
        &[
            "namespaces a/b key: identifier \"a/b\" must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$: invalid argument",
        ],
    ),
    (
        "objects without their namespace",
        |it| it.put("namespaces", "default", None),
        &[
            "images default/image namespace: namespace \"default\" has no record",
            "snapshots overlayfs/default/active namespace: namespace \"default\" has no record",
            "snapshots overlayfs/default/layer namespace: namespace \"default\" has no record",
        ],
    ),
    (
        "what a lease held that is gone",
        |it| it.put("leases", "default\0lease", None),
        &["lease_resources default/lease/content/DIGEST lease: lease \"lease\" has no record"],
    ),
    (
        "a blob that is gone",
        |it| fs::remove_file(it.blob_file()).expect("removes"),
        &["content default/DIGEST digest: its file is missing"],
    ),
    (
        "a blob that was emptied",
        |it| fs::write(it.blob_file(), "").expect("writes"),
        &["content default/DIGEST digest: its file of 0 bytes has another"],
    ),
    (
        "a blob with other bytes",
        |it| fs::write(it.blob_file(), r#"{"layers":[1]"#).expect("writes"),
        &["content default/DIGEST digest: its file of 13 bytes has another"],
    ),
    (
        "a size that is wrong",
        |it| it.put("content", &format!("default\0{}", it.blob), Some(&[0x20, 7])),
        &["content default/DIGEST size: is 7, but its file has 13 bytes"],
    ),
    (
        "a snapshot that does not decode",
        |it| it.put_snapshot("bad", r#"{"id":"x"}"#),
        &[
            "snapshots overlayfs/default/bad: snapshot database: invalid type: string \"x\", expected u64 at line 1 column 9",
        ],
    ),
    (
        "a snapshot without its parent",
        |it| it.put_snapshot("lost", &format!(r#"{SNAPSHOT},"parent":"none"}}"#)),
        &["snapshots overlayfs/default/lost parent: \"none\" has no record"],
    ),
    (
        "a snapshot on an active one",
        |it| it.put_snapshot("lost", &format!(r#"{SNAPSHOT},"parent":"active"}}"#)),
        &["snapshots overlayfs/default/lost parent: \"active\" is active, not committed"],
    ),
    (
        "a snapshot on itself",
        |it| {
            let record = r#"{"id":9,"kind":"committed","created":1,"updated":1,"parent":"loop"}"#;
            it.put_snapshot("loop", record);
        },
        &["snapshots overlayfs/default/loop parent: \"loop\" is on top of itself"],
    ),
    (
        "two snapshots of one directory",
        |it| it.put_snapshot("z", r#"{"id":1,"kind":"committed","created":1,"updated":1}"#),
        &["snapshots overlayfs/default/z id: 1 is that of overlayfs/default/layer too"],
    ),
    (
        "a layer's directory that is gone",
        |it| fs::remove_dir_all(it.directory(1)).expect("removes"),
        &["snapshots overlayfs/default/layer id: directory 1 is missing"],
    ),
    (
        "an active snapshot's directory that is gone",
        |it| fs::remove_dir_all(it.directory(2)).expect("removes"),
        &["snapshots overlayfs/default/active id: directory 2 is missing"],
    ),
    (
        "links that are wrong",
        |it| {
            it.write(|transaction| {
                let mut table = transaction.open_table(CHILDREN).expect("opens");
                table.remove(("overlayfs", 1, 2)).expect("writes");
                table.insert(("overlayfs", 5, 6), "x").expect("writes");
            });
        },
        &[
            "snapshot_children overlayfs/1/2: the link to \"active\" is missing",
            "snapshot_children overlayfs/5/6: no snapshot has such a parent",
        ],
    ),
    (
        "a table that is gone",
        |it| {
            it.write(|transaction| {
                let table = TableDefinition::<Bytes, Bytes>::new("sandboxes");
                transaction.delete_table(table).expect("deletes");
            });
        },
        &["sandboxes: the table is missing"],
    ),
];

#[test]
fn problems_are_found_and_mended() {
    let mut wrong = Vec::new();
    for (case, damage, want) in CASES {
        let fixture = Fixture::new();
        damage(&fixture);
        let before = fs::read(fixture.database()).expect("reads");
        let got = fixture.check(true);
        let want: Vec<_> =
            want.iter().map(|line| line.replace("DIGEST", &fixture.blob.to_string())).collect();
        if got != want {
            wrong.push((case, got, want));
            continue;
        }
        assert!(fs::read(fixture.database()).expect("reads") == before, "{case}: changed it");
        let done = fixture.repair();
        assert_eq!(done.is_empty(), want.is_empty(), "{case}: {done:?}");
        assert_eq!(fixture.check(true), Vec::<String>::new(), "{case}");
        assert_eq!(fixture.repair(), Vec::<String>::new(), "{case}: again");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What goes first may be all that kept others, and the next repair does not know of it.
#[test]
fn a_repair_that_is_cut_short_keeps_all() {
    let fixture = Fixture::new();
    fixture.put("images", "default\0bad", Some(&[0x0a, 0x05, 0x01]));
    fs::write(fixture.blob_file(), "other bytes").expect("writes");
    fs::write(fixture.root().join("aside-now"), "in the way").expect("writes");
    let root = Root::open(fixture.root()).expect("is free");
    root.repair(true, &namespace(), "now").expect_err("there is no place to put the blob");
    drop(root);
    let held = fixture.metadata().lease_resources(&namespace(), "recovered-now").expect("a lease");
    assert!(held.contains(&Resource::content(&fixture.blob)), "{held:?}");
    assert!(held.contains(&Resource::snapshot("overlayfs", "layer")), "{held:?}");
}

#[test]
fn a_snapshot_that_has_to_go_is_put_aside() {
    let fixture = Fixture::new();
    fs::write(fixture.directory(2).join("fs/precious"), "x").expect("writes");
    fixture.put_snapshot(
        "active",
        r#"{"id":2,"kind":"active","created":1,"updated":1,"parent":"no"}"#,
    );
    fixture.repair();
    let aside = fixture.root().join("aside-now/overlayfs-2/fs/precious");
    assert_eq!(fs::read_to_string(aside).expect("is there"), "x");
    // Whose number nobody knows any more.
    let fixture = Fixture::new();
    fs::write(fixture.directory(2).join("fs/precious"), "x").expect("writes");
    fixture.put_snapshot("active", "{");
    fixture.repair();
    let aside = fixture.root().join("aside-now/overlayfs-2/fs/precious");
    assert_eq!(fs::read_to_string(aside).expect("is there"), "x");
}

#[test]
fn a_lost_database_is_made_anew() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage, &str); 4] = [
        ("gone", |path| fs::remove_file(path).expect("removes"), "metadata.redb: it is missing"),
        (
            "empty",
            |path| fs::write(path, "").expect("writes"),
            "metadata.redb: I/O error: the file is empty",
        ),
        (
            "another file",
            |path| fs::write(path, vec![b'x'; 8192]).expect("writes"),
            "metadata.redb: I/O error: Not a redb database: magic number mismatch",
        ),
        (
            "zeros",
            |path| {
                let len = fs::metadata(path).expect("is there").len();
                fs::write(path, vec![0; usize::try_from(len).expect("small")]).expect("writes");
            },
            "metadata.redb: I/O error: Not a redb database: magic number mismatch",
        ),
    ];
    for (case, damage, want) in cases {
        let fixture = Fixture::new();
        damage(&fixture.database());
        let found = fixture.check(false);
        assert_eq!(found.len(), 1, "{case}: {found:?}");
        let error = start(fixture.root()).expect_err("no empty store in its place");
        assert!(error.to_string().contains("`gantryd db repair`"), "{case}: {error}");
        assert!(
            matches!(error, Error::LostDatabase { .. } | Error::DamagedDatabase { .. }),
            "{case}: {error:?}"
        );
        assert_eq!(found, [want], "{case}");
        let done = fixture.repair();
        let told = format!("pull or tag it again: {} (a manifest)", fixture.blob);
        assert!(done.iter().any(|line| line.contains(&told)), "{case}: {done:?}");
        let put_aside = fixture.root().join("metadata.redb.damaged-now");
        assert_eq!(put_aside.exists(), case != "gone", "{case}");
        let metadata = fixture.metadata();
        let info = metadata.content(&namespace(), &fixture.blob).expect("was found");
        assert!(info.labels.contains_key("containerd.io/gc.root"), "{case}: {info:?}");
        let records: Arc<dyn Transactions> = Arc::new(metadata);
        let root = fixture.root().join("snapshots/overlayfs");
        let overlay = Overlay::open(&root, records, OverlayOptions::default()).expect("opens");
        for name in ["recovered-1", "recovered-2"] {
            let kind = overlay.stat(&key(name)).expect("is there").kind;
            assert_eq!(kind, snapshotter::Kind::Active, "{case}: {name}");
        }
    }
}

#[test]
fn rows_that_can_be_read_are_taken_over() {
    let fixture = Fixture::new();
    // So many that damage hits the middle of them.
    let metadata = fixture.metadata();
    for number in 0..400 {
        let resource = Resource::image(&format!("{number:0900}"));
        metadata.add_lease_resource(&namespace(), "lease", &resource).expect("adds");
    }
    drop(metadata);
    let mut bytes = fs::read(fixture.database()).expect("reads");
    let needle = format!("{:0900}", 200);
    let places: Vec<_> =
        (0..bytes.len() - 900).filter(|at| bytes[*at..].starts_with(needle.as_bytes())).collect();
    for at in places {
        bytes[at] = b'x';
    }
    fs::write(fixture.database(), bytes).expect("writes");
    let found = fixture.check(false);
    assert!(matches!(found.as_slice(), [one] if one.starts_with("metadata.redb:")), "{found:?}");
    let done = fixture.repair();
    assert!(done.contains(&"took over 1 rows of table images".to_owned()), "{done:?}");
    fixture.metadata().image(&namespace(), "image").expect("is there");
}

type Snapshots<'t> = redb::Table<'t, (&'static str, &'static str, &'static str), Bytes>;

/// Of a commit that is damaged the library takes the one before, and of what is damaged in both a repair
/// takes what there is of each; but a snapshot that the last one has renamed does not get its old name back.
#[test]
fn two_commits() {
    let fixture = Fixture::new();
    let name = |number: u64| format!("{number:0200}");
    let value = |number: u64, label: &str| {
        format!(
            r#"{{"id":{number},"kind":"active","created":1,"updated":1,"labels":{{"a":"{label}"}}}}"#
        )
    };
    let database = Database::open(fixture.database()).expect("opens");
    let change = |change: &dyn Fn(&mut Snapshots<'_>)| {
        let transaction = database.begin_write().expect("begins");
        change(&mut transaction.open_table(SNAPSHOTS).expect("opens"));
        transaction.commit().expect("commits");
    };
    change(&|table| {
        for number in 100..300 {
            let label = if number == 150 { "in both" } else { "" };
            let key = ("overlayfs", "default", &*name(number));
            table.insert(key, value(number, label).as_bytes()).expect("writes");
        }
    });
    change(&|table| {
        table.remove(("overlayfs", "default", &*name(120))).expect("removes");
        table
            .insert(("overlayfs", "default", "renamed"), value(120, "").as_bytes())
            .expect("writes");
        let key = ("overlayfs", "default", &*name(250));
        table.insert(key, value(250, "in the last").as_bytes()).expect("writes");
    });
    // As it is when the machine stops: to close it is a commit, too.
    let mut bytes = fs::read(fixture.database()).expect("reads");
    drop(database);
    let damage = |bytes: &mut Vec<u8>, needle: &str| {
        let places = 0..bytes.len() - needle.len();
        let places = places.filter(|at| bytes[*at..].starts_with(needle.as_bytes()));
        for at in places.collect::<Vec<_>>() {
            bytes[at / 4096 * 4096] = 0xff;
        }
        fs::write(fixture.database(), bytes).expect("writes");
    };
    let notes = || {
        let report: Report =
            Root::open(fixture.root()).expect("is free").check(false).expect("checks");
        report.notes
    };
    fs::write(fixture.database(), &bytes).expect("writes");
    assert_eq!(notes(), [""; 0], "a file that was not closed");
    damage(&mut bytes, "in the last");
    let told = notes();
    assert!(matches!(&told[..], [one] if one.contains("the one before it is used")), "{told:?}");
    damage(&mut bytes, "in both");
    let done = fixture.repair();
    let stand_in = |line: &String| {
        line.starts_with("of table snapshots, ") && line.ends_with("are those of the commit before")
    };
    assert!(done.iter().any(stand_in), "{done:?}");
    let overlay = Overlay::open(
        &fixture.root().join("snapshots/overlayfs"),
        Arc::new(fixture.metadata()),
        OverlayOptions::default(),
    );
    let overlay = overlay.expect("opens");
    overlay.stat(&key("renamed")).expect("has its new name");
    let old = overlay.stat(&key(&name(120)));
    assert!(old.is_err(), "has no other: {old:?}");
    overlay.stat(&key(&name(251))).expect("is of the commit before");
}

/// Puts a daemon together on `root`.
fn start(root: &Path) -> Result<(), Error> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let state = tempfile::tempdir().expect("a temporary directory");
    let config = engine::config::Config {
        root: Some(root.to_owned()),
        state: Some(state.path().to_owned()),
        ..Default::default()
    };
    let paths = config.paths(engine::config::Layout::Gantry);
    runtime.expect("starts").block_on(async { Daemon::build(config, &paths).map(drop) })
}

fn gantryd(root: &Path, words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gantryd"));
    let output = command.arg("--root").arg(root).arg("db").args(words).output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("is text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_line() {
    let fixture = Fixture::new();
    let good = gantryd(fixture.root(), &["check", "--deep"]);
    assert_eq!(good, (Some(0), String::new(), String::new()));
    let (status, dump, _) = gantryd(fixture.root(), &["dump"]);
    assert_eq!(status, Some(0));
    let lines: Vec<serde_json::Value> =
        dump.lines().map(|line| serde_json::from_str(line).expect("is JSON")).collect();
    let tables: Vec<_> = lines.iter().map(|line| line["table"].as_str().unwrap_or("")).collect();
    let want = [
        "meta",
        "namespaces",
        "images",
        "leases",
        "lease_resources",
        "content",
        "snapshots",
        "snapshots",
        "snapshot_children",
    ];
    assert_eq!(tables, want);
    fixture.put("leases", "default\0lease", None);
    let (status, found, _) = gantryd(fixture.root(), &["check", "--format", "json"]);
    let report: serde_json::Value = serde_json::from_str(&found).expect("is JSON");
    assert_eq!((status, &report["problems"][0]["field"]), (Some(1), &"lease".into()), "{report}");
    assert_eq!(report["rows"]["images"], 1, "{report}");
    assert_eq!(gantryd(fixture.root(), &["repair"]).0, Some(0));
    assert_eq!(gantryd(fixture.root(), &["check"]).0, Some(0));
    let used = Root::open(fixture.root()).expect("is free");
    let (status, _, error) = gantryd(fixture.root(), &["check"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("another gantryd uses"), "{error}");
    drop(used);
    refuse_lost(fixture.root()).expect("nothing is lost");
    let error = Root::open(Path::new("/nonexistent")).err().expect("no root");
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}

/// Damage that the database library panics on is told as any other.
#[test]
fn pages_that_hold_something_else() {
    for (case, byte) in [("zeros", 0), ("ones", 0xff), ("a leaf's type", 1), ("a branch's type", 2)]
    {
        let f = Fixture::new();
        let file = fs::OpenOptions::new().write(true).open(f.database()).expect("opens");
        std::os::unix::fs::FileExt::write_all_at(&file, &[byte; 3 * 4096], 4096).expect("writes");
        let root = f.root().to_str().expect("a plain path");
        let out = Command::new(env!("CARGO_BIN_EXE_gantryd"))
            .args(["--root", root, "db", "dump"])
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{case}: {said}");
        assert!(
            said.contains("is damaged; `gantryd db repair` saves what there is"),
            "{case}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{case}: {said}");
    }
}
