//! Groups of containers in one shim, and the sandbox API, with a real runtime.

use std::os::unix::net::UnixStream;

use prost::Message;
use proto::{
    containerd::{runtime::sandbox::v1 as sandbox, task::v3 as task},
    ttrpc::Status,
};
use serde_json::json;

use crate::harness::{Client, Shim, eventually};

const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";

fn call<M: Message + Default>(
    client: &mut Client,
    method: &str,
    request: &impl Message,
) -> Result<M, Status> {
    let stream_id = client.send_to(SERVICE, method, request);
    client.receive(stream_id)
}

fn make(shim: &Shim, client: &mut Client) {
    let request = sandbox::CreateSandboxRequest {
        sandbox_id: shim.id.clone(),
        bundle_path: shim.bundle().to_string_lossy().into_owned(),
        ..Default::default()
    };
    call::<sandbox::CreateSandboxResponse>(client, "CreateSandbox", &request).expect("Create");
    let request = sandbox::StartSandboxRequest { sandbox_id: shim.id.clone() };
    let started: sandbox::StartSandboxResponse =
        call(client, "StartSandbox", &request).expect("Start");
    assert_eq!(i64::from(started.pid), i64::from(shim.pid()));
    assert!(started.created_at.is_some());
}

fn run(client: &mut Client, request: &task::CreateTaskRequest) {
    client.task::<task::CreateTaskResponse>("Create", request).expect("Create");
    let start = task::StartRequest { id: request.id.clone(), exec_id: String::new() };
    client.task::<task::StartResponse>("Start", &start).expect("Start");
}

fn delete(client: &mut Client, id: &str) {
    let request = task::DeleteRequest { id: id.to_owned(), exec_id: String::new() };
    client.task::<task::DeleteResponse>("Delete", &request).expect("Delete");
}

fn status(shim: &Shim, client: &mut Client) -> sandbox::SandboxStatusResponse {
    let request = sandbox::SandboxStatusRequest { sandbox_id: shim.id.clone(), verbose: true };
    call(client, "SandboxStatus", &request).expect("SandboxStatus")
}

#[test]
fn a_group_has_one_shim() {
    let shim = Shim::start("group", &["sleep", "1000"]);
    let mut client = shim.client();
    run(&mut client, &shim.create_request());
    let cases = [
        ("pod", json!({"io.kubernetes.cri.sandbox-id": shim.id}), true),
        ("own", json!({"io.containerd.runc.v2.group": shim.id}), true),
        (
            "first",
            json!({"io.containerd.runc.v2.group": shim.id, "io.kubernetes.cri.sandbox-id": "x"}),
            true,
        ),
        ("alone", json!({}), false),
    ];
    for (case, annotations, shared) in cases {
        let (address, request) = shim.start_another(case, &["sleep", "1000"], annotations);
        assert_eq!(address == shim.address, shared, "{case}");
        let mut other = Client::connect(&address);
        run(&mut other, &request);
        // The end of one leaves the others alone, and their shim.
        let kill = task::KillRequest { id: request.id.clone(), signal: 9, ..Default::default() };
        other.task::<()>("Kill", &kill).expect("Kill");
        let wait = task::WaitRequest { id: request.id.clone(), exec_id: String::new() };
        let exit: task::WaitResponse = other.task("Wait", &wait).expect("Wait");
        assert_eq!(exit.exit_status, 137, "{case}");
        delete(&mut other, &request.id);
        let shutdown = task::ShutdownRequest { id: request.id.clone(), now: false };
        other.task::<()>("Shutdown", &shutdown).expect("Shutdown");
        if !shared {
            eventually("the other shim ends", || UnixStream::connect(&address).is_err());
        }
        let state = task::StateRequest { id: shim.id.clone(), exec_id: String::new() };
        client.task::<task::StateResponse>("State", &state).expect(case);
    }
    let kill = task::KillRequest { id: shim.id.clone(), signal: 9, ..Default::default() };
    client.task::<()>("Kill", &kill).expect("Kill");
    let wait = task::WaitRequest { id: shim.id.clone(), exec_id: String::new() };
    client.task::<task::WaitResponse>("Wait", &wait).expect("Wait");
    let id = shim.id.clone();
    delete(&mut client, &id);
    shim.finish(&mut client);
}

#[test]
fn a_sandbox_from_create_to_shutdown() {
    let shim = Shim::start("sandbox", &["sleep", "1000"]);
    let mut client = shim.client();
    let of = |id: &str| sandbox::PingRequest { sandbox_id: id.to_owned() };
    let error = call::<sandbox::PingResponse>(&mut client, "PingSandbox", &of(&shim.id));
    assert_eq!(error.expect_err("there is none").code, 5);
    make(&shim, &mut client);
    let again = sandbox::CreateSandboxRequest { sandbox_id: shim.id.clone(), ..Default::default() };
    let error = call::<sandbox::CreateSandboxResponse>(&mut client, "CreateSandbox", &again);
    assert_eq!(error.expect_err("there is one").code, 6);
    call::<sandbox::PingResponse>(&mut client, "PingSandbox", &of(&shim.id)).expect("there is one");
    let error = call::<sandbox::PingResponse>(&mut client, "PingSandbox", &of("other"));
    assert_eq!(error.expect_err("another").code, 5);
    let request = sandbox::PlatformRequest { sandbox_id: shim.id.clone() };
    let platform: sandbox::PlatformResponse =
        call(&mut client, "Platform", &request).expect("Platform");
    assert_eq!(platform.platform.expect("one").os, "linux");
    assert_eq!(status(&shim, &mut client).state, "SANDBOX_READY");

    // A shim without a container stays for the sandbox.
    let shutdown = task::ShutdownRequest { id: shim.id.clone(), now: false };
    client.task::<()>("Shutdown", &shutdown).expect("Shutdown");
    assert_eq!(status(&shim, &mut client).state, "SANDBOX_READY");

    let annotations = json!({"io.kubernetes.cri.sandbox-id": shim.id});
    let (_, request) = shim.start_another("c", &["sleep", "1000"], annotations);
    run(&mut client, &request);
    let info = status(&shim, &mut client).info;
    assert_eq!(info.get("containers"), Some(&format!("[{:?}]", request.id)));
    let metrics = sandbox::SandboxMetricsRequest { sandbox_id: shim.id.clone() };
    let error = call::<sandbox::SandboxMetricsResponse>(&mut client, "SandboxMetrics", &metrics);
    assert_eq!(error.expect_err("nobody has made its cgroup").code, 5);

    let waiting = client.send_to(SERVICE, "WaitSandbox", &of(&shim.id));
    let mut other = shim.client();
    let shutdown = sandbox::ShutdownSandboxRequest { sandbox_id: shim.id.clone() };
    let error = call::<sandbox::ShutdownSandboxResponse>(&mut other, "ShutdownSandbox", &shutdown);
    assert_eq!(error.expect_err("a container").code, 9);
    let stop = sandbox::StopSandboxRequest { sandbox_id: shim.id.clone(), timeout_secs: 0 };
    call::<sandbox::StopSandboxResponse>(&mut other, "StopSandbox", &stop).expect("Stop");
    let exit: sandbox::WaitSandboxResponse = client.receive(waiting).expect("Wait");
    assert_eq!(exit.exit_status, 0);
    let stopped = status(&shim, &mut client);
    assert_eq!((stopped.state.as_str(), stopped.exited_at), ("SANDBOX_NOTREADY", exit.exited_at));

    // What was in it has ended, and can be asked how.
    let wait = task::WaitRequest { id: request.id.clone(), exec_id: String::new() };
    let exit: task::WaitResponse = client.task("Wait", &wait).expect("Wait");
    assert_eq!(exit.exit_status, 137);
    let error = client.task::<task::CreateTaskResponse>("Create", &shim.create_request());
    assert_eq!(error.expect_err("the sandbox is stopped").code, 9);
    delete(&mut client, &request.id);
    call::<sandbox::ShutdownSandboxResponse>(&mut other, "ShutdownSandbox", &shutdown)
        .expect("Shutdown");
    eventually("the shim ends", || UnixStream::connect(&shim.address).is_err());
    eventually("the socket is removed", || !shim.address.exists());
}

#[test]
fn what_a_sandbox_has_used() {
    let shim = Shim::start("boxstats", &["sleep", "1000"]);
    let mut client = shim.client();
    make(&shim, &mut client);
    // The first container has the group that the sandbox's specification names.
    run(&mut client, &shim.create_request());
    let metrics = sandbox::SandboxMetricsRequest { sandbox_id: shim.id.clone() };
    let answer: sandbox::SandboxMetricsResponse =
        call(&mut client, "SandboxMetrics", &metrics).expect("SandboxMetrics");
    let metric = answer.metrics.expect("a metric");
    assert_eq!(metric.id, shim.id);
    let name = metric.data.expect("data").type_url;
    assert!(name.starts_with("io.containerd.cgroups.v"), "{name}");
    let stop = sandbox::StopSandboxRequest { sandbox_id: shim.id.clone(), timeout_secs: 0 };
    call::<sandbox::StopSandboxResponse>(&mut client, "StopSandbox", &stop).expect("Stop");
    let id = shim.id.clone();
    delete(&mut client, &id);
    let shutdown = sandbox::ShutdownSandboxRequest { sandbox_id: shim.id.clone() };
    call::<sandbox::ShutdownSandboxResponse>(&mut client, "ShutdownSandbox", &shutdown)
        .expect("Shutdown");
    eventually("the shim ends", || UnixStream::connect(&shim.address).is_err());
}
