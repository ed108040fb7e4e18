//! A running process in a container: its streams, its terminal, its signals, its end.

mod attach;
mod console;
mod fifo;
mod pump;
mod signals;

pub(crate) use attach::supervise;
pub(crate) use console::Console;
pub(crate) use fifo::{IoKind, Stdio};
pub(crate) use pump::Pump;
pub(crate) use signals::{Interrupted, Signals, parse_signal};

use proto::containerd::services::tasks::v1::{
    CloseIoRequest, DeleteProcessRequest, DeleteTaskRequest, GetRequest, KillRequest,
    ResizePtyRequest, StartRequest, WaitRequest,
};
use tonic::Code;

use crate::{client::Client, error::has_code};

/// The init of a task, or an exec in it.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    client: Client,
    container_id: String,
    /// Empty for init.
    exec_id: String,
}

impl Process {
    /// The init of a container's task.
    pub(crate) fn init(client: &Client, container_id: &str) -> Self {
        Self::exec(client, container_id, "")
    }

    /// An exec in a container's task.
    pub(crate) fn exec(client: &Client, container_id: &str, exec_id: &str) -> Self {
        Self {
            client: client.clone(),
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
        }
    }

    /// Its streams; none if it is not there.
    pub(crate) async fn stdio(&self) -> anyhow::Result<Stdio> {
        let request =
            GetRequest { container_id: self.container_id.clone(), exec_id: self.exec_id.clone() };
        match self.client.tasks().get(request).await {
            Ok(response) => Ok(Stdio::of(&response.into_inner().process.unwrap_or_default())),
            Err(status) if status.code() == Code::NotFound => Ok(Stdio::paths("", "", "", false)),
            Err(status) => Err(status.into()),
        }
    }

    /// Starts it and returns its process ID on the host.
    pub(crate) async fn start(&self) -> anyhow::Result<u32> {
        let request =
            StartRequest { container_id: self.container_id.clone(), exec_id: self.exec_id.clone() };
        Ok(self.client.tasks().start(request).await?.into_inner().pid)
    }

    /// Waits for its end and returns its exit status.
    pub(crate) async fn wait(&self) -> anyhow::Result<u32> {
        let request =
            WaitRequest { container_id: self.container_id.clone(), exec_id: self.exec_id.clone() };
        Ok(self.client.tasks().wait(request).await?.into_inner().exit_status)
    }

    /// Sends it a signal, or all processes of the container.
    pub(crate) async fn kill(&self, signal: u32, all: bool) -> anyhow::Result<()> {
        let request = KillRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            signal,
            all,
        };
        self.client.tasks().kill(request).await?;
        Ok(())
    }

    /// Sets the size of its terminal.
    pub(crate) async fn resize(&self, width: u16, height: u16) -> anyhow::Result<()> {
        let request = ResizePtyRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            width: width.into(),
            height: height.into(),
        };
        self.client.tasks().resize_pty(request).await?;
        Ok(())
    }

    /// Makes it read the end of its input.
    pub(crate) async fn close_stdin(&self) -> anyhow::Result<()> {
        let request = CloseIoRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            stdin: true,
        };
        self.client.tasks().close_io(request).await?;
        Ok(())
    }

    /// Removes it after its end and returns its exit status. What it wrote is in the fifos then.
    pub(crate) async fn delete(&self) -> anyhow::Result<u32> {
        let mut tasks = self.client.tasks();
        let container_id = self.container_id.clone();
        let response = if self.exec_id.is_empty() {
            tasks.delete(DeleteTaskRequest { container_id }).await?
        } else {
            let exec_id = self.exec_id.clone();
            tasks.delete_process(DeleteProcessRequest { container_id, exec_id }).await?
        };
        Ok(response.into_inner().exit_status)
    }

    /// Ends it, in whatever state it is, and removes it; one that is not there is removed.
    pub(crate) async fn destroy(&self) -> anyhow::Result<()> {
        const SIGKILL: u32 = 9;
        let gone = |error: &anyhow::Error| {
            has_code(error, Code::NotFound) || has_code(error, Code::FailedPrecondition)
        };
        match self.kill(SIGKILL, self.exec_id.is_empty()).await {
            Ok(()) => drop(self.wait().await),
            // Not started, or ended already; what remains is to delete it.
            Err(error) if gone(&error) => {}
            Err(error) => return Err(error),
        }
        match self.delete().await {
            Ok(_) => Ok(()),
            Err(error) if has_code(&error, Code::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
