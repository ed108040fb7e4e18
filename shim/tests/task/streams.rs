//! Standard streams over ttrpc instead of fifos, by a client like containerd's.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use prost::Message;
use prost_types::Any;
use proto::{
    any,
    containerd::{
        services::streaming::v1::StreamInit,
        task::v3 as api,
        types::transfer::{Data, WindowUpdate},
    },
    ttrpc::{Frame, Kind, Request, Response, Status, frame},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
};

use crate::{
    delete_request, exec_request,
    harness::{Client, Shim, TIMEOUT},
    kill, run, start, wait,
};

/// The call's number in its connection.
const STREAM_ID: u32 = 1;

/// How many bytes containerd's clients let a shim send, and more before those have come.
const WINDOW: i32 = 64 << 10;

/// A stream, in a connection of its own as containerd's.
struct Stream {
    stream: UnixStream,
    input: Vec<u8>,
}

impl Stream {
    /// A connection without a stream.
    fn connect(shim: &Shim) -> Self {
        let stream = UnixStream::connect(&shim.address).expect("connect");
        stream.set_read_timeout(Some(TIMEOUT)).expect("timeout");
        Self { stream, input: Vec::new() }
    }

    /// Opens the stream `id`, and waits until the shim knows it.
    fn open(shim: &Shim, id: &str) -> Self {
        let mut stream = Self::connect(shim);
        stream.call();
        stream.say(&any::pack(&StreamInit { id: id.to_owned() }));
        assert_eq!(stream.hear(), Ok(Some(any::pack(&()))), "{id}");
        stream
    }

    fn call(&mut self) {
        let request = Request {
            service: "containerd.services.streaming.v1.Streaming".to_owned(),
            method: "Stream".to_owned(),
            ..Request::default()
        };
        self.send(Kind::Request, frame::REMOTE_OPEN, &request);
    }

    fn send(&mut self, kind: Kind, flags: u8, message: &impl Message) {
        let mut output = Vec::new();
        frame::append_with_flags(&mut output, kind, STREAM_ID, flags, message).expect("short");
        self.stream.write_all(&output).expect("write");
    }

    fn say(&mut self, message: &Any) {
        self.send(Kind::Data, 0, message);
    }

    fn widen(&mut self, update: i32) {
        self.say(&any::pack(&WindowUpdate { update }));
    }

    fn data(&mut self, data: &[u8]) {
        self.say(&any::pack(&Data { data: data.to_vec().into() }));
    }

    /// Says that this was all.
    fn close(&mut self) {
        self.send(Kind::Data, frame::REMOTE_CLOSED | frame::NO_DATA, &());
    }

    /// The next message, or `None` at the end.
    fn hear(&mut self) -> Result<Option<Any>, Status> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some((frame, len)) = Frame::parse(&self.input).expect("frames") {
                assert_eq!(frame.stream_id, STREAM_ID);
                let heard = match frame.kind {
                    Kind::Data if frame.flags & frame::NO_DATA != 0 => Ok(None),
                    Kind::Data => Ok(Some(Any::decode(frame.payload).expect("a message"))),
                    Kind::Response => {
                        let response = Response::decode(frame.payload).expect("a response");
                        Err(response.status.expect("only failures are answered"))
                    }
                    Kind::Request => panic!("a server asks nothing"),
                };
                self.input.drain(..len);
                return heard;
            }
            let len = self.stream.read(&mut buffer).expect("an answer in time");
            assert!(len > 0, "the shim closes no connection");
            self.input.extend_from_slice(&buffer[..len]);
        }
    }

    /// The next piece of output.
    fn piece(&mut self) -> Option<Vec<u8>> {
        let message = self.hear().expect("no failure")?;
        Some(any::unpack::<Data>(&message).expect("decodes").expect("data").data.to_vec())
    }

    /// Reads output to its end, as containerd does: with a new window for what has come.
    fn read_all(mut self) -> Vec<u8> {
        self.widen(WINDOW);
        let mut all = Vec::new();
        while let Some(piece) = self.piece() {
            self.widen(i32::try_from(piece.len()).expect("small"));
            all.extend_from_slice(&piece);
        }
        all
    }

    /// Waits until more input is asked for, and gives how much.
    fn granted(&mut self) -> usize {
        let message = self.hear().expect("no failure").expect("no end");
        let update = any::unpack::<WindowUpdate>(&message).expect("decodes").expect("a window");
        usize::try_from(update.update).expect("positive")
    }

    /// How much input is asked for, if that is soon.
    fn granted_soon(&mut self) -> Option<usize> {
        let soon = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        let is_ready = poll(&mut fds, Some(&soon)).expect("poll") > 0;
        (is_ready || !self.input.is_empty()).then(|| self.granted())
    }

    /// Sends all of `data` as the windows allow, and says that this was all.
    fn write_all(&mut self, data: &[u8]) {
        let mut granted = 0;
        let mut rest = data;
        while !rest.is_empty() {
            if granted == 0 {
                granted = self.granted();
            }
            let len = granted.min(rest.len()).min(32 << 10);
            self.data(&rest[..len]);
            granted -= len;
            rest = &rest[len..];
        }
        self.close();
    }
}

/// Where the stream `name` of a shim is.
fn uri(shim: &Shim, name: &str) -> String {
    format!("ttrpc+unix://{}?streaming_id={name}", shim.address.display())
}

/// What of a shim's memory is its own, in KiB.
fn memory(shim: &Shim) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", shim.pid())).expect("lives");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line");
    line.trim_end_matches("kB").trim().parse().expect("a number")
}

fn wait_and_delete(shim: &Shim, client: &mut Client, exec: &str) -> u32 {
    let exit: api::WaitResponse = client.task("Wait", &wait(shim, exec)).expect("Wait");
    client.task::<api::DeleteResponse>("Delete", &delete_request(shim, exec)).expect("Delete");
    exit.exit_status
}

#[test]
fn a_task_reads_and_writes_streams() {
    let shim = Shim::start("streams", &["sh", "-c", "cat; echo err >&2; exit 3"]);
    let mut client = shim.client();
    let mut input = Stream::open(&shim, "c-stdin");
    let outputs = ["c-stdout", "c-stderr"].map(|name| Stream::open(&shim, name));
    let [out, err] = outputs.map(|stream| std::thread::spawn(|| stream.read_all()));
    let mut request = shim.create_request();
    request.stdin = uri(&shim, "c-stdin");
    request.stdout = uri(&shim, "c-stdout");
    request.stderr = uri(&shim, "c-stderr");
    run(&shim, &mut client, &request);
    // More than all buffers on the way.
    let data: Vec<u8> = (0..3_000_000u32).map(|byte| byte.wrapping_mul(7) as u8).collect();
    input.write_all(&data);
    assert_eq!(wait_and_delete(&shim, &mut client, ""), 3);
    assert!(out.join().expect("join") == data, "what comes out is what went in");
    assert_eq!(err.join().expect("join"), b"err\n");
    shim.finish(&mut client);
}

#[test]
fn both_outputs_may_be_one_stream() {
    let shim = Shim::start("stream-one", &["sh", "-c", "echo out; echo err >&2"]);
    let mut client = shim.client();
    let out = Stream::open(&shim, "both");
    let out = std::thread::spawn(|| out.read_all());
    let mut request = shim.create_request();
    request.stdout = uri(&shim, "both");
    request.stderr = uri(&shim, "both");
    run(&shim, &mut client, &request);
    assert_eq!(wait_and_delete(&shim, &mut client, ""), 0);
    assert_eq!(out.join().expect("join"), b"out\nerr\n");
    shim.finish(&mut client);
}

#[test]
fn a_terminal_is_two_streams() {
    let shim = Shim::start("stream-tty", &["sleep", "1000"]);
    let mut client = shim.client();
    run(&shim, &mut client, &shim.create_request());
    let mut request = exec_request(&shim, "e", &["sh", "-c", "stty -echo; read x; echo got $x"]);
    let spec = request.spec.as_mut().expect("there");
    let mut process: serde_json::Value = serde_json::from_slice(&spec.value).expect("JSON");
    process["terminal"] = true.into();
    spec.value = process.to_string().into_bytes();
    request.terminal = true;
    request.stdin = uri(&shim, "e-stdin");
    request.stdout = uri(&shim, "e-stdout");
    let mut input = Stream::open(&shim, "e-stdin");
    let out = Stream::open(&shim, "e-stdout");
    let out = std::thread::spawn(|| out.read_all());
    client.task::<()>("Exec", &request).expect("Exec");
    client.task::<api::StartResponse>("Start", &start(&shim, "e")).expect("Start");
    assert!(input.granted() > 0);
    input.data(b"words\n");
    assert_eq!(wait_and_delete(&shim, &mut client, "e"), 0);
    let out = String::from_utf8(out.join().expect("join")).expect("text");
    assert!(out.ends_with("got words\r\n"), "{out:?}");
    assert_eq!(input.hear(), Ok(None), "the end of the process is the end of its input");
    kill(&shim, &mut client);
    assert_eq!(wait_and_delete(&shim, &mut client, ""), 137);
    shim.finish(&mut client);
}

#[test]
fn output_without_a_client_waits_and_holds_nothing_up() {
    let shim = Shim::start("stream-none", &["sleep", "1000"]);
    let mut client = shim.client();
    run(&shim, &mut client, &shim.create_request());
    // Nobody ever comes, and its output is lost, as with a fifo that nobody reads.
    let mut request = exec_request(&shim, "unread", &["echo", "out"]);
    request.stdout = uri(&shim, "unread");
    client.task::<()>("Exec", &request).expect("Exec");
    client.task::<api::StartResponse>("Start", &start(&shim, "unread")).expect("Start");
    assert_eq!(wait_and_delete(&shim, &mut client, "unread"), 0);
    // One comes, reads a piece and is lost; another has the rest.
    let mut request = exec_request(&shim, "e", &["sh", "-c", "head -c 1000000 /dev/zero; exit 4"]);
    request.stdout = uri(&shim, "e");
    client.task::<()>("Exec", &request).expect("Exec");
    client.task::<api::StartResponse>("Start", &start(&shim, "e")).expect("Start");
    let mut first = Stream::open(&shim, "e");
    first.widen(1000);
    assert_eq!(first.piece().map(|piece| piece.len()), Some(1000));
    drop(first);
    let second = Stream::open(&shim, "e");
    assert_eq!(second.read_all().len(), 999_000);
    assert_eq!(wait_and_delete(&shim, &mut client, "e"), 4);
    kill(&shim, &mut client);
    assert_eq!(wait_and_delete(&shim, &mut client, ""), 137);
    shim.finish(&mut client);
}

#[test]
fn a_client_that_comes_back_takes_its_stream_over() {
    let shim = Shim::start("stream-again", &["cat"]);
    let mut client = shim.client();
    let mut request = shim.create_request();
    request.stdin = uri(&shim, "in");
    request.stdout = uri(&shim, "out");
    let mut first = (Stream::open(&shim, "in"), Stream::open(&shim, "out"));
    run(&shim, &mut client, &request);
    first.0.granted();
    first.0.data(b"one ");
    first.1.widen(WINDOW);
    assert_eq!(first.1.piece(), Some(b"one ".to_vec()));
    let mut second = (Stream::open(&shim, "in"), Stream::open(&shim, "out"));
    for before in [&mut first.0, &mut first.1] {
        let error = before.hear().expect_err("taken over");
        assert!(error.message.contains("was taken over by another client"), "{error:?}");
    }
    drop(first);
    second.0.granted();
    second.0.data(b"two");
    // A client that is lost does not end the input, and CloseIO does when there is none.
    drop(second.0);
    second.1.widen(WINDOW);
    assert_eq!(second.1.piece(), Some(b"two".to_vec()));
    let close = api::CloseIoRequest { id: shim.id.clone(), stdin: true, ..Default::default() };
    client.task::<()>("CloseIO", &close).expect("CloseIO");
    assert_eq!(second.1.piece(), None);
    assert_eq!(wait_and_delete(&shim, &mut client, ""), 0);
    shim.finish(&mut client);
}

#[test]
fn what_is_no_stream_of_the_shim_is_refused() {
    let shim = Shim::start("stream-bad", &["sleep", "1000"]);
    let mut client = shim.client();
    let mut request = shim.create_request();
    let cases = [
        ("ttrpc+unix:///run/other.sock?streaming_id=x", "stream x is at \"/run/other.sock\""),
        ("ttrpc+unix:///run/other.sock", "streaming_id of 0 bytes"),
        ("grpc+unix:///run/other.sock?streaming_id=x", "unknown STDIO scheme grpc+unix"),
    ];
    for (stdout, want) in cases {
        request.stdout = stdout.to_owned();
        let error = client.task::<api::CreateTaskResponse>("Create", &request);
        let error = error.expect_err("refused");
        assert!(error.message.contains(want), "{stdout}: {}", error.message);
    }
    request.stdout = uri(&shim, "x");
    run(&shim, &mut client, &request);
    let mut exec = exec_request(&shim, "e", &["true"]);
    exec.stdout = uri(&shim, "x");
    client.task::<()>("Exec", &exec).expect("Exec");
    let started = client.task::<api::StartResponse>("Start", &start(&shim, "e"));
    let error = started.expect_err("another's stream");
    assert!(error.message.contains("stream x: already exists"), "{}", error.message);
    kill(&shim, &mut client);
    assert_eq!(wait_and_delete(&shim, &mut client, ""), 137);
    shim.finish(&mut client);
}

#[test]
fn a_client_that_breaks_the_rules_loses_its_stream_only() {
    let shim = Shim::start("stream-garbage", &["cat"]);
    let mut client = shim.client();
    let mut request = shim.create_request();
    request.stdin = uri(&shim, "in");
    request.stdout = uri(&shim, "out");
    let mut out = Stream::open(&shim, "out");
    run(&shim, &mut client, &request);
    let garbage = Any { type_url: "no.such.Message".to_owned(), value: vec![0xff; 100] };
    let cases = [
        ("garbage", garbage, 3),
        ("too much", any::pack(&Data { data: vec![0; 1 << 20].into() }), 8),
        ("a negative window", any::pack(&WindowUpdate { update: i32::MIN }), 3),
    ];
    for (case, message, code) in cases {
        let mut input = Stream::open(&shim, "in");
        input.granted();
        input.say(&message);
        assert_eq!(input.hear().expect_err(case).code, code, "{case}");
        input.data(b"more");
        assert_eq!(input.hear().expect_err(case).code, 3, "{case}");
    }
    let mut silent = Stream::connect(&shim);
    silent.call();
    silent.close();
    assert_eq!(silent.hear(), Ok(None));
    silent.send(
        Kind::Request,
        0,
        &Request {
            service: "containerd.services.streaming.v1.Streaming".to_owned(),
            method: "Stream".to_owned(),
            ..Request::default()
        },
    );
    assert_eq!(silent.hear().expect_err("has nothing to say").code, 3);
    // One that gives any window and reads nothing makes the shim keep no more than it may.
    let mut flood = Stream::open(&shim, "in");
    out.widen(i32::MAX);
    let before = memory(&shim);
    let mut sent = 0;
    while let Some(granted) = flood.granted_soon() {
        flood.data(&vec![1; granted]);
        sent += granted;
    }
    let after = memory(&shim);
    assert!(sent > 100_000 && after < before + 2048, "{after} KiB for {sent}, {before} before");
    kill(&shim, &mut client);
    drop(out);
    assert_eq!(wait_and_delete(&shim, &mut client, ""), 137);
    shim.finish(&mut client);
}

#[test]
fn last_words_of_a_client_that_leaves_are_heard() {
    let shim = Shim::start("stream-last", &["cat"]);
    let mut client = shim.client();
    let mut input = Stream::open(&shim, "in");
    let out = Stream::open(&shim, "out");
    let out = std::thread::spawn(|| out.read_all());
    let mut request = shim.create_request();
    request.stdin = uri(&shim, "in");
    request.stdout = uri(&shim, "out");
    run(&shim, &mut client, &request);
    let mut granted = 0;
    while granted < 64 << 10 {
        granted += input.granted();
    }
    // All of it, and the end of the connection, is there when the shim looks next; what was sent is as
    // long as several reads.
    let pid = Pid::from_raw(shim.pid()).expect("not 0");
    kill_process(pid, Signal::STOP).expect("stop the shim");
    let stat = format!("/proc/{}/stat", shim.pid());
    let begun = Instant::now();
    while !fs::read_to_string(&stat).expect("lives").contains(") T ") {
        assert!(begun.elapsed() < TIMEOUT, "the shim stops");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut output = Vec::new();
    let piece = |len: usize| any::pack(&Data { data: vec![b'x'; len].into() });
    let mut put = |flags: u8, message: &Any| {
        frame::append_with_flags(&mut output, Kind::Data, STREAM_ID, flags, message)
            .expect("short");
        output.len()
    };
    let long = 20_000;
    let end = {
        let mut end = Vec::new();
        let flags = frame::REMOTE_CLOSED | frame::NO_DATA;
        frame::append_with_flags(&mut end, Kind::Data, STREAM_ID, flags, &()).expect("short");
        end
    };
    put(0, &piece(long));
    let before = put(0, &piece(long));
    // A last piece that makes it a multiple of what is read at once; lengths of two bytes need the same room.
    let overhead = put(0, &piece(1_000)) - before - 1_000;
    let rest = 4096 - (before + overhead + 1_000 + overhead + end.len()) % 4096;
    let rest = if rest < 200 { rest + 4096 } else { rest };
    put(0, &piece(rest));
    output.extend_from_slice(&end);
    assert_eq!(output.len() % 4096, 0, "the case is of whole reads");
    input.stream.write_all(&output).expect("write");
    drop(input);
    kill_process(pid, Signal::CONT).expect("go on");
    assert_eq!(wait_and_delete(&shim, &mut client, ""), 0);
    assert_eq!(out.join().expect("join").len(), 2 * long + 1_000 + rest);
    shim.finish(&mut client);
}

#[test]
fn a_client_may_end_its_input_before_there_is_a_process() {
    let shim = Shim::start("stream-early", &["cat"]);
    let mut client = shim.client();
    let mut input = Stream::open(&shim, "early");
    input.close();
    let mut request = shim.create_request();
    request.stdin = uri(&shim, "early");
    run(&shim, &mut client, &request);
    assert_eq!(wait_and_delete(&shim, &mut client, ""), 0);
    shim.finish(&mut client);
}
