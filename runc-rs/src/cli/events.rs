//! `events`: what a container uses, and when it ran out of memory.

use std::{
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::flags::{ANYWHERE, Parsed, switch, value};
use crate::{
    container::{Container, Status},
    error::Error,
    settings::Settings,
    usage::{Event, Usage},
};

const INTERVAL_DEFAULT: Duration = Duration::from_secs(5);

/// How often, and after how long each time, the count of kills is read again once a watch has told
/// of one that is not counted yet: v1 tells before it kills. What takes longer is seen with the next
/// statistics.
const LATE_CHECKS: u32 = 50;
const LATE_CHECK: Duration = Duration::from_millis(20);

pub(super) fn run(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &[value("interval", ""), switch("stats", "")], ANYWHERE)?;
    parsed.expect("events", 1, 1)?;
    let container = super::container(settings, &parsed)?;
    let interval = match parsed.value("interval") {
        None => INTERVAL_DEFAULT,
        Some(text) => sys::go_duration::parse_positive(text)
            .filter(|interval| !interval.is_zero())
            .ok_or_else(|| Error::Usage("duration interval must be greater than 0".to_owned()))?,
    };
    if container.status()? == Status::Stopped {
        let id = &container.state().id;
        return Err(Error::Status(format!("container with id {id} is not running")));
    }
    if parsed.is_on("stats")? {
        print_stats(&container)?;
        return Ok(0);
    }
    follow(&container, interval)?;
    Ok(0)
}

fn print_stats(container: &Container) -> Result<(), Error> {
    let mut usage = Usage::from(container.cgroup().stats()?);
    if let Some(group) = container.resctrl_group() {
        usage.intel_rdt = group.figures()?;
    }
    print(&Event { kind: "stats", id: &container.state().id, data: Some(usage) })
}

fn print(event: &Event<'_>) -> Result<(), Error> {
    let text = serde_json::to_string(event)
        .map_err(|error| Error::system("write", "event", std::io::Error::other(error)))?;
    super::write_out(&format!("{text}\n"))
}

/// Prints until the container ends.
fn follow(container: &Container, interval: Duration) -> Result<(), Error> {
    let Some(init) = container.init()? else { return Ok(()) };
    let watch = container.cgroup().oom_watch()?;
    let mut seen = watch.kills()?.unwrap_or(0);
    let mut next = Instant::now() + interval;
    let mut late_checks = 0;
    loop {
        let mut left = next.saturating_duration_since(Instant::now());
        if late_checks > 0 {
            left = left.min(LATE_CHECK);
        }
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let watched = watch.as_fd();
        let mut waiting = [PollFd::new(&init, PollFlags::IN), PollFd::new(&watched, PollFlags::IN)];
        match poll(&mut waiting, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::system("wait for", "events", error)),
        }
        let (ended, news) = (!waiting[0].revents().is_empty(), !waiting[1].revents().is_empty());
        let kills = watch.kills()?.unwrap_or(seen);
        late_checks = match (kills > seen, news) {
            (true, _) => 0,
            (false, true) => LATE_CHECKS,
            (false, false) => u32::saturating_sub(late_checks, 1),
        };
        for _ in seen..kills {
            print(&Event { kind: "oom", id: &container.state().id, data: None })?;
        }
        seen = kills;
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            print_stats(container)?;
            next += interval;
        }
    }
}
