//! Aligned columns.

use super::style;

/// Rows under a line of titles.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

/// The gap between two columns.
const GAP: usize = 3;

impl Table {
    /// A table without rows.
    pub fn new(titles: &[&str]) -> Self {
        Self { rows: vec![titles.iter().map(style::title).collect()] }
    }

    /// Adds a row; its cells may be coloured.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The text, a line per row. The last column is not padded.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| visible(cell)).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                text.push_str(cell);
                if column + 1 < row.len() {
                    text.push_str(&" ".repeat(widths[column] - visible(cell) + GAP));
                }
            }
            text.push('\n');
        }
        text
    }
}

/// How many characters of a text are seen: all but those of its colours.
fn visible(text: &str) -> usize {
    anstream::adapter::strip_str(text).map(|part| part.chars().count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_their_colours() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row([style::bad("cart"), "süß".to_owned()]);
        table.row(["recommend".to_owned(), style::good("ok")]);
        let text = anstream::adapter::strip_str(&table.render()).to_string();
        assert_eq!(text, "NAME        STATE\ncart        süß\nrecommend   ok\n");
    }
}
