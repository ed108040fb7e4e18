//! What was measured, as a table of ratios and as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The sides that are ours; all others are peers.
const OWN: &[&str] = &["gantry", "runc-rs"];

/// The sides that only show what is possible, and are nobody's rival.
const REFERENCES: &[&str] = &["floor"];

/// Rows by name, in the order in which they were measured.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

struct Row {
    name: String,
    unit: &'static str,
    sides: BTreeMap<String, Vec<f64>>,
}

impl Table {
    /// Adds a measurement of `side` to the row `name`; less is better in all rows.
    pub(crate) fn add(&mut self, name: &str, unit: &'static str, side: &str, value: f64) {
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.rows.push(Row { name: name.to_owned(), unit, sides: BTreeMap::new() });
            self.rows.len() - 1
        });
        self.rows[at].sides.entry(side.to_owned()).or_default().push(value);
    }

    pub(crate) fn text(&self) -> String {
        let mut text =
            "| what | peers: best / median | ours: best / median | ratio of bests | of medians |\n\
                        |---|---|---|---|---|\n"
                .to_owned();
        for row in &self.rows {
            let (own, peers): (Vec<_>, Vec<_>) =
                row.sides.iter().partition(|(side, _)| OWN.contains(&side.as_str()));
            let shown = |sides: &[(&String, &Vec<f64>)]| {
                let each = sides.iter().map(|(side, values)| {
                    format!("{side} {} / {}", short(best(values)), short(median(values)))
                });
                each.collect::<Vec<_>>().join("; ")
            };
            let ratio = |of: fn(&[f64]) -> f64| {
                let own = own.first().map(|(_, values)| of(values));
                let rivals = peers.iter().filter(|(side, _)| !REFERENCES.contains(&side.as_str()));
                let peer = rivals.map(|(_, values)| of(values)).min_by(f64::total_cmp);
                own.zip(peer).map_or("-".to_owned(), |(own, peer)| format!("{:.2}", own / peer))
            };
            text += &format!(
                "| {}, {} | {} | {} | {} | {} |\n",
                row.name,
                row.unit,
                shown(&peers),
                shown(&own),
                ratio(best),
                ratio(median)
            );
        }
        text + "\nThe ratio is ours to the best peer's; below 1 we are ahead.\n"
    }

    pub(crate) fn json(&self) -> Value {
        self.rows
            .iter()
            .map(|row| {
                let sides: BTreeMap<_, _> = row
                    .sides
                    .iter()
                    .map(|(side, values)| {
                        let summary =
                            json!({"best": best(values), "median": median(values), "values": values});
                        (side, summary)
                    })
                    .collect();
                json!({"name": row.name, "unit": row.unit, "sides": sides})
            })
            .collect()
    }
}

fn best(values: &[f64]) -> f64 {
    values.iter().copied().min_by(f64::total_cmp).unwrap_or(f64::NAN)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Three figures are more than the measurement holds.
fn short(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.2}")
    } else if value < 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}
