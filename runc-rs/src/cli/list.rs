//! `list`.

use std::os::unix::fs::MetadataExt as _;

use sys::error::Chain;

use super::{
    flags::{ANYWHERE, Parsed, switch, value},
    state::View,
};
use crate::{container::Container, error::Error, log, proc, settings::Settings};

pub(super) fn run(settings: &Settings, words: &[String]) -> Result<i32, Error> {
    let parsed = Parsed::new(words, &[value("format", "f"), switch("quiet", "q")], ANYWHERE)?;
    parsed.expect("list", 0, 0)?;
    let views = views(settings)?;
    let text = if parsed.is_on("quiet")? {
        views.iter().map(|view| format!("{}\n", view.id)).collect()
    } else {
        match parsed.value("format").unwrap_or("table") {
            "table" => table(&views),
            // Go writes an absent list as null.
            "json" if views.is_empty() => "null\n".to_owned(),
            "json" => {
                let text = serde_json::to_string(&views).map_err(|error| {
                    Error::system("write", "list", std::io::Error::other(error))
                })?;
                format!("{text}\n")
            }
            _ => return Err(Error::Usage("invalid format option".to_owned())),
        }
    };
    super::write_out(&text)?;
    Ok(0)
}

fn views(settings: &Settings) -> Result<Vec<View>, Error> {
    let mut views = Vec::new();
    // The default place comes into being with the first container.
    if !settings.root_is_named && !settings.root.path().exists() {
        return Ok(views);
    }
    for id in settings.root.ids()? {
        let container = match Container::load(&settings.root, &id) {
            Ok(container) => container,
            // It is being created or deleted.
            Err(Error::NoSuchContainer) => continue,
            // One that cannot be read hides no other.
            Err(error) => {
                log::warn(&format!("load container {id}: {}", Chain(&error)));
                continue;
            }
        };
        let path = settings.root.entry(&id).path().to_owned();
        let uid = path.metadata().map_or(0, |found| found.uid());
        views.push(View::new(&container, user_name(uid))?);
    }
    Ok(views)
}

fn user_name(uid: u32) -> String {
    let text = proc::read(rustix::fs::CWD, "/etc/passwd").unwrap_or_default();
    let name = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{uid}"))
}

fn table(views: &[View]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    rows.extend(views.iter().map(|view| {
        [
            view.id.clone(),
            view.pid.to_string(),
            view.status.clone(),
            view.bundle.clone(),
            view.created.clone(),
            view.owner.clone(),
        ]
    }));
    align(&rows)
}

/// Aligns columns as runc does: at least 12 wide, three spaces between.
fn align<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    const WIDTH_MIN: usize = 12;
    const GAP: usize = 3;
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < COLUMNS {
                let longest = rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
                let width = (longest + GAP).max(WIDTH_MIN);
                text.extend(std::iter::repeat_n(' ', width - cell.len()));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns() {
        let rows =
            [["ID", "PID"], ["a-long-container-name", "1"]].map(|row| row.map(str::to_owned));
        let want = "\
ID                      PID
a-long-container-name   1
";
        assert_eq!(align(&rows), want);
    }
}
