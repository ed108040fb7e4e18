//! `ps`.

use std::process::Command;

use super::flags::{Parsed, value};
use crate::{error::Error, settings::Settings};

pub(super) fn run(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &[value("format", "f")], 1)?;
    parsed.expect("ps", 1, usize::MAX)?;
    let container = super::container(settings, &parsed)?;
    let pids = container.cgroup().pids_left()?;
    let text = match parsed.value("format").unwrap_or("table") {
        "json" => {
            // As Go writes a list that was never made.
            let pids = (!pids.is_empty()).then_some(&pids);
            let text = serde_json::to_string(&pids)
                .map_err(|error| Error::system("write", "pids", std::io::Error::other(error)))?;
            format!("{text}\n")
        }
        "table" => table(&pids, &parsed.arguments[1..])?,
        _ => return Err(Error::Usage("invalid format option".to_owned())),
    };
    super::write_out(&text)?;
    Ok(0)
}

/// Those lines of ps(1)'s that are about the container's processes, and the first one.
fn table(pids: &[u32], options: &[String]) -> Result<String, Error> {
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default } else { options };
    let output = Command::new("ps")
        .args(options)
        .output()
        .map_err(|error| Error::system("run", "ps", error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Usage(format!("ps: {}: {}", output.status, one_line(&said))));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    select(&text, pids)
        .ok_or_else(|| Error::Usage("couldn't find PID field in ps output".to_owned()))
}

/// The first line that says something.
fn one_line(text: &str) -> &str {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
}

fn select(text: &str, pids: &[u32]) -> Option<String> {
    let mut lines = text.lines();
    let title = lines.next()?;
    let column = title.split_whitespace().position(|name| name == "PID")?;
    let ours = lines.filter(|line| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid: u32| pids.contains(&pid))
    });
    Some([title].into_iter().chain(ours).map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_lines() {
        let text = "UID PID CMD\nroot 1 init\nroot 12 sh\nroot 2 [x]\n";
        assert_eq!(
            select(text, &[12, 2]).as_deref(),
            Some("UID PID CMD\nroot 12 sh\nroot 2 [x]\n")
        );
        assert_eq!(select("UID CMD\n", &[1]), None);
    }
}
