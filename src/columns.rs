//! Tables for a terminal.

/// Lines of cells, with the columns aligned: to the left as far as `left` columns, the others to the
/// right. A line may have fewer cells than the first.
pub fn columns(lines: &[Vec<String>], left: usize) -> String {
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text += "\n";
    }
    text
}

/// A number of bytes as a person reads it: 1.7 GB. Powers of ten, as disks and bandwidths have.
pub fn bytes(n: usize) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(unit, _)| n as f64 >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", n as f64 / unit),
        None => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let lines = [["stage", "ms"], ["text", "1.5"], ["denoise", "120.0"]];
        let lines = lines.map(|line| line.map(String::from).to_vec());
        assert_eq!(columns(&lines, 1), "stage       ms\ntext       1.5\ndenoise  120.0\n");
    }

    #[test]
    fn bytes_are_rounded_to_a_unit() {
        assert_eq!(
            ["12 B", "1.5 kB", "2.0 GB"],
            [bytes(12), bytes(1500), bytes(2_000_000_000)].each_ref().map(|s| s.as_str())
        );
    }
}
