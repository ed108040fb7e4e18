//! Tasks: the containers of a shim, and the operations on them.
//!
//! | module | what |
//! |---|---|
//! | `state` | the life of a process, one table |
//! | `container` | what is known of a container |
//! | `job` | runtime processes at work, and what comes after them |
//! | `create`, `start`, `exit`, `delete` | the operations that take several steps |
//! | `control` | those that take one runtime process: kill, pause, update, ... |
//! | `oom` | the kernel's kills for want of memory |
//! | `query` | those that are answered at once |

mod container;
mod control;
mod create;
mod delete;
mod exit;
mod job;
mod oom;
mod query;
mod start;
mod state;

pub(crate) use container::{Container, check_id};
pub(crate) use create::LoggerWait;
pub(crate) use job::Job;
pub(crate) use oom::Watched;
