//! Descriptions of mounts.

/// A mount to make, in the words of mount(8) and of containerd's API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// The type of filesystem, or `bind`.
    pub kind: String,
    /// What is mounted: a path, or a name without meaning.
    pub source: String,
    /// Where, below the root that the caller chose. Empty for that root itself, which is the only
    /// target that snapshotters use.
    pub target: String,
    /// Flags and data, one option each, as after `-o`.
    pub options: Vec<String>,
}

impl Mount {
    /// The mount that shows the directory `source`.
    pub fn bind(source: String, read_only: bool) -> Self {
        let access = if read_only { "ro" } else { "rw" };
        Self {
            kind: "bind".to_owned(),
            source,
            target: String::new(),
            options: vec![access.to_owned(), "rbind".to_owned()],
        }
    }

    /// The value of the last option `name=value`.
    pub fn option(&self, name: &str) -> Option<&str> {
        let value = |option| str::strip_prefix(option, name)?.strip_prefix('=');
        self.options.iter().rev().find_map(|option| value(option.as_str()))
    }

    /// Whether there is the option `name`, without a value.
    pub fn has(&self, name: &str) -> bool {
        self.options.iter().any(|option| option == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let options = ["index=off", "lowerdir=/a:/b", "ro", "index=on"];
        let mount = Mount { options: options.map(str::to_owned).to_vec(), ..Mount::default() };
        let cases = [
            ("value", "lowerdir", Some("/a:/b")),
            ("last one", "index", Some("on")),
            ("flag", "ro", None),
            ("prefix of a name", "lower", None),
        ];
        for (case, name, want) in cases {
            assert_eq!(mount.option(name), want, "{case}");
        }
        assert!(mount.has("ro") && !mount.has("index"));
    }
}
