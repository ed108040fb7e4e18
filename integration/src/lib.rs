//! The kit that the end-to-end tests, the benches and the demo are made of.
//!
//! It drives programs, ours and Debian's, over the borders that they share: command lines,
//! sockets and files. It links none of them, so whatever holds for one program can be asked of
//! the one that it replaces.
//!
//! # Map
//!
//! | module       | gives                                                              |
//! |--------------|--------------------------------------------------------------------|
//! | [`programs`] | where our programs and their peers are                             |
//! | [`process`]  | commands with a deadline, their output, and terminals              |
//! | [`wait`]     | waiting for a level, with the one deadline                         |
//! | [`image`]    | images made on the spot: layers, manifests, archives               |
//! | [`registry`] | a registry on loopback                                             |
//! | [`daemon`]   | a private engine: containerd or gantryd                            |
//! | [`cell`]     | one choice of daemon, shim, runtime and client, ready to be driven |
//! | [`leaks`]    | what a test has left behind                                        |
//! | [`failpoint`] | kills programs at a chosen step of what they do                   |
//! | [`stage`]    | the private mount namespace in which all of this happens           |
//! | [`sum`]      | how many tests there were                                          |
//! | [`vm`]       | a throw-away machine with cgroup v2, v1 or systemd                 |

pub mod cell;
pub mod daemon;
pub mod failpoint;
pub mod image;
pub mod leaks;
pub mod process;
pub mod programs;
pub mod registry;
pub mod stage;
pub mod sum;
pub mod vm;
pub mod wait;
