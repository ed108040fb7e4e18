//! Tables for people, laid out as stock `ctr`'s, so that scripts that cut them go on working.
//!
//! Source: Go, `text/tabwriter`: a column is as wide as its widest cell plus the padding, and the
//! last one is padded too.

use std::io;

use super::print_line;

/// A table with a header.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    layout: Layout,
}

/// How columns are set apart.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// By so many spaces, which also end the line.
    Spaces(usize),
    /// By so many spaces, and what is in the last column ends the line.
    Ragged(usize),
    /// By tabs up to a common tab stop.
    Tabs,
}

/// Columns between tab stops.
const TAB: usize = 8;

impl Table {
    /// A table with one space between columns.
    pub(crate) fn new(header: &[&str]) -> Self {
        Self::with_layout(header, Layout::Spaces(1))
    }

    /// A table with four spaces between columns.
    pub(crate) fn wide(header: &[&str]) -> Self {
        Self::with_layout(header, Layout::Spaces(4))
    }

    /// This table with nothing after the last cells; its last column is as wide as its header.
    pub(crate) fn ragged(mut self) -> Self {
        if let Layout::Spaces(padding) = self.layout {
            self.layout = Layout::Ragged(padding);
        }
        self
    }

    /// A table with tabs between columns.
    pub(crate) fn tabbed(header: &[&str]) -> Self {
        Self::with_layout(header, Layout::Tabs)
    }

    fn with_layout(header: &[&str], layout: Layout) -> Self {
        Self { rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()], layout }
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// Prints the table.
    pub(crate) fn print(&self) -> io::Result<()> {
        self.lines().iter().try_for_each(|line| print_line(format_args!("{line}")))
    }

    fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let lines = self.rows.iter().map(|row| self.layout.line(row, &widths));
        let mut lines: Vec<String> = lines.collect();
        if let (Layout::Ragged(padding), Some(header)) = (self.layout, lines.first_mut()) {
            header.push_str(&" ".repeat(padding));
        }
        lines
    }
}

impl Layout {
    fn line(self, row: &[String], widths: &[usize]) -> String {
        let last = row.len().saturating_sub(1);
        let cells = row.iter().zip(widths).enumerate();
        let cell = |(at, (cell, width)): (usize, (&String, &usize))| match self {
            Self::Spaces(padding) => format!("{cell:<width$}", width = width + padding),
            Self::Tabs | Self::Ragged(_) if at == last => cell.clone(),
            Self::Ragged(padding) => format!("{cell:<width$}", width = width + padding),
            Self::Tabs => {
                let stop = (width + 1).next_multiple_of(TAB);
                format!("{cell}{}", "\t".repeat((stop - cell.chars().count()).div_ceil(TAB)))
            }
        };
        cells.map(cell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_padded() {
        let mut table = Table::new(&["REF", "SIZE"]);
        table.row(["docker.io/a".to_owned(), "1 B".to_owned()]);
        assert_eq!(table.lines(), ["REF         SIZE ", "docker.io/a 1 B  "]);
        let ragged = table.ragged();
        assert_eq!(ragged.lines(), ["REF         SIZE ", "docker.io/a 1 B"]);
        let mut wide = Table::wide(&["A"]);
        wide.row(["längst".to_owned()]);
        assert_eq!(wide.lines(), ["A         ", "längst    "]);
    }

    #[test]
    fn tabs_reach_a_common_stop() {
        let mut table = Table::tabbed(&["DIGEST", "SIZE", "LABELS"]);
        table.row(["0123456789".to_owned(), "1.085MB".to_owned(), "-".to_owned()]);
        assert_eq!(table.lines(), ["DIGEST\t\tSIZE\tLABELS", "0123456789\t1.085MB\t-"]);
    }
}
