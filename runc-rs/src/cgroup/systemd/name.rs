//! Names of units and slices.

/// Where a container's unit is: `linux.cgroupsPath` as `slice:prefix:name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The slice; none is systemd's for services, or a user's.
    pub(super) slice: Option<String>,
    /// The unit.
    pub(super) unit: String,
}

impl Place {
    /// Reads the path; without one the unit is named by the container.
    pub(super) fn of(cgroups_path: &str, id: &str) -> Option<Self> {
        if cgroups_path.is_empty() {
            return Some(Self { slice: None, unit: unit("runc", id) });
        }
        let mut parts = cgroups_path.split(':');
        let (slice, prefix, name) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let slice = Some(slice.to_owned()).filter(|slice| !slice.is_empty());
        Some(Self { slice, unit: unit(prefix, name) })
    }
}

fn unit(prefix: &str, name: &str) -> String {
    if is_slice(name) { name.to_owned() } else { format!("{prefix}-{name}.scope") }
}

/// Whether a unit is a slice, which has no processes of its own.
pub(super) fn is_slice(unit: &str) -> bool {
    unit.ends_with(".slice")
}

/// Whether a unit's name can be a directory's: what is between slashes leads elsewhere.
pub(super) fn is_valid(unit: &str) -> bool {
    !unit.is_empty() && unit.len() < 256 && !unit.contains(['/', '\0'])
}

/// The path of a slice's group: a dash in its name is a level, so that `a-b.slice` is
/// `a.slice/a-b.slice`. Nothing if the name is no slice's.
pub(super) fn slice_path(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(".slice")?;
    if name.is_empty() || name.contains('/') {
        return None;
    }
    if name == "-" {
        return Some(String::new());
    }
    let mut path = Vec::new();
    let mut prefix = String::new();
    for component in name.split('-') {
        if component.is_empty() {
            return None;
        }
        path.push(format!("{prefix}{component}.slice"));
        prefix = format!("{prefix}{component}-");
    }
    Some(path.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let place = |slice: Option<&str>, unit: &str| {
            Some(Place { slice: slice.map(str::to_owned), unit: unit.to_owned() })
        };
        let cases = [
            ("", place(None, "runc-id.scope")),
            ("system.slice:docker:1234", place(Some("system.slice"), "docker-1234.scope")),
            (":libpod:x", place(None, "libpod-x.scope")),
            ("a.slice:p:b.slice", place(Some("a.slice"), "b.slice")),
            ("a:b", None),
            ("a:b:c:d", None),
            ("/docker/x", None),
        ];
        for (path, want) in cases {
            assert_eq!(Place::of(path, "id"), want, "{path}");
        }
    }

    #[test]
    fn slices() {
        let cases = [
            ("system.slice", Some("system.slice")),
            ("a-b-c.slice", Some("a.slice/a-b.slice/a-b-c.slice")),
            ("-.slice", Some("")),
            ("a--b.slice", None),
            ("-a.slice", None),
            (".slice", None),
            ("a/b.slice", None),
            ("a.scope", None),
        ];
        for (slice, want) in cases {
            assert_eq!(slice_path(slice).as_deref(), want, "{slice}");
        }
    }
}
