//! What became of each case on each choice, as a table and as JSON.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::{Context, Result};
use integration::{programs, sum::Sum};
use serde_json::{Value, json};

/// What became of a case.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Passed,
    /// Passed at the second try; why not at the first.
    Unsteady(String),
    Skipped(String),
    Failed(String),
}

impl Outcome {
    pub(crate) fn to_json(&self, case: &str) -> Value {
        match self {
            Self::Passed => json!({"case": case, "outcome": "passed"}),
            Self::Unsteady(why) => json!({"case": case, "outcome": "unsteady", "why": why}),
            Self::Skipped(why) => json!({"case": case, "outcome": "skipped", "why": why}),
            Self::Failed(why) => json!({"case": case, "outcome": "failed", "why": why}),
        }
    }

    fn from_json(value: &Value) -> Self {
        let why = value["why"].as_str().unwrap_or_default().to_owned();
        match value["outcome"].as_str() {
            Some("passed") => Self::Passed,
            Some("unsteady") => Self::Unsteady(why),
            Some("skipped") => Self::Skipped(why),
            _ => Self::Failed(why),
        }
    }
}

impl Outcome {
    fn is_good(&self) -> bool {
        matches!(self, Self::Passed | Self::Unsteady(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("ok"),
            Self::Unsteady(why) => write!(f, "ok, at the second try\n    {why}"),
            Self::Skipped(why) => write!(f, "skipped: {why}"),
            Self::Failed(why) => write!(f, "FAILED\n    {why}"),
        }
    }
}

/// All outcomes, by cell in the order in which they were run.
#[derive(Default)]
pub(crate) struct Report {
    cells: Vec<(String, BTreeMap<String, Outcome>)>,
}

impl Report {
    pub(crate) fn add(&mut self, cell: &str, case: &str, outcome: Outcome) {
        let at = self.cells.iter().position(|(its, _)| its == cell);
        let at = at.unwrap_or_else(|| {
            self.cells.push((cell.to_owned(), BTreeMap::new()));
            self.cells.len() - 1
        });
        self.cells[at].1.insert(case.to_owned(), outcome);
    }

    pub(crate) fn skip_cell(&mut self, cell: &str, why: &str) {
        self.add(cell, "cell", Outcome::Skipped(why.to_owned()));
    }

    /// Takes what a process on a stage has noted.
    pub(crate) fn read(&mut self, cell: &str, file: &Path) -> Result<()> {
        for line in fs::read_to_string(file)?.lines() {
            let value: Value = serde_json::from_str(line).context("a noted outcome")?;
            let case = value["case"].as_str().unwrap_or_default().to_owned();
            self.add(cell, &case, Outcome::from_json(&value));
        }
        Ok(())
    }

    pub(crate) fn is_good(&self) -> bool {
        self.count(|outcome| matches!(outcome, Outcome::Failed(_))) == 0
    }

    /// Prints the table and the sum, and saves both.
    pub(crate) fn show(&self) -> Result<()> {
        let table = self.table();
        println!("\n{table}");
        fs::create_dir_all(programs::target())?;
        fs::write(programs::target().join("swap.md"), &table)?;
        fs::write(programs::target().join("swap.json"), format!("{:#}\n", self.json()))?;
        let sum = Sum {
            passed: self.count(Outcome::is_good),
            failed: self.count(|outcome| matches!(outcome, Outcome::Failed(_))),
            skipped: self.count(|outcome| matches!(outcome, Outcome::Skipped(_))),
        };
        println!("{sum}");
        Ok(())
    }

    fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
        let outcomes = self.cells.iter().flat_map(|(_, cases)| cases.values());
        outcomes.filter(|outcome| wanted(outcome)).count()
    }

    fn table(&self) -> String {
        let mut text = "| daemon / shim / runtime / client | passed | of these at the second try | skipped | failed |\n\
                        |---|---|---|---|---|\n"
            .to_owned();
        for (cell, cases) in &self.cells {
            let of = |wanted: fn(&Outcome) -> bool| {
                let names: Vec<&str> = cases
                    .iter()
                    .filter(|(_, outcome)| wanted(outcome))
                    .map(|(name, _)| name.as_str())
                    .collect();
                names
            };
            let passed = of(Outcome::is_good);
            let unsteady = of(|outcome| matches!(outcome, Outcome::Unsteady(_)));
            let skipped = of(|outcome| matches!(outcome, Outcome::Skipped(_)));
            let failed = of(|outcome| matches!(outcome, Outcome::Failed(_)));
            let named = |names: &[&str]| {
                if names.is_empty() {
                    "0".to_owned()
                } else {
                    format!("{}: {}", names.len(), names.join(" "))
                }
            };
            text += &format!(
                "| {cell} | {} | {} | {} | {} |\n",
                passed.len(),
                named(&unsteady),
                named(&skipped),
                named(&failed)
            );
        }
        text
    }

    fn json(&self) -> Value {
        self.cells
            .iter()
            .map(|(cell, cases)| {
                let cases: Vec<Value> =
                    cases.iter().map(|(name, outcome)| outcome.to_json(name)).collect();
                json!({"cell": cell, "cases": cases})
            })
            .collect()
    }
}
