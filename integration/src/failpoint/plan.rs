//! What is to happen, as the test writes it and the tracers read it; and what they saw.

use std::{
    fmt, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Which program is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The OCI runtime, with the container's init until that becomes the container's program.
    Runtime,
    /// The shim, with the command that starts it.
    Shim,
    /// The daemon, with all of its threads.
    Engine,
}

/// Who is killed at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The process that is traced; of a runtime and its child the runtime.
    Traced,
    /// The process that is at the step.
    Stepping,
    /// The shim above the runtime that is traced.
    Shim,
    /// The daemon.
    Engine,
    /// Daemon, shim, runtime and containers, as by a power cut.
    All,
}

const ROLES: [(Role, &str); 3] =
    [(Role::Runtime, "runtime"), (Role::Shim, "shim"), (Role::Engine, "engine")];

const VICTIMS: [(Victim, &str); 5] = [
    (Victim::Traced, "traced"),
    (Victim::Stepping, "stepping"),
    (Victim::Shim, "shim"),
    (Victim::Engine, "engine"),
    (Victim::All, "all"),
];

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ROLES.iter().find(|(role, _)| role == self).map_or("", |(_, name)| name))
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(VICTIMS.iter().find(|(who, _)| who == self).map_or("", |(_, name)| name))
    }
}

/// A step of a program: what it does, and the how manieth time it does that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// What is done to what, such as `runtime create: mkdir .../gantry-1/c`.
    pub name: String,
    /// From 1.
    pub occurrence: usize,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{}", self.name, self.occurrence)
    }
}

/// What the tracers are to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which program is traced.
    pub role: Role,
    /// At which step somebody is killed; `None` to look only.
    pub step: Option<Step>,
    /// Who is killed.
    pub victim: Victim,
    /// The daemon's process.
    pub engine: u32,
    /// The test's process, which lives on with the commands that it has started.
    pub test: u32,
}

impl Plan {
    /// Puts the plan into `directory`, in place of an earlier one, and forgets earlier steps.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let step = self.step.as_ref().map(|step| json!([step.name, step.occurrence]));
        let plan = json!({
            "role": self.role.to_string(), "victim": self.victim.to_string(), "step": step,
            "engine": self.engine, "test": self.test,
        });
        for name in ["steps", "tracers"] {
            fs::write(directory.join(name), "")?;
        }
        let new = directory.join("plan.new");
        fs::write(&new, plan.to_string())?;
        Ok(fs::rename(new, directory.join("plan"))?)
    }

    /// Takes the plan away: programs are not traced any more.
    pub fn clear(directory: &Path) {
        let _ = fs::remove_file(directory.join("plan"));
    }

    /// The plan in `directory`, if there is one.
    ///
    /// # Errors
    ///
    /// It cannot be understood.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let text = match fs::read(directory.join("plan")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let value: Value = serde_json::from_slice(&text)?;
        let named = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| value[name].as_u64().and_then(|it| u32::try_from(it).ok());
        let (role, victim) = (named("role"), named("victim"));
        let step = value["step"].as_array().and_then(|step| {
            let occurrence = usize::try_from(step.get(1)?.as_u64()?).ok()?;
            Some(Step { name: step.first()?.as_str()?.to_owned(), occurrence })
        });
        let role = ROLES.iter().find(|(_, name)| *name == role).context("a role")?.0;
        let victim = VICTIMS.iter().find(|(_, name)| *name == victim).context("a victim")?.0;
        let engine = number("engine").context("the engine")?;
        let test = number("test").context("the test")?;
        Ok(Some(Self { role, step, victim, engine, test }))
    }

    /// The steps that tracers have noted in `directory`, each with its occurrence, and whether
    /// somebody was killed.
    ///
    /// # Errors
    ///
    /// There is no such file.
    pub fn seen(directory: &Path) -> Result<(Vec<Step>, bool)> {
        let mut steps: Vec<Step> = Vec::new();
        let mut fired = false;
        for line in fs::read_to_string(directory.join("steps"))?.lines() {
            if let Some(name) = line.strip_prefix("step ") {
                let before = steps.iter().filter(|step| step.name == name).count();
                steps.push(Step { name: name.to_owned(), occurrence: before + 1 });
            } else if line == "fired" {
                fired = true;
            }
        }
        Ok((steps, fired))
    }

    /// The tracers that were started for the plan in `directory`.
    pub fn tracers(directory: &Path) -> Vec<i32> {
        let text = fs::read_to_string(directory.join("tracers")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

/// Adds a line to a file of the directory.
pub(super) fn note(directory: &Path, name: &str, line: &str) -> io::Result<()> {
    let path: PathBuf = directory.join(name);
    let mut file = fs::File::options().create(true).append(true).open(path)?;
    file.write_all(format!("{line}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_survive() {
        let directory = tempfile::tempdir().expect("temporary directory");
        assert_eq!(Plan::read(directory.path()).expect("absent is fine"), None);
        let step = Some(Step { name: "shim: write socket".to_owned(), occurrence: 2 });
        for (role, victim, step) in [
            (Role::Runtime, Victim::Traced, None),
            (Role::Shim, Victim::All, step.clone()),
            (Role::Engine, Victim::Engine, step),
        ] {
            let plan = Plan { role, victim, step, engine: 3, test: 4 };
            plan.write(directory.path()).expect("written");
            assert_eq!(Plan::read(directory.path()).expect("read"), Some(plan));
        }
    }

    #[test]
    fn occurrences_are_counted() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for line in ["step a", "step b", "step a", "fired"] {
            note(directory.path(), "steps", line).expect("noted");
        }
        let (steps, fired) = Plan::seen(directory.path()).expect("read");
        let shown: Vec<String> = steps.iter().map(Step::to_string).collect();
        assert_eq!((shown, fired), (["a #1", "b #1", "a #2"].map(str::to_owned).to_vec(), true));
    }
}
