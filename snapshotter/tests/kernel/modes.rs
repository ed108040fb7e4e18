//! The options of overlays, as the kernel shows them, and what they do.

use std::{fs, os::unix::fs::FileTypeExt, path::Path, process::Command, sync::Arc};

use snapshotter::{Error, Key, Labels, Mount, Overlay, OverlayOptions, Snapshotter, Transactions};

use crate::mounted::{Mounted, database, key};

/// Tells this test program that it is the child in a user namespace.
const INSIDE: &str = "GANTRY_TEST_IN_USER_NAMESPACE";

fn open(root: &Path, database: &Arc<dyn Transactions>, options: &[&str], boot: &str) -> Overlay {
    let options: Vec<_> = options.iter().map(|option| option.to_string()).collect();
    let layout = OverlayOptions::default().with_mount_options(&options);
    Overlay::open_in_boot(root, Arc::clone(database), layout, boot).expect("opens")
}

/// Makes two layers, and gives the name of the upper one.
fn image(overlay: &Overlay) -> Key {
    let mut below = None;
    for name in ["lower", "upper"] {
        let mounts = overlay.prepare(&key("active"), below.as_ref(), Labels::new());
        let at = Mounted::new(&mounts.expect("prepares"));
        fs::create_dir(at.path().join(name)).expect("writes");
        fs::write(at.path().join(name).join("file"), name).expect("writes");
        drop(at);
        overlay.commit(&key(name), &key("active"), Labels::new()).expect("commits");
        below = Some(key(name));
    }
    overlay.sync().expect("syncs");
    below.expect("there are two")
}

fn has(options: &[String], name: &str) -> bool {
    options.iter().any(|option| option == name)
}

/// The kernel shows an option that is not its default. That what is off is not shown proves
/// something because the same option is shown where it is on.
#[test]
fn indexes_and_copies_of_metadata_are_off() {
    let scratch = tempfile::tempdir().expect("scratch");
    let database = database();
    let cases = [
        ("by default", &[][..], &[][..], &["index=on", "metacopy=on", "userxattr"][..]),
        ("switched on", &["index=on", "metacopy=on"], &["index=on", "metacopy=on"], &["userxattr"]),
        ("switched off", &["index=off", "metacopy=off"], &[], &["index=on", "metacopy=on"]),
    ];
    let top = image(&open(scratch.path(), &database, &[], "boot"));
    for (case, given, there, not_there) in cases {
        let overlay = open(scratch.path(), &database, given, "boot");
        let mounts = overlay.prepare(&key(case), Some(&top), Labels::new()).expect("prepares");
        if given.is_empty() {
            assert!(mounts[0].has("index=off"), "{case}: {mounts:?}");
        }
        let at = Mounted::new(&mounts);
        let shown = at.options();
        for option in there {
            assert!(has(&shown, option), "{case}: {option} in {shown:?}");
        }
        for option in not_there {
            assert!(!has(&shown, option), "{case}: {option} in {shown:?}");
        }
        // With metadata copied alone, the data is a reference to a lower layer.
        let file = at.path().join("lower/file");
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("changes the mode");
        let upper = Path::new(mounts[0].option("upperdir").expect("an overlay")).join("lower/file");
        let mark = rustix::fs::getxattr(&upper, c"trusted.overlay.metacopy", &mut [0; 64]);
        assert_eq!(mark.is_ok(), given.contains(&"metacopy=on"), "{case}: {mark:?}");
    }
}

/// A container that is started once more has its snapshot mounted once more, and what it wrote.
#[test]
fn volatile_is_mounted_again_in_the_same_boot() {
    let scratch = tempfile::tempdir().expect("scratch");
    let database = database();
    let container = key("container");
    let overlay = open(scratch.path(), &database, &["volatile"], "one");
    let top = image(&overlay);
    let first = overlay.prepare(&container, Some(&top), Labels::new()).expect("prepares");
    let at = Mounted::new(&first);
    let shown = at.options();
    assert!(has(&shown, "volatile") || has(&shown, "fsync=volatile"), "{shown:?}");
    fs::write(at.path().join("written"), "1").expect("writes");
    drop(at);
    let refused = Mounted::try_new(&first).err().expect("the kernel refuses by itself");
    assert!(sys::error::Chain(&refused).to_string().contains("overlay"), "{refused}");

    for daemon in ["the same", "another"] {
        let overlay = open(scratch.path(), &database, &["volatile"], "one");
        let again = overlay.mounts(&container).expect(daemon);
        assert_eq!(again, first, "{daemon}");
        let at = Mounted::new(&again);
        assert_eq!(fs::read_to_string(at.path().join("written")).expect("kept"), "1", "{daemon}");
    }
    let view = overlay.view(&key("view"), Some(&top), Labels::new()).expect("makes a view");
    assert!(!view[0].has("volatile"), "nothing is written to a view: {view:?}");
}

#[test]
fn volatile_is_refused_in_another_boot() {
    type Call = fn(&Overlay) -> Result<(), Error>;
    let calls: [(&str, Call); 2] = [
        ("mounts", |overlay| overlay.mounts(&key("container")).map(drop)),
        ("commit", |overlay| overlay.commit(&key("new"), &key("container"), Labels::new())),
    ];
    let cases = [
        ("same boot", &["volatile"][..], "one", true),
        ("another boot", &["volatile"], "two", false),
        ("another boot, no longer volatile", &[], "two", false),
    ];
    for (call, run) in calls {
        for (case, options, boot, want) in cases {
            let scratch = tempfile::tempdir().expect("scratch");
            let database = database();
            let overlay = open(scratch.path(), &database, &["volatile"], "one");
            let top = image(&overlay);
            let mounts = overlay.prepare(&key("container"), Some(&top), Labels::new());
            drop(Mounted::new(&mounts.expect("prepares")));
            drop(overlay);
            let overlay = open(scratch.path(), &database, options, boot);
            let result = run(&overlay);
            let is_refused =
                matches!(&result, Err(Error::Volatile { key: of }) if *of == key("container"));
            assert_eq!(is_refused, !want, "{call}, {case}: {result:?}");
            assert!(overlay.suspects().expect("lists").is_empty(), "{case}: no layer is lost");
            overlay.sync().expect("syncs");
            assert_eq!(
                run(&overlay).is_err(),
                !want || call == "commit",
                "{call}, {case}: for good"
            );
            if !want {
                overlay.remove(&key("container")).expect("can be removed");
                let anew = overlay.prepare(&key("container"), Some(&top), Labels::new());
                drop(Mounted::new(&anew.expect("can be made anew")));
            }
        }
    }
}

/// A snapshot from before such records, or one that somebody else mounted so.
#[test]
fn a_mark_that_nobody_noted_is_respected() {
    let scratch = tempfile::tempdir().expect("scratch");
    let overlay = open(scratch.path(), &database(), &[], "one");
    let top = image(&overlay);
    let container = key("container");
    let mut mounts = overlay.prepare(&container, Some(&top), Labels::new()).expect("prepares");
    mounts[0].options.push("volatile".to_owned());
    drop(Mounted::new(&mounts));
    let refused = overlay.mounts(&container);
    assert!(matches!(refused, Err(Error::Volatile { .. })), "{refused:?}");
}

#[test]
fn user_attributes_in_a_user_namespace() {
    if std::env::var_os(INSIDE).is_some() {
        return inside_user_namespace();
    }
    let test = std::env::current_exe().expect("is known");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--"])
        .arg(test)
        .args(["--exact", "modes::user_attributes_in_a_user_namespace", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare is there");
    let told = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}{error}");
}

fn inside_user_namespace() {
    let scratch = tempfile::tempdir().expect("scratch");
    let overlay = open(scratch.path(), &database(), &[], "boot");
    let top = image(&overlay);
    let mounts = overlay.prepare(&key("container"), Some(&top), Labels::new()).expect("prepares");
    let at = Mounted::new(&mounts);
    assert!(has(&at.options(), "userxattr"), "{:?}", at.options());
    fs::remove_file(at.path().join("upper/file")).expect("removes");
    fs::remove_dir_all(at.path().join("lower")).expect("removes");
    fs::create_dir(at.path().join("lower")).expect("makes anew");
    let upper = Path::new(mounts[0].option("upperdir").expect("an overlay"));
    let mark = fs::symlink_metadata(upper.join("upper/file")).expect("a whiteout");
    assert!(mark.file_type().is_char_device(), "{mark:?}");
    let mut value = [0; 8];
    let name = c"user.overlay.opaque";
    let len = rustix::fs::getxattr(upper.join("lower"), name, &mut value).expect("is opaque");
    assert_eq!(&value[..len], b"y");
    assert!(fs::read_dir(at.path().join("lower")).expect("lists").next().is_none());
    assert_eq!(fs::read_dir(mounts_lower(&mounts)).expect("lists").count(), 1, "untouched");
}

/// The nearest lower directory.
fn mounts_lower(mounts: &[Mount]) -> String {
    let lower = mounts[0].option("lowerdir").expect("an overlay");
    lower.split(':').next().unwrap_or_default().to_owned()
}
