//! Flags whose values have a grammar of their own.

use super::{IdMapping, LinuxNamespace, Mount, Rlimit};

/// Parses `type=bind,src=/a,dst=/b,options=rbind:ro`; a field in double quotes may have commas.
pub(crate) fn parse_mount(text: &str) -> Result<Mount, String> {
    let mut mount = Mount::default();
    for field in split_quoted(text)? {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("mount field {field:?} is not key=value"))?;
        match key {
            "type" => mount.kind = value.to_owned(),
            "source" | "src" => mount.source = value.to_owned(),
            "destination" | "dst" | "target" => mount.destination = value.to_owned(),
            "options" => mount.options = value.split(':').map(str::to_owned).collect(),
            _ => return Err(format!("mount option {key:?} is not supported")),
        }
    }
    if mount.destination.is_empty() {
        return Err("mount has no dst=".to_owned());
    }
    Ok(mount)
}

/// Splits a line of comma-separated values.
fn split_quoted(text: &str) -> Result<Vec<String>, String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let field = fields.last_mut().expect("starts with one field and only grows");
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    if quoted { Err(format!("{text:?} has an open quote")) } else { Ok(fields) }
}

/// Parses `container-id:host-id:size`.
pub(crate) fn parse_id_mapping(text: &str) -> Result<IdMapping, String> {
    let invalid = || format!("{text:?} is not container-id:host-id:length");
    let numbers: Result<Vec<u32>, _> = text.split(':').map(str::parse).collect();
    match numbers.map_err(|_| invalid())?.as_slice() {
        &[container_id, host_id, size] => Ok(IdMapping { container_id, host_id, size }),
        _ => Err(invalid()),
    }
}

/// Parses `<type>:<path>` of a Linux namespace to join.
pub(crate) fn parse_linux_namespace(text: &str) -> Result<LinuxNamespace, String> {
    let (kind, path) =
        text.split_once(':').ok_or_else(|| format!("{text:?} is not nstype:path"))?;
    match kind {
        "pid" | "network" | "uts" | "mount" | "user" | "ipc" | "cgroup" | "time" => {
            Ok(LinuxNamespace { kind: kind.to_owned(), path: path.to_owned() })
        }
        _ => Err(format!("there is no Linux namespace type {kind:?}")),
    }
}

/// Parses `soft[:hard]` open files.
pub(crate) fn parse_rlimit(text: &str) -> Result<Rlimit, String> {
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    let number = |digits: &str| digits.parse().map_err(|_| format!("{text:?} is not soft:hard"));
    Ok(Rlimit { kind: "RLIMIT_NOFILE".to_owned(), soft: number(soft)?, hard: number(hard)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts() {
        let mount = |kind: &str, source: &str, destination: &str, options: &[&str]| Mount {
            kind: kind.to_owned(),
            source: source.to_owned(),
            destination: destination.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..Mount::default()
        };
        let cases = [
            (
                "bind",
                "type=bind,src=/tmp,dst=/host,options=rbind:ro",
                Ok(mount("bind", "/tmp", "/host", &["rbind", "ro"])),
            ),
            ("quoted comma", "\"src=/a,b\",dst=/c", Ok(mount("", "/a,b", "/c", &[]))),
            ("unknown key", "typ=bind,dst=/a", Err("\"typ\"")),
            ("no value", "bind,dst=/a", Err("\"bind\"")),
            ("no destination", "type=bind,src=/a", Err("dst=")),
            ("open quote", "\"src=/a", Err("open quote")),
        ];
        for (case, text, want) in cases {
            match (parse_mount(text), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{case}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{case}: {got}"),
                (got, _) => panic!("{case}: {got:?}"),
            }
        }
    }

    #[test]
    fn id_mappings() {
        let cases = [
            ("good", "0:100000:65536", true),
            ("short", "0:1", false),
            ("long", "0:1:2:3", false),
            ("too large", "0:4294967296:1", false),
            ("negative", "0:-1:1", false),
        ];
        for (case, text, want) in cases {
            assert_eq!(parse_id_mapping(text).is_ok(), want, "{case}");
        }
    }

    #[test]
    fn linux_namespaces() {
        let cases = [("network:/proc/1/ns/net", true), ("net:/a", false), ("pid", false)];
        for (text, want) in cases {
            assert_eq!(parse_linux_namespace(text).is_ok(), want, "{text}");
        }
    }
}
