//! Tables of text.

/// A column: its name, and whether its values line up on the right.
pub(crate) struct Column(pub &'static str, pub bool);

/// Lays out rows under their columns, two spaces between; `header` says whether the names stand above them.
pub(crate) fn lay_out(columns: &[Column], rows: &[Vec<String>], header: bool) -> String {
    let names: Vec<String> = columns.iter().map(|column| column.0.to_owned()).collect();
    let all: Vec<&Vec<String>> = header.then_some(&names).into_iter().chain(rows).collect();
    let width = |i: usize| all.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let cell = |(i, text): (usize, &String)| {
        let width = widths[i];
        if columns[i].1 { format!("{text:>width$}") } else { format!("{text:width$}") }
    };
    let line = |row: &&Vec<String>| row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned();
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let columns = [Column("KEY", false), Column("SIZE", true), Column("WHERE", false)];
        let rows = [["ns/ä", "2 B", "memory"], ["ns/long", "33.8 MiB", ""]].map(|row| row.map(String::from).to_vec());
        assert_eq!(lay_out(&columns, &rows, true), "KEY          SIZE  WHERE\nns/ä          2 B  memory\nns/long  33.8 MiB");
        assert_eq!(lay_out(&columns, &rows[..1], false), "ns/ä  2 B  memory");
    }
}
