//! Callers that send what no containerd sends, or nothing.

use std::fs;

use prost::Message;
use proto::{
    containerd::task::v3 as api,
    ttrpc::{Request, frame},
};

use super::harness::{Client, Shim, eventually};

/// A frame with whatever in it.
fn raw(stream_id: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("short");
    [&len.to_be_bytes()[..], &stream_id.to_be_bytes(), &[kind, 0], payload].concat()
}

#[test]
fn odd_frames_are_answered_or_end_their_connection_only() {
    let shim = Shim::start("odd-frames", &["true"]);
    let mut client = shim.client();
    let refused = |client: &mut Client, stream_id: u32| {
        client.receive::<()>(stream_id).expect_err("refused").code
    };
    let service = client.send_to("no.such.Service", "State", &());
    assert_eq!(refused(&mut client, service), 12, "unknown service");
    let (request, response) = (1, 2);
    client.write_raw(&raw(1001, request, b"no message"));
    assert_eq!(refused(&mut client, 1001), 3, "no request");
    client.write_raw(&raw(1003, response, &[]));
    assert_eq!(refused(&mut client, 1003), 3, "an answer to nothing");
    let connect = Request {
        service: "containerd.task.v3.Task".to_owned(),
        method: "Connect".to_owned(),
        payload: api::ConnectRequest { id: shim.id.clone() }.encode_to_vec(),
        ..Request::default()
    };
    for stream_id in [2, 2, 0, u32::MAX] {
        client.write_raw(&raw(stream_id, request, &connect.encode_to_vec()));
        let answer = client.receive::<api::ConnectResponse>(stream_id).expect("answered");
        assert_eq!(i32::try_from(answer.shim_pid), Ok(shim.pid()), "stream {stream_id}");
    }
    let garbled = Request { payload: vec![0xff; 64], ..connect.clone() };
    client.write_raw(&raw(5, request, &garbled.encode_to_vec()));
    assert_eq!(refused(&mut client, 5), 3, "not the method's message");
    // As large as may be, and not one more.
    let whole = raw(1005, request, &vec![0xff; frame::PAYLOAD_LEN_MAX]);
    client.write_raw(&whole);
    assert_eq!(refused(&mut client, 1005), 3, "no request");
    let mut stranger = shim.client();
    stranger.write_raw(&raw(1, request, &vec![0; frame::PAYLOAD_LEN_MAX + 1])[..64]);
    assert!(stranger.is_closed());
    for len in [1, 9, 10, 11, whole.len() / 2] {
        shim.client().write_raw(&whole[..len]);
    }
    let again = client.task::<api::ConnectResponse>("Connect", &api::ConnectRequest::default());
    assert!(again.is_ok(), "{again:?}");
    shim.finish(&mut client);
}

#[test]
fn idle_connections_keep_nobody_out_who_was_in() {
    let shim = Shim::start("idle", &["true"]);
    let mut client = shim.client();
    let is_served = |client: &mut Client| {
        client.task::<api::ConnectResponse>("Connect", &api::ConnectRequest::default()).is_ok()
    };
    assert!(is_served(&mut client));
    let mut idle: Vec<_> = (0..2000).map(|_| shim.client()).collect();
    assert!(is_served(&mut client));
    let last = idle.last_mut().expect("some");
    assert!(last.is_closed(), "there is a limit");
    drop(idle);
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", shim.pid())).expect("lives").count();
    eventually("room for others", || descriptors() < 50);
    assert!(is_served(&mut shim.client()));
    shim.finish(&mut client);
}
