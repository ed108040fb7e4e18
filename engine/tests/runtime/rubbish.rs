//! What lies about in the state directory when the daemon starts, and is no task: the daemon comes up,
//! serves the tasks that are there, removes what is left of others, and follows no link.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    sync::Arc,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::{
    LONG_LIMIT,
    fake::{FakeShim, Manner, Stage},
    soon,
};

/// The files of a bundle that are read when it is found.
const READ: [&str; 7] = [
    "bootstrap.json",
    "address",
    "shim-binary-path",
    "init.pid",
    "exit",
    "exit.recorded",
    "exits.told",
];

/// What becomes of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is removed.
    Gone,
    /// It is left alone, and is no task.
    Alone,
    /// It is a task, whose state is not known.
    Unknown,
}

/// Makes something in a directory, with what is needed for it.
type Make = fn(&Path, &Ground<'_>);

struct Ground<'a> {
    stage: &'a Stage,
    /// A directory of somebody else's.
    outside: &'a Path,
}

/// The name of a bundle, what it becomes, and what is in it.
const RUBBISH: &[(&str, End, Make)] = &[
    ("empty", End::Gone, |_, _| {}),
    ("half-made", End::Gone, |path, _| {
        fs::write(path.join("config.json"), "{\"ociVersion\": ").expect("written");
    }),
    ("links", End::Gone, |path, ground| {
        for name in READ {
            symlink(ground.outside.join("kept"), path.join(name)).expect("linked");
        }
        symlink(ground.outside, path.join("rootfs")).expect("linked");
        symlink(ground.outside.join("fifo"), path.join("log")).expect("linked");
    }),
    ("work", End::Gone, |path, ground| {
        symlink(ground.outside, path.join("work")).expect("linked");
    }),
    ("fifos", End::Gone, |path, _| {
        for name in READ {
            mknodat(CWD, path.join(name), FileType::Fifo, Mode::RWXU, 0).expect("made");
        }
    }),
    ("directories", End::Gone, |path, _| {
        for name in READ {
            fs::create_dir_all(path.join(name).join("deep/er")).expect("made");
        }
    }),
    ("garbage", End::Gone, |path, _| {
        for name in READ {
            fs::write(path.join(name), [0xff, 0, 0x80, b'\n', 0x12, 0x7f]).expect("written");
        }
    }),
    ("huge", End::Gone, |path, _| {
        for name in READ {
            fs::File::create(path.join(name)).and_then(|it| it.set_len(1 << 40)).expect("made");
        }
    }),
    ("long-address", End::Gone, |path, _| {
        fs::write(path.join("address"), "unix:///".to_owned() + &"x".repeat(4000))
            .expect("written");
    }),
    ("odd-address", End::Gone, |path, _| {
        fs::write(path.join("address"), "vsock://3:1024").expect("written");
    }),
    ("no-listener", End::Gone, |path, ground| {
        let socket = ground.stage.folder().join("no-listener.sock");
        drop(UnixListener::bind(&socket).expect("bound"));
        point(path, &socket);
    }),
    ("garbage-frames", End::Gone, |path, ground| served(path, ground, "garbage-frames")),
    ("oversized", End::Gone, |path, ground| served(path, ground, "oversized")),
    ("cut", End::Gone, |path, ground| served(path, ground, "cut")),
    ("odd-message", End::Unknown, |path, ground| served(path, ground, "odd-message")),
    ("stuck", End::Unknown, |path, ground| served(path, ground, "stuck")),
    (".removed", End::Gone, |path, _| {
        fs::create_dir_all(path.join("rootfs/etc")).expect("made");
    }),
    ("..odd", End::Gone, |_, _| {}),
    ("a b", End::Alone, |path, _| fs::write(path.join("address"), "x").expect("written")),
    ("new\nline", End::Alone, |_, _| {}),
];

fn point(bundle: &Path, socket: &Path) {
    let text = format!("unix://{}", socket.display());
    fs::write(bundle.join("bootstrap.json"), text).expect("written");
}

fn served(bundle: &Path, ground: &Ground<'_>, name: &str) {
    point(bundle, &ground.stage.folder().join(format!("{name}.sock")));
}

/// Whoever serves where bundles say, and answers with nonsense.
fn nonsense(stage: &Stage) -> Vec<Arc<FakeShim>> {
    let manners = [
        ("garbage-frames", Manner::Garbage),
        ("oversized", Manner::Oversized),
        ("cut", Manner::Cut),
        ("odd-message", Manner::OddMessage),
        ("stuck", Manner::Stuck),
    ];
    manners.into_iter().map(|(name, manner)| stage.shim(name, manner)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rubbish_is_no_obstacle() {
    let stage = Stage::new();
    let runtime = stage.runtime();
    let good = stage.shim("good", Manner::Good);
    soon("create", runtime.create(&stage.namespace, stage.request("good"))).await.expect("made");
    soon("close", runtime.close()).await;
    drop(runtime);

    let outside = stage.folder().join("outside");
    fs::create_dir(&outside).expect("made");
    fs::write(outside.join("kept"), "unix:///kept").expect("written");
    mknodat(CWD, outside.join("fifo"), FileType::Fifo, Mode::RWXU, 0).expect("made");
    let _serving = nonsense(&stage);
    let ground = Ground { stage: &stage, outside: &outside };
    for (name, _, make) in RUBBISH {
        fs::create_dir_all(stage.bundle(name)).expect("made");
        make(&stage.bundle(name), &ground);
    }
    // Beside namespaces and bundles.
    symlink(&outside, stage.bundle("link")).expect("linked");
    symlink(&outside, stage.state().join("link")).expect("linked");
    fs::write(stage.bundle("file"), "").expect("written");
    fs::write(stage.state().join("file"), "").expect("written");
    fs::create_dir_all(stage.state().join("no namespace/c1")).expect("made");

    let runtime = tokio::task::block_in_place(|| stage.runtime());
    let task = runtime.task(&stage.namespace, "good").expect("is there");
    assert_eq!(soon("state", task.state("")).await.expect("answers").status, 2);
    let settled = async {
        loop {
            let tasks = runtime.tasks(&stage.namespace);
            let states = futures::future::join_all(tasks.iter().map(|it| it.state_or_last())).await;
            let of = |state: Option<_>, id: &str| {
                state.map(|it: proto::containerd::task::v3::StateResponse| {
                    (id.to_owned(), it.status)
                })
            };
            let known = tasks.iter().zip(states).filter_map(|(task, state)| of(state, task.id()));
            let known: Vec<_> = known.collect();
            let ids: Vec<&str> = known.iter().map(|(id, _)| id.as_str()).collect();
            if ids == ["good", "odd-message", "stuck"] && runtime.tasks(&stage.namespace).len() == 3
            {
                return known;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let known = tokio::time::timeout(LONG_LIMIT, settled).await.expect("an end of the cleaning");
    for (name, end, _) in RUBBISH {
        let state = known.iter().find(|(id, _)| id == name).map(|(_, status)| *status);
        let is_there = stage.bundle(name).exists();
        let got = match (is_there, state) {
            (false, None) => End::Gone,
            (true, None) => End::Alone,
            (true, Some(0)) => End::Unknown,
            other => panic!("{name:?}: {other:?}"),
        };
        assert_eq!(got, *end, "{name:?}");
    }
    let kept = fs::read_to_string(outside.join("kept")).expect("is there");
    assert_eq!((kept.as_str(), outside.join("fifo").exists()), ("unix:///kept", true));
    for left in [stage.bundle("link"), stage.state().join("link"), stage.bundle("file")] {
        assert!(left.symlink_metadata().is_ok(), "{}", left.display());
    }
    good.exit(0);
    soon("delete", task.delete()).await.expect("ended");
    soon("close", runtime.close()).await;
}
