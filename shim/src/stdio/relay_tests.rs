//! Streams without connections: what clients and processes do, and what is sent.

use std::{
    io::{self, Read, Write, pipe},
    os::fd::AsFd,
};

use prost::Name;

use super::*;

/// Streams, and what they wait with.
struct Stage {
    relays: Relays,
    poller: Poller,
}

impl Stage {
    fn new() -> Self {
        Self { relays: Relays::default(), poller: Poller::new().expect("epoll") }
    }

    /// A client that is of the stream `id`.
    fn client(&mut self, connection: u64, id: &str) -> Call {
        let call = Call::new(connection, 1);
        self.relays.open(call, frame::REMOTE_OPEN).expect("room");
        self.say(call, &any::pack(&StreamInit { id: id.to_owned() }));
        call
    }

    fn say(&mut self, call: Call, message: &Any) {
        self.relays.message(call, 0, &message.encode_to_vec(), &self.poller);
    }

    fn widen(&mut self, call: Call, update: i32) {
        self.say(call, &any::pack(&WindowUpdate { update }));
    }

    fn data(&mut self, call: Call, data: &[u8]) {
        self.say(call, &any::pack(&Data { data: data.to_vec().into() }));
    }

    fn close(&mut self, call: Call) {
        self.relays.message(call, frame::REMOTE_CLOSED | frame::NO_DATA, &[], &self.poller);
    }

    /// An output whose process writes to what is returned.
    fn output(&mut self, id: &str) -> (u64, io::PipeWriter) {
        let (source, write) = pipe().expect("pipe");
        rustix::io::ioctl_fionbio(&source, true).expect("FIONBIO");
        let number = self.relays.reserve(id, &mut self.poller).expect("nobody else's");
        self.relays.start_output(number, source.into(), &self.poller);
        (number, write)
    }

    /// An input whose process reads from what is returned.
    fn input(&mut self, id: &str) -> (u64, io::PipeReader) {
        let (read, target) = pipe().expect("pipe");
        rustix::io::ioctl_fionbio(&target, true).expect("FIONBIO");
        let number = self.relays.reserve(id, &mut self.poller).expect("nobody else's");
        self.relays.start_input(number, target.into(), &self.poller);
        (number, read)
    }

    /// Goes on until nothing has happened for a moment, and gives what was sent.
    fn run(&mut self) -> Vec<Outgoing> {
        let mut sent = self.relays.take_outgoing();
        loop {
            let wait = Some(std::time::Duration::from_millis(20));
            let ready = self.poller.wait(wait).expect("epoll");
            if ready.is_empty() {
                return sent;
            }
            for token in ready {
                let Token::Relay(number) = token else { panic!("{token:?}") };
                self.relays.ready(number, &self.poller);
            }
            sent.extend(self.relays.take_outgoing());
        }
    }
}

fn ack(call: Call) -> Outgoing {
    Outgoing::Message(call, any::pack(&()))
}

fn sends(call: Call, data: &[u8]) -> Outgoing {
    Outgoing::Message(call, any::pack(&Data { data: data.to_vec().into() }))
}

fn asks(call: Call, update: i32) -> Outgoing {
    Outgoing::Message(call, any::pack(&WindowUpdate { update }))
}

fn failed(call: Call, error: Error) -> Outgoing {
    Outgoing::Failure(call, error)
}

fn whole_window() -> i32 {
    i32::try_from(WINDOW_LEN).expect("small")
}

#[test]
fn output_goes_as_far_as_windows_reach() {
    let mut stage = Stage::new();
    let client = stage.client(1, "out");
    assert_eq!(stage.run(), [ack(client)], "before the process is there");
    let (number, mut process) = stage.output("out");
    process.write_all(b"some words").expect("write");
    assert_eq!(stage.run(), [], "no window");
    stage.widen(client, 4);
    assert_eq!(stage.run(), [sends(client, b"some")]);
    stage.relays.set_full(1, true, &stage.poller);
    stage.widen(client, i32::MAX);
    stage.widen(client, i32::MAX);
    assert_eq!(stage.run(), [], "no room");
    stage.relays.set_full(1, false, &stage.poller);
    assert_eq!(stage.run(), [sends(client, b" words")]);
    assert!(stage.relays.is_running(number));
    drop(process);
    assert_eq!(stage.run(), [Outgoing::End(client)]);
    assert!(stage.relays.take_has_ended() && !stage.relays.is_running(number));
    let late = stage.client(2, "out");
    assert_eq!(stage.run(), [ack(late), Outgoing::End(late)]);
    assert!(stage.relays.stop(number, &stage.poller));
    assert!(!stage.relays.stop(number, &stage.poller));
}

#[test]
fn output_waits_for_the_next_client() {
    let mut stage = Stage::new();
    let (number, mut process) = stage.output("out");
    process.write_all(b"word").expect("write");
    assert!(!stage.relays.is_running(number), "nobody waits for a client that is not there");
    let first = stage.client(1, "out");
    assert!(stage.relays.is_running(number));
    assert_eq!(stage.run(), [ack(first)]);
    let second = stage.client(2, "out");
    let text = "stream out was taken over by another client".to_owned();
    let taken = failed(first, Error::FailedPrecondition(text));
    assert_eq!(stage.run(), [taken, ack(second)]);
    stage.relays.lost(2, &stage.poller);
    assert!(stage.relays.take_has_ended() && !stage.relays.is_running(number));
    drop(process);
    let third = stage.client(3, "out");
    stage.widen(third, 100);
    assert_eq!(stage.run(), [ack(third), sends(third, b"word"), Outgoing::End(third)]);
}

#[test]
fn a_terminal_ends_with_what_is_there() {
    let mut stage = Stage::new();
    let client = stage.client(1, "tty");
    let (number, mut process) = stage.output("tty");
    process.write_all(b"last words").expect("write");
    stage.widen(client, 5);
    stage.run();
    stage.relays.finish(number, &stage.poller);
    assert_eq!(stage.run(), [], "more is there");
    stage.widen(client, 100);
    assert_eq!(stage.run(), [sends(client, b"words"), Outgoing::End(client)]);
}

#[test]
fn input_is_asked_for_and_ends() {
    let mut stage = Stage::new();
    let client = stage.client(1, "in");
    let (_, mut process) = stage.input("in");
    assert_eq!(stage.run(), [ack(client), asks(client, whole_window())]);
    stage.data(client, b"words");
    assert_eq!(stage.run(), []);
    stage.data(client, &[b'x'; WINDOW_LEN / 2]);
    assert_eq!(stage.run(), [asks(client, 5 + whole_window() / 2)]);
    stage.close(client);
    assert_eq!(stage.run(), [Outgoing::End(client)]);
    let mut all = Vec::new();
    process.read_to_end(&mut all).expect("read");
    assert_eq!((all.len(), &all[..5]), (5 + WINDOW_LEN / 2, &b"words"[..]));
}

#[test]
fn input_that_a_process_does_not_take_is_bounded() {
    let mut stage = Stage::new();
    let client = stage.client(1, "in");
    let (_, mut process) = stage.input("in");
    stage.run();
    // The pipe takes the first, and nobody takes the second.
    stage.data(client, &[1; WINDOW_LEN]);
    assert_eq!(stage.run(), [asks(client, whole_window())]);
    stage.data(client, &[2; WINDOW_LEN]);
    stage.close(client);
    assert_eq!(stage.run(), []);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        process.read_to_end(&mut all).expect("read");
        all.len()
    });
    let mut sent = Vec::new();
    while sent.is_empty() {
        sent = stage.run();
    }
    assert_eq!(sent, [Outgoing::End(client)]);
    assert_eq!(reader.join().expect("join"), 2 * WINDOW_LEN);
}

#[test]
fn when_input_ends() {
    type Step = fn(&mut Stage, Call, u64);
    let cases: [(&str, Step, bool); 6] = [
        ("client is lost", |stage, _, _| stage.relays.lost(1, &stage.poller), false),
        ("client says all", |stage, client, _| stage.close(client), true),
        ("CloseIO", |stage, _, number| stage.relays.close_input(number, &stage.poller), false),
        (
            "CloseIO, client is lost",
            |stage, _, number| {
                stage.relays.close_input(number, &stage.poller);
                stage.relays.lost(1, &stage.poller);
            },
            true,
        ),
        (
            "client is lost, CloseIO",
            |stage, _, number| {
                stage.relays.lost(1, &stage.poller);
                stage.relays.close_input(number, &stage.poller);
            },
            true,
        ),
        (
            "another client",
            |stage, _, number| {
                stage.client(2, "in");
                stage.relays.close_input(number, &stage.poller);
            },
            false,
        ),
    ];
    for (case, step, want) in cases {
        let mut stage = Stage::new();
        let client = stage.client(1, "in");
        let (number, process) = stage.input("in");
        rustix::io::ioctl_fionbio(process.as_fd(), true).expect("FIONBIO");
        step(&mut stage, client, number);
        let ended = matches!((&process).read(&mut [0]), Ok(0));
        assert_eq!(ended, want, "{case}");
    }
}

#[test]
fn a_process_that_does_not_listen_ends_its_input() {
    let mut stage = Stage::new();
    let client = stage.client(1, "in");
    let (_, process) = stage.input("in");
    stage.run();
    drop(process);
    stage.data(client, b"words");
    assert_eq!(stage.run(), [Outgoing::End(client)]);
    stage.data(client, b"more");
    let error = Error::InvalidArgument("the stream is no longer active".to_owned());
    assert_eq!(stage.run(), [failed(client, error)]);
}

#[test]
fn what_breaks_the_rules_ends_its_stream_only() {
    let data = |len: usize| any::pack(&Data { data: vec![0; len].into() });
    let init = |id: String| any::pack(&StreamInit { id });
    let invalid = |text: &str| Error::InvalidArgument(text.to_owned());
    let garbage = Any { type_url: StreamInit::full_name(), value: vec![0xff] };
    let cases = [
        ("no ID", None, any::pack(&()), invalid("stream ID of 0 bytes, not 1 to 512")),
        (
            "a long ID",
            None,
            init("a".repeat(STREAM_ID_LEN_MAX + 1)),
            invalid("stream ID of 513 bytes, not 1 to 512"),
        ),
        (
            "data without a window",
            Some("out"),
            data(1),
            Error::ResourceExhausted("data beyond the window of stream out".to_owned()),
        ),
        (
            "data beyond the window",
            Some("in"),
            data(WINDOW_LEN + 1),
            Error::ResourceExhausted("data beyond the window of stream in".to_owned()),
        ),
        (
            "empty data for output",
            Some("out"),
            data(0),
            invalid("data in stream out, which is output"),
        ),
        (
            "a negative window",
            Some("out"),
            any::pack(&WindowUpdate { update: -1 }),
            invalid("window update of -1 bytes in stream out"),
        ),
        (
            "another message",
            Some("in"),
            init("in".to_owned()),
            invalid("message \"containerd.services.streaming.v1.StreamInit\" in stream in"),
        ),
    ];
    for (case, id, message, want) in cases {
        let mut stage = Stage::new();
        let _process = (stage.output("out"), stage.input("in"));
        let call = match id {
            Some(id) => stage.client(1, id),
            None => Call::new(1, 1),
        };
        if id.is_none() {
            stage.relays.open(call, frame::REMOTE_OPEN).expect("room");
        }
        let other = stage.client(2, if id == Some("in") { "out" } else { "in" });
        stage.run();
        stage.say(call, &message);
        assert_eq!(stage.run(), [failed(call, want)], "{case}");
        assert!(stage.relays.clients.contains_key(&other), "{case}");
    }
    let mut stage = Stage::new();
    let call = Call::new(1, 1);
    stage.relays.open(call, frame::REMOTE_OPEN).expect("room");
    stage.say(call, &garbage);
    assert!(matches!(stage.run()[..], [Outgoing::Failure(_, Error::InvalidArgument(_))]));
    stage.relays.open(call, frame::REMOTE_OPEN).expect("room");
    stage.close(call);
    assert_eq!(stage.run(), [Outgoing::End(call)], "without a word");
}

#[test]
fn calls_are_counted() {
    let mut stage = Stage::new();
    let call = Call::new(1, 1);
    assert!(stage.relays.open(call, 0).is_err(), "has nothing to say");
    for number in 0..CLIENTS_MAX as u64 {
        stage.relays.open(Call::new(number, 1), frame::REMOTE_OPEN).expect("room");
    }
    let error = stage.relays.open(Call::new(1000, 1), frame::REMOTE_OPEN);
    assert_eq!(error, Err(Error::ResourceExhausted("192 streams".to_owned())));
    let again = stage.relays.open(call, frame::REMOTE_OPEN);
    assert!(matches!(again, Err(Error::ResourceExhausted(_))));
    stage.relays.lost(1, &stage.poller);
    assert_eq!(stage.relays.open(Call::new(1000, 1), frame::REMOTE_OPEN), Ok(()));
}

#[test]
fn a_stream_is_one_processs() {
    let mut stage = Stage::new();
    let (number, _process) = stage.output("out");
    let again = stage.relays.reserve("out", &mut stage.poller);
    assert_eq!(again, Err(Error::AlreadyExists("stream out".to_owned())));
    stage.relays.stop(number, &stage.poller);
    assert!(stage.relays.reserve("out", &mut stage.poller).is_ok());
}
