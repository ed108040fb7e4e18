//! The formats of the files.

use std::collections::BTreeMap;

use super::{BlockIoEntry, Pressure, PressureLine, RdmaEntry};

/// A number; "max" is the largest one, and -1 and the like are 0.
pub(super) fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    if text == "max" {
        return Some(u64::MAX);
    }
    text.parse().ok().or_else(|| text.parse::<i64>().ok().map(|_| 0))
}

/// Lines of a name and a number; other lines are left out.
pub(super) fn table(text: &str) -> BTreeMap<String, u64> {
    let entry = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), number(value)?))
    };
    text.lines().filter_map(entry).collect()
}

/// A list such as `0-3,7`.
pub(super) fn list(text: &str) -> Option<Vec<u16>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<u16>().ok()?..=last.parse().ok()?);
    }
    Some(numbers)
}

/// Numbers with spaces between them.
pub(super) fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().map_while(|number| number.parse().ok()).collect()
}

/// Lines such as `8:0 Read 4096`, or without the operation; totals are left out.
pub(super) fn block_io(text: &str) -> Vec<BlockIoEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = fields.next()?.split_once(':')?;
        let second = fields.next()?;
        let (operation, value) = match fields.next() {
            Some(value) => (second, value),
            None => ("", second),
        };
        Some(BlockIoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            operation: operation.to_owned(),
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

/// Lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let target = match fields.next()? {
            "some" => &mut pressure.some,
            "full" => &mut pressure.full,
            _ => continue,
        };
        *target = pressure_line(fields)?;
    }
    Some(pressure)
}

fn pressure_line<'a>(fields: impl Iterator<Item = &'a str>) -> Option<PressureLine> {
    let mut line = PressureLine::default();
    for field in fields {
        let (name, value) = field.split_once('=')?;
        match name {
            "avg10" => line.avg10 = value.parse().ok()?,
            "avg60" => line.avg60 = value.parse().ok()?,
            "avg300" => line.avg300 = value.parse().ok()?,
            "total" => line.total = value.parse().ok()?,
            _ => {}
        }
    }
    Some(line)
}

/// Lines such as `mlx4_0 hca_handle=2 hca_object=2000`; "max" is the largest number.
pub(super) fn rdma(text: &str) -> Vec<RdmaEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let mut entry = RdmaEntry { device: fields.next()?.to_owned(), ..RdmaEntry::default() };
        for field in fields {
            let (name, value) = field.split_once('=')?;
            let value = if value == "max" { u32::MAX } else { value.parse().ok()? };
            match name {
                "hca_handle" => entry.hca_handles = value,
                "hca_object" => entry.hca_objects = value,
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(entry).collect()
}

/// `2MB` for `hugepages-2048kB`.
pub(super) fn hugepage_size(name: &str) -> Option<String> {
    let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kib {
        _ if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        _ if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_all_kinds() {
        let cases = [
            ("5\n", Some(5)),
            ("max\n", Some(u64::MAX)),
            ("-1\n", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("", None),
            ("5 6", None),
        ];
        for (text, want) in cases {
            assert_eq!(number(text), want, "{text:?}");
        }
    }

    #[test]
    fn lists() {
        let cases = [
            ("0-3,7\n", Some(vec![0, 1, 2, 3, 7])),
            ("1022-1025,4095\n", Some(vec![1022, 1023, 1024, 1025, 4095])),
            ("\n", Some(vec![])),
            ("3-1", Some(vec![])),
            ("0-99999999", None),
            ("a", None),
        ];
        for (text, want) in cases {
            assert_eq!(list(text), want, "{text:?}");
        }
    }

    #[test]
    fn block_io_lines() {
        let entry = |major, operation: &str, value| {
            let operation = operation.to_owned();
            BlockIoEntry { major, minor: 0, operation, value }
        };
        let text = "8:0 Read 10\n8:0 Write 20\nTotal 30\n9:0 7\nx:y Read 1\n";
        assert_eq!(block_io(text), [entry(8, "Read", 10), entry(8, "Write", 20), entry(9, "", 7)]);
    }

    #[test]
    fn pressure_lines() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=3\n";
        let some = PressureLine { avg10: 1.5, avg60: 0.25, avg300: 0.0, total: 77 };
        let full = PressureLine { total: 3, ..PressureLine::default() };
        assert_eq!(pressure(text), Some(Pressure { some, full }));
        assert_eq!(pressure("some avg10"), None);
    }

    #[test]
    fn rdma_lines() {
        let text = "mlx4_0 hca_handle=2 hca_object=max\n";
        let device = "mlx4_0".to_owned();
        assert_eq!(rdma(text), [RdmaEntry { device, hca_handles: 2, hca_objects: u32::MAX }]);
    }

    #[test]
    fn hugepage_names() {
        let cases = [
            ("hugepages-2048kB", Some("2MB")),
            ("hugepages-1048576kB", Some("1GB")),
            ("hugepages-64kB", Some("64KB")),
            ("hugepages-", None),
        ];
        for (name, want) in cases {
            assert_eq!(hugepage_size(name).as_deref(), want, "{name}");
        }
    }
}
