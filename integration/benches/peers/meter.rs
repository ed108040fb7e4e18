//! The time that processes, and all that they start, take on the processors (cgroup v1).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Result;

/// The hierarchy that counts processor time.
const HIERARCHY: &str = "/sys/fs/cgroup/cpuacct";

/// A control group of their own, which counts to the nanosecond, and those that have ended, too.
pub(crate) struct Meter {
    group: PathBuf,
    processes: Vec<u32>,
}

impl Meter {
    pub(crate) fn of(processes: &[u32]) -> io::Result<Self> {
        let group = Path::new(HIERARCHY).join(format!("bench-{}", std::process::id()));
        fs::create_dir_all(&group)?;
        let meter = Self { group, processes: processes.to_owned() };
        for pid in processes {
            fs::write(meter.group.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(meter)
    }

    pub(crate) fn milliseconds(&self) -> Result<f64> {
        let text = fs::read_to_string(self.group.join("cpuacct.usage"))?;
        Ok(text.trim().parse::<f64>()? / 1e6)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let parent = Path::new(HIERARCHY).join("cgroup.procs");
        let inside = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        let known = self.processes.iter().map(u32::to_string);
        for pid in inside.lines().map(str::to_owned).chain(known) {
            let _ = fs::write(&parent, pid);
        }
        let _ = fs::remove_dir(&self.group);
    }
}
