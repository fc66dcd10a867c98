//! A file of comma-separated values with a line of names. None of the files here has quoted cells
//! in the columns that are read.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context, Result};

/// The rows of a file.
pub(super) struct Csv {
    names: HashMap<String, usize>,
    rows: Vec<Vec<String>>,
}

impl Csv {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{}: no line of names", path.display()))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter(|line| !line.trim().is_empty());
        let cells = |line: &str| line.split(',').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let names = cells(lines.next()?).into_iter().enumerate().map(|(at, name)| (name, at)).collect();
        Some(Self { names, rows: lines.map(cells).collect() })
    }

    /// One column as numbers, by row.
    pub(super) fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let text = self.column(name)?;
        text.iter().map(|cell| cell.parse().with_context(|| format!("column {name}: {cell:?} is no number"))).collect()
    }

    /// One column, by row.
    pub(super) fn column(&self, name: &str) -> Result<Vec<&str>> {
        let at = *self.names.get(name).with_context(|| format!("no column {name}"))?;
        Ok(self.rows.iter().map(|row| row.get(at).map_or("", String::as_str)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_name() {
        let csv = Csv::parse("a,b\n1, x\n2.5,\n\n").unwrap();
        assert_eq!(csv.numbers("a").unwrap(), [1.0, 2.5]);
        assert_eq!(csv.column("b").unwrap(), ["x", ""]);
        assert!(csv.numbers("b").is_err() && csv.column("c").is_err());
    }
}
