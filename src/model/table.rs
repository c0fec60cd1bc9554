//! Tables and colours for terminals: the layout of columns, and the colour of a state.

use unicode_width::UnicodeWidthChar;

/// Separates two columns.
const GAP: &str = "  ";

/// Minimum number of columns of a last cell beside the others; in fewer it would be cut to nothing.
const MIN_BESIDE: usize = 16;

/// Mark of a text that was cut.
const CUT: char = '…';

/// A colour of the terminal. Themes of terminals choose the shade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Good ends.
    Green,
    /// Bad ends, and what needs a person.
    Red,
    /// What runs.
    Cyan,
    /// What a person has stopped, and warnings.
    Yellow,
    /// What waits or rests.
    Faint,
}

impl Colour {
    /// Returns the colour of a state: of a unit, a status, a pipeline, a node or a check. Every
    /// command that colours a state asks here.
    #[must_use]
    pub fn of_state(word: &str) -> Option<Self> {
        match word {
            "succeeded" | "finished" | "online" | "ok" | "OK" => Some(Self::Green),
            "failed" | "falsestart" | "lost" | "CRITICAL" | "FAILED" => Some(Self::Red),
            "running" | "started" | "RUNNING" => Some(Self::Cyan),
            "canceled" | "retried" | "paused" | "WARNING" => Some(Self::Yellow),
            "pending" | "offline" | "UNKNOWN" | "DOWN" => Some(Self::Faint),
            _ => None,
        }
    }

    /// Returns `text` in this colour (ECMA-48, SGR).
    #[must_use]
    pub fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Green => "32",
            Self::Red => "1;31",
            Self::Cyan => "36",
            Self::Yellow => "33",
            Self::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Returns the number of columns that a terminal needs for printable `text`. Terminals add up the
/// widths of characters, as `wcwidth(3)` gives them.
#[must_use]
pub fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

fn char_width(c: char) -> usize {
    c.width().unwrap_or(0)
}

/// Returns `text` in at most `limit` columns. A text that is cut ends with `…`.
#[must_use]
pub fn cut(text: &str, limit: usize) -> String {
    // The mark takes a column. Combining characters after the last kept one stay with it.
    let (mut used, mut kept) = (0, 0);
    for (at, c) in text.char_indices() {
        used += char_width(c);
        if used > limit {
            let mut short = text.get(..kept).unwrap_or_default().to_owned();
            short.extend((limit > 0).then_some(CUT));
            return short;
        }
        if used < limit {
            kept = at + c.len_utf8();
        }
    }
    text.to_owned()
}

/// Returns `text` in at most `limit` columns; one that is cut shows its beginning and its end, which
/// tell topics apart.
#[must_use]
pub fn cut_middle(text: &str, limit: usize) -> String {
    if width(text) <= limit {
        return text.to_owned();
    }
    let Some(room) = limit.checked_sub(1) else {
        return String::new();
    };
    // It ends with the mark.
    let short = cut(text, room / 2 + 1);
    let left = limit.saturating_sub(width(&short));
    let (mut end, mut used) = (text.len(), 0);
    for (at, c) in text.char_indices().rev() {
        used += char_width(c);
        if used > left {
            break;
        }
        end = at;
    }
    short + text.get(end..).unwrap_or_default()
}

/// Returns `text` in at most `lines` lines of at most `limit` columns, 2 at least, broken at blanks if there are
/// any. What does not fit is cut.
#[must_use]
pub fn wrap(text: &str, limit: usize, lines: usize) -> Vec<String> {
    let mut wrapped = Vec::new();
    let mut rest = text;
    while width(rest) > limit && wrapped.len() + 1 < lines {
        let (mut used, mut end) = (0, 0);
        for (at, c) in rest.char_indices() {
            used += char_width(c);
            if used > limit && end > 0 {
                break;
            }
            end = at + c.len_utf8();
        }
        let (line, after) = rest.split_at(end);
        // The blank itself may be the character that did not fit.
        let blank = match after.starts_with(' ') {
            true => Some(end),
            false => line.rfind(' ').filter(|at| *at > 0),
        };
        let (line, after) = rest.split_at(blank.unwrap_or(end));
        wrapped.push(line.trim_end().to_owned());
        rest = after.trim_start();
    }
    wrapped.push(cut(rest, limit));
    wrapped
}

/// Side at which the cells of a column stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its heading.
    pub head: &'static str,
    /// The side at which its cells stand.
    pub align: Align,
    /// Number of columns of the terminal down to which it shrinks if the line is too long; 0 for a
    /// column that is never cut.
    pub least: usize,
    /// Maximum number of columns that it takes on a terminal, except for the last one of a table.
    pub most: usize,
    /// Whether its cells are cut in the middle, not at their ends.
    pub middle: bool,
}

impl Column {
    /// Returns a column of text that is never cut.
    #[must_use]
    pub const fn whole(head: &'static str) -> Self {
        Self {
            head,
            align: Align::Left,
            least: 0,
            most: usize::MAX,
            middle: false,
        }
    }

    /// Returns a column of numbers.
    #[must_use]
    pub const fn number(head: &'static str) -> Self {
        Self {
            align: Align::Right,
            ..Self::whole(head)
        }
    }

    /// Returns a column of text that shrinks to `least`, and takes `most` at most.
    #[must_use]
    pub const fn text(head: &'static str, least: usize, most: usize) -> Self {
        Self {
            head,
            align: Align::Left,
            least,
            most,
            middle: false,
        }
    }

    /// Returns the column with cells that are cut in the middle.
    #[must_use]
    pub const fn middle(self) -> Self {
        Self {
            middle: true,
            ..self
        }
    }

    fn cut(&self, text: &str, limit: usize) -> String {
        match self.middle {
            true => cut_middle(text, limit),
            false => cut(text, limit),
        }
    }
}

/// Widths of the columns of a table, found with its first rows: later ones are streamed.
#[derive(Debug, Clone)]
pub struct Layout {
    columns: Vec<(Column, usize)>,
    /// Columns of the terminal; `None` if nothing is cut.
    limit: Option<usize>,
}

impl Layout {
    /// Returns the layout of `columns` on a terminal of `limit` columns; without a limit nothing is
    /// cut. `rows` are the first rows.
    pub fn fit<'a, R>(
        columns: &[Column],
        rows: impl IntoIterator<Item = R>,
        limit: Option<usize>,
    ) -> Self
    where
        R: IntoIterator<Item = &'a str>,
    {
        let mut columns: Vec<(Column, usize)> = columns
            .iter()
            .map(|column| (*column, width(column.head)))
            .collect();
        for row in rows {
            for ((_, wide), cell) in columns.iter_mut().zip(row) {
                *wide = width(cell).max(*wide);
            }
        }
        if let Some(limit) = limit {
            Self::shrink(&mut columns, limit);
        }
        Self { columns, limit }
    }

    /// Shrinks the columns until a line has at most `limit` columns, the last ones first.
    fn shrink(columns: &mut [(Column, usize)], limit: usize) {
        let last = columns.len().saturating_sub(1);
        for (n, (column, wide)) in columns.iter_mut().enumerate() {
            if n < last {
                *wide = (*wide).min(column.most.max(width(column.head)));
            }
        }
        let gaps = GAP.len() * last;
        let whole = gaps + columns.iter().map(|(_, wide)| wide).sum::<usize>();
        let mut over = whole.saturating_sub(limit);
        for (column, wide) in columns
            .iter_mut()
            .rev()
            .filter(|(column, _)| column.least > 0)
        {
            let spare = wide.saturating_sub(column.least).min(over);
            *wide -= spare;
            over -= spare;
        }
    }

    /// Returns the line of headings.
    #[must_use]
    pub fn heading(&self) -> String {
        let heads = self.columns.iter().map(|(column, _)| (column.head, None));
        self.line(heads)
    }

    /// Returns the lines of a row as [`Layout::line`] does, but the last cell goes on below itself, in
    /// `lines` lines at most. Where the terminal has no room beside the others, it is below them.
    pub fn wrapped<'a>(
        &self,
        cells: impl IntoIterator<Item = (&'a str, Option<Colour>)>,
        lines: usize,
    ) -> String {
        let mut cells: Vec<_> = cells.into_iter().collect();
        let last = self.columns.len().saturating_sub(1);
        let before = self.columns.iter().take(last);
        let indent = before.map(|(_, wide)| wide + GAP.len()).sum::<usize>();
        let (Some(limit), Some((text, _))) = (self.limit, cells.last_mut()) else {
            return self.line(cells);
        };
        let least = self.columns.last().map_or(0, |(column, _)| column.least);
        let beside = limit.saturating_sub(indent);
        let (indent, room, is_beside) = match beside >= least.clamp(2, MIN_BESIDE) {
            true => (indent, beside, true),
            false => (GAP.len(), limit.saturating_sub(GAP.len()).max(2), false),
        };
        let mut pieces = match text.is_empty() {
            true => Vec::new(),
            false => wrap(text, room, lines),
        }
        .into_iter();
        let first = match is_beside {
            true => pieces.next().unwrap_or_default(),
            false => String::new(),
        };
        *text = &first;
        let mut row = self.line(cells);
        let rest = pieces;
        for piece in rest {
            row.push('\n');
            row.extend(std::iter::repeat_n(' ', indent));
            row += &piece;
        }
        row
    }

    /// Returns the line of a row: a printable text for each column, and its colour. It has no blanks
    /// at its end.
    pub fn line<'a>(&self, cells: impl IntoIterator<Item = (&'a str, Option<Colour>)>) -> String {
        let last = self.columns.len().saturating_sub(1);
        let (mut line, mut used, mut blanks) = (String::new(), 0, 0);
        for (n, ((column, wide), (text, colour))) in self.columns.iter().zip(cells).enumerate() {
            let gap = if n > 0 { GAP.len() } else { 0 };
            // A terminal that is too narrow for the table wraps no line.
            let left = self.limit.map(|limit| limit.saturating_sub(used + gap));
            let text = match left {
                Some(left) if n == last => column.cut(text, left),
                Some(left) => column.cut(text, left.min(*wide)),
                None => text.to_owned(),
            };
            let room = left
                .map_or(*wide, |left| left.min(*wide))
                .saturating_sub(width(&text));
            let (before, after) = match column.align {
                Align::Left => (0, room),
                Align::Right => (room, 0),
            };
            blanks += gap + before;
            used += gap + before + width(&text) + after;
            if !text.is_empty() {
                line.extend(std::iter::repeat_n(' ', std::mem::take(&mut blanks)));
                match colour {
                    Some(colour) => line += &colour.paint(&text),
                    None => line += &text,
                }
            }
            blanks += after;
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COLUMNS: &[Column] = &[
        Column::whole("ID"),
        Column::text("NAME", 6, 12),
        Column::number("EXIT"),
        Column::text("COMMAND", 10, 40),
    ];

    fn table(rows: &[[&str; 4]], limit: Option<usize>) -> Vec<String> {
        let layout = Layout::fit(COLUMNS, rows.iter().map(|row| row.iter().copied()), limit);
        let lines = rows
            .iter()
            .map(|row| layout.line(row.iter().map(|cell| (*cell, None))));
        std::iter::once(layout.heading()).chain(lines).collect()
    }

    #[test]
    fn wide_characters_take_two_columns_and_combining_ones_none() {
        for (text, wide) in [
            ("", 0),
            ("abc", 3),
            ("日本", 4),
            ("a\u{301}b", 2),
            ("😀", 2),
            ("…", 1),
        ] {
            assert_eq!(width(text), wide, "{text}");
        }
    }

    #[test]
    fn a_text_that_is_cut_says_so() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 5), "abcd…");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("e\u{301}e\u{301}e\u{301}", 2), "e\u{301}…");
        assert_eq!(cut("abc", 1), "…");
        assert_eq!(cut("abc", 0), "");
    }

    #[test]
    fn a_topic_that_is_cut_keeps_both_ends() {
        assert_eq!(cut_middle("lab/seq/status", 14), "lab/seq/status");
        assert_eq!(cut_middle("lab/seq/run7/status", 14), "lab/se…/status");
        assert_eq!(cut_middle("lab/日本語/status", 12), "lab/…/status");
        assert_eq!(cut_middle("abc", 2), "…c");
        assert_eq!(cut_middle("abc", 1), "…");
        assert_eq!(cut_middle("abc", 0), "");
    }

    #[test]
    fn a_text_goes_on_at_a_blank() {
        let text = "its payload is not JSON: a value";
        assert_eq!(wrap(text, 40, 3), [text]);
        assert_eq!(
            wrap(text, 12, 4),
            ["its payload", "is not JSON:", "a value"]
        );
        assert_eq!(wrap(text, 12, 2), ["its payload", "is not JSON…"]);
        assert_eq!(wrap("abcdefgh", 3, 9), ["abc", "def", "gh"]);
        assert_eq!(wrap("", 5, 2), [""]);
    }

    #[test]
    fn the_last_cell_goes_on_below_itself() {
        let columns = [Column::whole("A"), Column::text("WHY", 5, usize::MAX)];
        let layout = Layout::fit(&columns, [["one", "a long text"]], Some(12));
        let row = [("one", None), ("a long text", None)];
        assert_eq!(layout.wrapped(row, 3), "one  a long\n     text");
        assert_eq!(layout.wrapped(row, 1), "one  a long…");
        let layout = Layout::fit(&columns, [["one", "a long text"]], None);
        assert_eq!(layout.wrapped(row, 3), "one  a long text");
        // There is no room for it.
        let layout = Layout::fit(&columns, [["one", "a long text"]], Some(9));
        assert_eq!(layout.wrapped(row, 3), "one\n  a long\n  text");
        assert_eq!(layout.wrapped(row, 1), "one\n  a long…");
        assert_eq!(layout.wrapped([("one", None), ("", None)], 3), "one");
    }

    #[test]
    fn columns_stand_below_each_other_and_fit_the_terminal() {
        let rows = [
            ["1", "align", "0", "/opt/lab/align.sh --fast"],
            ["22", "日本語のパイプライン", "137", "true"],
        ];
        assert_eq!(
            table(&rows, None),
            [
                "ID  NAME                  EXIT  COMMAND",
                "1   align                    0  /opt/lab/align.sh --fast",
                "22  日本語のパイプライン   137  true",
            ]
        );
        assert_eq!(
            table(&rows, Some(40)),
            [
                "ID  NAME          EXIT  COMMAND",
                "1   align            0  /opt/lab/align.…",
                "22  日本語のパ…    137  true",
            ]
        );
        assert_eq!(
            table(&rows, Some(20)),
            [
                "ID  NAME    EXIT  C…",
                "1   align      0  /…",
                "22  日本…    137  t…"
            ]
        );
    }

    #[test]
    fn a_cell_of_a_later_row_is_cut_to_its_column() {
        let layout = Layout::fit(COLUMNS, [["1", "a", "0", "b"]], Some(40));
        let row = [
            "1",
            "longer than before",
            "1",
            "and longer than this column",
        ];
        let line = layout.line(row.map(|cell| (cell, None)));
        assert_eq!(line, "1   lon…     1  and longer than this co…");
        assert_eq!(width(&line), 40);
    }

    #[test]
    fn a_state_has_one_colour_and_blanks_have_none() {
        assert_eq!(Colour::of_state("succeeded"), Some(Colour::Green));
        assert_eq!(Colour::of_state("anything"), None);
        let layout = Layout::fit(
            &[Column::whole("A"), Column::whole("B")],
            [["long", "b"]],
            None,
        );
        let line = layout.line([("a", Some(Colour::Red)), ("", None)]);
        assert_eq!(line, "\u{1b}[1;31ma\u{1b}[0m");
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_the_terminal(
            rows in proptest::collection::vec(proptest::array::uniform4("[ -~日本é😀]{0,30}"), 1..5),
            limit in 1..120usize,
        ) {
            let rows: Vec<[&str; 4]> =
                rows.iter().map(|row| [&*row[0], &*row[1], &*row[2], &*row[3]]).collect();
            for line in table(&rows, Some(limit)) {
                prop_assert!(width(&line) <= limit, "{line:?}");
            }
        }

        #[test]
        fn a_cut_text_fits(text in any::<String>(), limit in 0..50usize) {
            let cut = cut(&text, limit);
            prop_assert!(width(&cut) <= limit);
            prop_assert!(cut == text || cut.is_empty() || cut.ends_with(CUT));
        }

        #[test]
        fn a_text_cut_in_its_middle_fits(text in any::<String>(), limit in 0..50usize) {
            let cut = cut_middle(&text, limit);
            prop_assert!(width(&cut) <= limit);
            prop_assert!(cut == text || cut.is_empty() || cut.contains(CUT));
        }

        #[test]
        fn wrapped_lines_fit(text in "[ -~日本é😀]{0,60}", limit in 2..30usize, lines in 1..5usize) {
            let wrapped = wrap(&text, limit, lines);
            prop_assert!(wrapped.len() <= lines);
            for line in wrapped {
                prop_assert!(width(&line) <= limit, "{line:?}");
            }
        }
    }
}
