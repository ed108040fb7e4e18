//! What bad calls on a task get: calls that no ctr makes, over gRPC.
//!
//! Texts are the same on every choice of programs. Where ours give a code that says what is wrong,
//! containerd and its shim give `Unknown`.

use anyhow::{Context, Result, ensure};
use integration::{
    cell::{Cell, IMAGE, Shim},
    daemon::Kind,
};
use prost_types::Any;
use proto::{
    any::RUNTIME_PROCESS,
    containerd::services::tasks::v1::{
        CloseIoRequest, CreateTaskRequest, DeleteProcessRequest, DeleteTaskRequest,
        ExecProcessRequest, GetRequest, KillRequest, ListPidsRequest, MetricsRequest,
        PauseTaskRequest, ResizePtyRequest, ResumeTaskRequest, StartRequest, UpdateTaskRequest,
        WaitRequest, tasks_client::TasksClient,
    },
};
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint},
};

use super::Case;

pub(crate) const CASES: &[Case] = &[
    Case { name: "bad_calls_without_task", run: without_task },
    Case { name: "bad_calls_on_a_task", run: on_a_task },
    Case { name: "bad_calls_of_state", run: of_state },
    Case { name: "bad_calls_exec_started_twice", run: exec_started_twice },
    Case { name: "bad_calls_with_garbage", run: with_garbage },
];

/// What is never where a test runs.
const NOTHING: &str = "/no/such/place";

/// A client of a cell's engine.
struct Client {
    runtime: tokio::runtime::Runtime,
    tasks: TasksClient<Channel>,
    namespace: String,
    /// Whether what answers is all ours.
    is_own: bool,
    failures: Vec<String>,
}

/// Makes a call, of which only the error is of interest.
macro_rules! call {
    ($client:ident . $method:ident ( $request:expr )) => {{
        let request = $client.scoped($request);
        let answer = $client.runtime.block_on($client.tasks.$method(request));
        answer.map(drop_answer)
    }};
}

fn drop_answer<T>(_: Response<T>) {}

impl Client {
    fn connect(cell: &Cell) -> Result<Self> {
        let address = format!("unix://{}", cell.running_daemon().address().display());
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(address)?;
        let channel = runtime.block_on(endpoint.connect()).context("connect")?;
        let choice = cell.choice();
        Ok(Self {
            runtime,
            tasks: TasksClient::new(channel),
            namespace: cell.namespace().to_owned(),
            is_own: choice.daemon == Kind::Gantryd && choice.shim == Shim::Own,
            failures: Vec::new(),
        })
    }

    fn scoped<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = self.namespace.parse().expect("a namespace is ASCII");
        request.metadata_mut().insert("containerd-namespace", namespace);
        request
    }

    /// Notes whether a call got an error of this code with this in its text.
    fn refused(&mut self, case: &str, got: Result<(), Status>, code: Code, text: &str) {
        let as_wanted = match &got {
            Ok(()) => false,
            Err(status) => {
                let vague = !self.is_own && status.code() == Code::Unknown;
                (status.code() == code || vague) && status.message().contains(text)
            }
        };
        if !as_wanted {
            self.failures.push(format!("{case}: {got:?} instead of {code:?} {text:?}"));
        }
    }

    fn fine(&mut self, case: &str, got: Result<(), Status>) {
        if let Err(status) = got {
            self.failures.push(format!("{case}: {status:?}"));
        }
    }

    fn exec(&mut self, id: &str, exec_id: &str, process: &str) -> Result<(), Status> {
        let spec = Any { type_url: RUNTIME_PROCESS.to_owned(), value: process.into() };
        let (container_id, exec_id) = (id.to_owned(), exec_id.to_owned());
        call!(self.exec(ExecProcessRequest {
            container_id,
            exec_id,
            spec: Some(spec),
            ..Default::default()
        }))
    }

    fn finish(self) -> Result<()> {
        ensure!(self.failures.is_empty(), "{}", self.failures.join("; "));
        Ok(())
    }
}

const SLEEP: &str =
    r#"{"args":["sleep","100"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}"#;

fn without_task(cell: &mut Cell) -> Result<()> {
    let id = cell.id();
    cell.ok(&["containers", "create", IMAGE, &id, "true"])?;
    let mut client = Client::connect(cell)?;
    let odd = ["nobody", "", "../x", "a\0b", "é", "a/b"].map(str::to_owned);
    for name in odd.iter().chain([&"x".repeat(77), &id]) {
        let text = "not found";
        let container_id = name.clone();
        let c = &mut client;
        let got = call!(c.get(GetRequest { container_id, ..Default::default() }));
        c.refused(&format!("get {name:?}"), got, Code::NotFound, text);
        let container_id = name.clone();
        let got = call!(c.kill(KillRequest { container_id, signal: 9, ..Default::default() }));
        c.refused(&format!("kill {name:?}"), got, Code::NotFound, text);
        let container_id = name.clone();
        let got = call!(c.delete(DeleteTaskRequest { container_id }));
        c.refused(&format!("delete {name:?}"), got, Code::NotFound, text);
        let container_id = name.clone();
        let got = call!(c.wait(WaitRequest { container_id, ..Default::default() }));
        c.refused(&format!("wait {name:?}"), got, Code::NotFound, text);
        let container_id = name.clone();
        let got = call!(c.list_pids(ListPidsRequest { container_id }));
        c.refused(&format!("pids {name:?}"), got, Code::NotFound, text);
    }
    let c = &mut client;
    let got = call!(
        c.create(CreateTaskRequest { container_id: "nobody".to_owned(), ..Default::default() })
    );
    c.refused("create", got, Code::NotFound, "container \"nobody\" in namespace");
    let got = call!(c.metrics(MetricsRequest { filters: vec!["id==".to_owned()] }));
    c.refused("filter", got, Code::InvalidArgument, "filters: parse error: [id==]");
    cell.ok(&["containers", "rm", &id])?;
    client.finish()
}

fn on_a_task(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&[], &["sleep", "100"])?;
    let mut client = Client::connect(cell)?;
    let c = &mut client;
    let container_id = || id.clone();
    let exec_id = || "no".to_owned();
    let got = call!(c.get(GetRequest { container_id: container_id(), exec_id: exec_id() }));
    let no_exec = "process does not exist no: not found";
    c.refused("get", got, Code::NotFound, no_exec);
    let got = call!(c.start(StartRequest { container_id: container_id(), exec_id: exec_id() }));
    c.refused("start", got, Code::NotFound, no_exec);
    let request = DeleteProcessRequest { container_id: container_id(), exec_id: exec_id() };
    let got = call!(c.delete_process(request));
    c.refused("delete", got, Code::NotFound, no_exec);
    let request = KillRequest {
        container_id: container_id(),
        exec_id: exec_id(),
        signal: 9,
        ..Default::default()
    };
    let got = call!(c.kill(request));
    c.refused("kill", got, Code::NotFound, no_exec);
    let request = CloseIoRequest { container_id: container_id(), exec_id: exec_id(), stdin: true };
    let got = call!(c.close_io(request));
    c.refused("close", got, Code::NotFound, no_exec);
    let request = ResizePtyRequest {
        container_id: container_id(),
        exec_id: exec_id(),
        width: 80,
        height: 25,
    };
    let got = call!(c.resize_pty(request));
    c.refused("resize", got, Code::NotFound, no_exec);
    let got = c.exec(&id, "", SLEEP);
    c.refused("no exec id", got, Code::InvalidArgument, "exec id cannot be empty");
    let long = "x".repeat(77);
    for exec in ["../x", "a\0b", "é", "a/b", "..", "-x", &long] {
        let got = c.exec(&id, exec, SLEEP);
        c.refused(&format!("exec {exec:?}"), got, Code::InvalidArgument, "invalid exec id");
    }
    for signal in [65, 4096] {
        let request = KillRequest { container_id: container_id(), signal, ..Default::default() };
        let got = call!(c.kill(request));
        c.refused(&format!("signal {signal}"), got, Code::Unknown, "unknown error after kill");
    }
    let request = KillRequest { container_id: container_id(), ..Default::default() };
    let got = call!(c.kill(request));
    c.fine("signal 0", got);
    for time in ["first", "second"] {
        let request =
            CloseIoRequest { container_id: container_id(), stdin: true, ..Default::default() };
        let got = call!(c.close_io(request));
        c.fine(&format!("close {time}"), got);
    }
    let request = ResizePtyRequest {
        container_id: container_id(),
        width: 80,
        height: 25,
        ..Default::default()
    };
    let got = call!(c.resize_pty(request));
    c.fine("no terminal", got);
    cell.remove(&id)?;
    client.finish()
}

/// Calls at the wrong time.
fn of_state(cell: &mut Cell) -> Result<()> {
    let id = cell.background(&["--null-io"], &["sleep", "100"])?;
    let mut client = Client::connect(cell)?;
    let c = &mut client;
    let container_id = || id.clone();
    let start =
        |exec: &str| StartRequest { container_id: container_id(), exec_id: exec.to_owned() };
    let late = Code::FailedPrecondition;
    let request = CreateTaskRequest { container_id: container_id(), ..Default::default() };
    let got = call!(c.create(request));
    c.refused("created twice", got, Code::AlreadyExists, &format!("task {id}: already exists"));
    let got = call!(c.start(start("")));
    c.refused("started twice", got, late, "cannot start a running process");
    let got = call!(c.delete(DeleteTaskRequest { container_id: container_id() }));
    let text = "failed to delete task: cannot delete a running process";
    c.refused("deleted while it runs", got, late, text);
    let got = call!(c.resume(ResumeTaskRequest { container_id: container_id() }));
    c.refused("resumed while it runs", got, late, "cannot resume a running process");
    let got = c.exec(&id, "e", SLEEP);
    c.fine("exec", got);
    let got = c.exec(&id, "e", SLEEP);
    c.refused("exec of a taken id", got, Code::AlreadyExists, "already exists");
    let got = call!(c.start(start("e")));
    c.fine("start exec", got);
    let request = DeleteProcessRequest { container_id: container_id(), exec_id: "e".to_owned() };
    let got = call!(c.delete_process(request));
    c.refused("exec deleted while it runs", got, late, "cannot delete a running process");

    let pause = || PauseTaskRequest { container_id: container_id() };
    let got = call!(c.pause(pause()));
    c.fine("pause", got);
    let got = call!(c.pause(pause()));
    c.refused("paused twice", got, late, "cannot pause a paused container");
    let got = c.exec(&id, "p", SLEEP);
    c.refused("exec while it is paused", got, late, "cannot exec in a paused state");
    let got = call!(c.resume(ResumeTaskRequest { container_id: container_id() }));
    c.fine("resume", got);

    let kill = || KillRequest { container_id: container_id(), signal: 9, ..Default::default() };
    let got = call!(c.kill(kill()));
    c.fine("kill", got);
    let wait = || WaitRequest { container_id: container_id(), ..Default::default() };
    let got = call!(c.wait(wait()));
    c.fine("wait", got);
    let got = call!(c.kill(kill()));
    c.refused("killed twice", got, Code::NotFound, "process already finished");
    let got = call!(c.pause(pause()));
    c.refused("paused too late", got, late, "cannot pause a stopped container");
    let got = call!(c.resume(ResumeTaskRequest { container_id: container_id() }));
    c.refused("resumed too late", got, late, "cannot resume a stopped container");
    let got = c.exec(&id, "s", SLEEP);
    c.refused("exec too late", got, late, "cannot exec in a stopped state");
    let got = call!(c.wait(wait()));
    c.fine("wait twice", got);
    let got = call!(c.delete(DeleteTaskRequest { container_id: container_id() }));
    c.fine("delete", got);
    let got = call!(c.delete(DeleteTaskRequest { container_id: container_id() }));
    c.refused("deleted twice", got, Code::NotFound, "not found");
    let got = call!(c.wait(wait()));
    c.refused("wait too late", got, Code::NotFound, "not found");
    cell.ok(&["containers", "rm", &id])?;
    client.finish()
}

fn exec_started_twice(cell: &mut Cell) -> Result<()> {
    if cell.choice().shim == Shim::Newer {
        return Err(super::Skipped("containerd 2.3's shim dies of it").into());
    }
    let id = cell.background(&["--null-io"], &["sleep", "100"])?;
    let mut client = Client::connect(cell)?;
    let c = &mut client;
    let start = || StartRequest { container_id: id.clone(), exec_id: "e".to_owned() };
    let got = c.exec(&id, "e", SLEEP);
    c.fine("exec", got);
    let got = call!(c.start(start()));
    c.fine("start exec", got);
    let got = call!(c.start(start()));
    let late = Code::FailedPrecondition;
    c.refused("exec started twice", got, late, "cannot start a running process");
    let request = KillRequest { container_id: id.clone(), signal: 9, ..Default::default() };
    let got = call!(c.kill(request));
    c.fine("kill", got);
    let got = call!(c.wait(WaitRequest { container_id: id.clone(), ..Default::default() }));
    c.fine("wait", got);
    let got = call!(c.delete(DeleteTaskRequest { container_id: id.clone() }));
    c.fine("delete", got);
    cell.ok(&["containers", "rm", &id])?;
    client.finish()
}

/// Much of this ends containerd's shim; ours says what is wrong, and lives.
fn with_garbage(cell: &mut Cell) -> Result<()> {
    let mut client = Client::connect(cell)?;
    if !client.is_own {
        return Err(super::Skipped("containerd's shim dies of it").into());
    }
    let id = cell.background(&[], &["sleep", "100"])?;
    let c = &mut client;
    let invalid = Code::InvalidArgument;
    for (case, value) in [("nothing", ""), ("text", "hello"), ("list", "[]"), ("null", "null")] {
        let any = Any { type_url: RUNTIME_PROCESS.to_owned(), value: value.into() };
        let request = UpdateTaskRequest {
            container_id: id.clone(),
            resources: Some(any),
            ..Default::default()
        };
        let got = call!(c.update(request));
        c.refused(&format!("resources {case}"), got, invalid, "resources: ");
        let got = c.exec(&id, "e", value);
        c.refused(&format!("process {case}"), got, invalid, "process: ");
    }
    for signal in [u32::MAX, 1 << 31] {
        let request = KillRequest { container_id: id.clone(), signal, ..Default::default() };
        let got = call!(c.kill(request));
        // Each runtime has words of its own.
        c.refused(&format!("signal {signal}"), got, Code::Unknown, "signal");
    }
    for (case, output) in
        [("missing", NOTHING), ("folder", "/proc"), ("relative", "no/such"), ("nul", "/a\0b")]
    {
        let request = ExecProcessRequest {
            container_id: id.clone(),
            exec_id: "e".to_owned(),
            spec: Some(Any { type_url: RUNTIME_PROCESS.to_owned(), value: SLEEP.into() }),
            stdout: output.to_owned(),
            ..Default::default()
        };
        let got = call!(c.exec(request));
        c.fine(case, got);
        let start = StartRequest { container_id: id.clone(), exec_id: "e".to_owned() };
        let got = call!(c.start(start));
        c.refused(&format!("output {case}"), got, Code::Unknown, &format!("open {output:?}"));
        let delete = DeleteProcessRequest { container_id: id.clone(), exec_id: "e".to_owned() };
        let got = call!(c.delete_process(delete));
        c.fine(case, got);
    }
    let other = cell.id();
    cell.ok(&["containers", "create", IMAGE, &other, "true"])?;
    for (case, kind, value) in [
        ("unknown", "foo.Bar", &b"\x0a\x01x"[..]),
        ("garbage", "containerd.runc.v1.Options", b"\xff\xff\xff"),
        ("another message", RUNTIME_PROCESS, b"{}"),
    ] {
        let any = Any { type_url: kind.to_owned(), value: value.to_vec() };
        let request = CreateTaskRequest {
            container_id: other.clone(),
            options: Some(any),
            ..Default::default()
        };
        let got = call!(c.create(request));
        c.refused(&format!("options {case}"), got, invalid, "");
    }
    // It lives.
    let after = cell.ctr(&["tasks", "exec", "--exec-id", "after", &id, "echo", "alive"])?;
    cell.remove(&id)?;
    cell.ok(&["containers", "rm", &other])?;
    super::same(after.ok()?.as_str(), "alive\n")?;
    client.finish()
}
