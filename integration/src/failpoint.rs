//! Kills our programs at a chosen step of what they do, from outside.
//!
//! A *step* is a system call that changes something that others can see: a file, a mount, a
//! process, a message. Between two of them a program can be killed at any place with the same
//! result, so to kill it at each is to kill it everywhere. Nothing in the programs knows of it:
//! the program `failpoint` stands in for a runtime or a shim, has itself traced, and becomes the
//! one that it stands for; a daemon or a shim that runs is traced from outside.
//!
//! The test and the tracers meet in a directory:
//!
//! | file               | by      | what                                                       |
//! |--------------------|---------|------------------------------------------------------------|
//! | `plan`             | test    | what is traced, and who is to die at which step            |
//! | `steps`            | tracers | a line for each step, and one for a kill, in their order    |
//! | `tracers`          | tracers | their process IDs                                          |
//! | `runc-rs`, ...     | test    | copies of `failpoint` with the names of what they stand for |
//! | `real-runc-rs`, ...| test    | links to what they stand for                               |

mod call;
mod plan;
mod tracer;

pub use self::{
    plan::{Plan, Role, Step, Victim},
    tracer::{attach, stand_in, trace_parent},
};
