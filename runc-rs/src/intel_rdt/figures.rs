//! What resctrl says of a group, for `events`: shares, and what was measured.
//!
//! The form, and what counts as there, are runc's (`types/events.go`, `libcontainer/intelrdt`): most
//! zeros are left out, and what the machine cannot do is.

use std::{fs, io, path::Path};

use serde::Serialize;

use super::{Group, Resctrl};
use crate::error::{Cause, Error};

/// The figures of a container's group.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Figures {
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_info: Option<CacheInfo>,
    #[serde(skip_serializing_if = "String::is_empty")]
    l3_cache_schema_root: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    l3_cache_schema: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_info: Option<BandwidthInfo>,
    #[serde(skip_serializing_if = "String::is_empty")]
    mem_bw_schema_root: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    mem_bw_schema: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    schemata: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mbm_stats: Option<Vec<Bandwidth>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmt_stats: Option<Vec<Occupancy>>,
}

/// What shares of the last level cache there can be.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct CacheInfo {
    #[serde(skip_serializing_if = "String::is_empty")]
    cbm_mask: String,
    #[serde(skip_serializing_if = "is_zero")]
    min_cbm_bits: u64,
    #[serde(skip_serializing_if = "is_zero")]
    num_closids: u64,
}

/// What shares of memory bandwidth there can be.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct BandwidthInfo {
    #[serde(skip_serializing_if = "is_zero")]
    bandwidth_gran: u64,
    #[serde(skip_serializing_if = "is_zero")]
    delay_linear: u64,
    #[serde(skip_serializing_if = "is_zero")]
    min_bandwidth: u64,
    #[serde(skip_serializing_if = "is_zero")]
    num_closids: u64,
}

/// Bytes that were moved to and from the memory behind one cache.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Bandwidth {
    mbm_total_bytes: u64,
    mbm_local_bytes: u64,
}

/// Bytes in one cache.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Occupancy {
    llc_occupancy: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Group {
    /// What the group may use, and what was measured.
    ///
    /// # Errors
    ///
    /// [`Error::Resctrl`] when one of the files that the machine has is missing or has no number.
    pub(crate) fn figures(&self) -> Result<Figures, Error> {
        let mut figures = Figures::default();
        let of_root = text(&self.root, "schemata")?;
        let of_group = text(&self.path, "schemata")?;
        let resctrl = Resctrl { root: self.root.clone() };
        if resctrl.has_cache_allocation() {
            let info = self.root.join("info/L3");
            figures.l3_cache_info = Some(CacheInfo {
                cbm_mask: text(&info, "cbm_mask")?,
                min_cbm_bits: number(&info, "min_cbm_bits")?,
                num_closids: number(&info, "num_closids")?,
            });
            figures.l3_cache_schema_root = line_of(&of_root, "L3");
            figures.l3_cache_schema = line_of(&of_group, "L3");
        }
        if resctrl.has_bandwidth_allocation() {
            let info = self.root.join("info/MB");
            figures.mem_bw_info = Some(BandwidthInfo {
                bandwidth_gran: number(&info, "bandwidth_gran")?,
                delay_linear: number(&info, "delay_linear")?,
                min_bandwidth: number(&info, "min_bandwidth")?,
                num_closids: number(&info, "num_closids")?,
            });
            figures.mem_bw_schema_root = line_of(&of_root, "MB");
            figures.mem_bw_schema = line_of(&of_group, "MB");
        }
        figures.schemata = of_group.split('\n').map(str::to_owned).collect();
        self.measured(&mut figures)?;
        Ok(figures)
    }

    /// Adds what was measured of the container, or, where it is not measured alone, of all in its
    /// group.
    fn measured(&self, figures: &mut Figures) -> Result<(), Error> {
        let features = text(&self.root.join("info/L3_MON"), "mon_features").unwrap_or_default();
        let has = |name: &str| features.lines().any(|feature| feature == name);
        let [total, local, occupancy] =
            ["mbm_total_bytes", "mbm_local_bytes", "llc_occupancy"].map(has);
        if !(total || local || occupancy) {
            return Ok(());
        }
        let data = self.monitoring.as_ref().unwrap_or(&self.path).join("mon_data");
        let (mut moved, mut kept) = (Vec::new(), Vec::new());
        for domain in directories(&data).map_err(|error| fail(&data, &Cause(error)))? {
            let domain = data.join(domain);
            let read = |is_there: bool, name| if is_there { number(&domain, name) } else { Ok(0) };
            moved.push(Bandwidth {
                mbm_total_bytes: read(total, "mbm_total_bytes")?,
                mbm_local_bytes: read(local, "mbm_local_bytes")?,
            });
            kept.push(Occupancy { llc_occupancy: read(occupancy, "llc_occupancy")? });
        }
        figures.mbm_stats = (total || local).then_some(moved);
        figures.cmt_stats = occupancy.then_some(kept);
        Ok(())
    }
}

/// The names of the directories in `path`, sorted.
fn directories(path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name());
        }
    }
    names.sort();
    Ok(names)
}

/// The last line of a schemata that is about this resource.
fn line_of(schemata: &str, resource: &str) -> String {
    let line = schemata.lines().rfind(|line| line.contains(resource));
    line.unwrap_or_default().trim().to_owned()
}

fn text(directory: &Path, name: &str) -> Result<String, Error> {
    let path = directory.join(name);
    let text = fs::read_to_string(&path).map_err(|error| fail(&path, &Cause(error)))?;
    Ok(text.trim().to_owned())
}

fn number(directory: &Path, name: &str) -> Result<u64, Error> {
    text(directory, name)?.parse().map_err(|error| fail(&directory.join(name), &error))
}

fn fail(path: &Path, error: &dyn std::fmt::Display) -> Error {
    let path = path.display();
    Error::Resctrl(format!("unable to get container Intel RDT stats: {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and texts.
    type Files<'a> = &'a [(&'a str, &'a str)];

    /// Writes files below a new directory.
    fn tree(files: Files<'_>) -> (tempfile::TempDir, Group) {
        let directory = tempfile::tempdir().expect("temporary directory");
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("make directory");
            fs::write(path, text).expect("write file");
        }
        let resctrl = Resctrl { root: directory.path().to_owned() };
        let group = resctrl.recorded(&directory.path().join("box"), None, true);
        (directory, group)
    }

    fn json(group: &Group) -> String {
        let figures = group.figures().unwrap_or_else(|error| panic!("{error}"));
        serde_json::to_string(&figures).expect("serializes")
    }

    const SCHEMATA: [(&str, &str); 2] =
        [("schemata", "    L3:0=fffff\n    MB:0=100\n"), ("box/schemata", "L3:0=f\nMB:0=20\n")];

    #[test]
    fn of_a_machine_with_everything() {
        let files = [
            ("info/L3/cbm_mask", "fffff\n"),
            ("info/L3/min_cbm_bits", "1\n"),
            ("info/L3/num_closids", "16\n"),
            ("info/MB/bandwidth_gran", "10\n"),
            ("info/MB/delay_linear", "1\n"),
            ("info/MB/min_bandwidth", "10\n"),
            ("info/MB/num_closids", "8\n"),
            ("info/L3_MON/mon_features", "llc_occupancy\nmbm_total_bytes\nmbm_local_bytes\n"),
            ("box/mon_data/mon_L3_01/llc_occupancy", "5\n"),
            ("box/mon_data/mon_L3_01/mbm_total_bytes", "7\n"),
            ("box/mon_data/mon_L3_01/mbm_local_bytes", "6\n"),
            ("box/mon_data/mon_L3_00/llc_occupancy", "0\n"),
            ("box/mon_data/mon_L3_00/mbm_total_bytes", "18446744073709551615\n"),
            ("box/mon_data/mon_L3_00/mbm_local_bytes", "3\n"),
        ];
        let (_directory, group) = tree(&[&files[..], &SCHEMATA[..]].concat());
        let want = concat!(
            r#"{"l3_cache_info":{"cbm_mask":"fffff","min_cbm_bits":1,"num_closids":16},"#,
            r#""l3_cache_schema_root":"L3:0=fffff","l3_cache_schema":"L3:0=f","#,
            r#""mem_bw_info":{"bandwidth_gran":10,"delay_linear":1,"min_bandwidth":10,"#,
            r#""num_closids":8},"mem_bw_schema_root":"MB:0=100","mem_bw_schema":"MB:0=20","#,
            r#""schemata":["L3:0=f","MB:0=20"],"#,
            r#""mbm_stats":[{"mbm_total_bytes":18446744073709551615,"mbm_local_bytes":3},"#,
            r#"{"mbm_total_bytes":7,"mbm_local_bytes":6}],"#,
            r#""cmt_stats":[{"llc_occupancy":0},{"llc_occupancy":5}]}"#,
        );
        assert_eq!(json(&group), want);
    }

    #[test]
    fn of_one_container_alone() {
        let files = [
            ("info/L3_MON/mon_features", "llc_occupancy\n"),
            ("box/mon_groups/c/mon_data/mon_L3_00/llc_occupancy", "9\n"),
            ("box/mon_data/mon_L3_00/llc_occupancy", "100\n"),
        ];
        let (directory, mut group) = tree(&[&files[..], &SCHEMATA[..]].concat());
        group.monitoring = Some(directory.path().join("box/mon_groups/c"));
        let want = r#"{"schemata":["L3:0=f","MB:0=20"],"cmt_stats":[{"llc_occupancy":9}]}"#;
        assert_eq!(json(&group), want);
    }

    #[test]
    fn files_that_say_nothing() {
        let monitored = ("info/L3_MON/mon_features", "mbm_total_bytes\n");
        let file = "box/mon_data/mon_L3_00/mbm_total_bytes";
        let cases: [(&str, Files<'_>, &str); 3] = [
            ("no group", &[("schemata", "")], "box/schemata: no such file"),
            ("no data", &[SCHEMATA[0], SCHEMATA[1], monitored], "mon_data: no such file"),
            (
                "no number",
                &[SCHEMATA[0], SCHEMATA[1], monitored, (file, "Unavailable\n")],
                "mbm_total_bytes: invalid digit",
            ),
        ];
        for (case, files, want) in cases {
            let (_directory, group) = tree(files);
            let error = group.figures().expect_err(case).to_string();
            assert!(error.contains(want), "{case}: {error}");
        }
    }
}
