//! The units of submitted work on a node.

use std::process::ExitCode;

use crate::error::{Error, Result};
use crate::model::remote::wire::{Answer, Request, State};
use crate::model::table::{Colour, Column, Layout};
use crate::model::text::{escaped_json, printable};
use crate::os::logging::say;
use crate::os::terminal::Terminal;
use crate::tools::work::node::dialog::{Dialog, Node};
use crate::tools::work::node::report;

/// Maximum length of a cell, characters. A terminal shows less.
const MAX_CELL: usize = 200;

/// The columns.
const COLUMNS: &[Column] = &[
    Column::whole("UNIT"),
    Column::text("TYPE", 8, 24),
    Column::whole("STATE"),
    Column::number("EXIT"),
    Column::text("SUBMITTER", 8, 40),
];

/// Lists the units, oldest first, page by page.
pub(super) async fn list(node: &Node, failed: bool, json: bool) -> Result<ExitCode> {
    let mut dialog = Dialog::open(node, "")?;
    let terminal = Terminal::of_stdout();
    let (mut after, mut count, mut layout) = (0, 0, None);
    loop {
        let (mut units, next) = ask(&mut dialog, after).await?;
        units.retain(|state| !failed || state.state == "failed");
        let mut text = String::new();
        if json {
            for (state, n) in units.iter().zip(count..) {
                text += if n == 0 { "[" } else { "," };
                text += &escaped_json(&report(node, state).to_string());
            }
        } else if !units.is_empty() {
            let rows: Vec<_> = units
                .iter()
                .map(|state| cells(state, terminal.is_terminal()))
                .collect();
            let layout = layout.get_or_insert_with(|| {
                let rows = rows.iter().map(|row| row.iter().map(String::as_str));
                let layout = Layout::fit(COLUMNS, rows, terminal.width);
                text = layout.heading() + "\n";
                layout
            });
            for row in &rows {
                text += &line(layout, row, terminal.colour);
                text += "\n";
            }
        }
        count += units.len();
        crate::tools::print_part(&text)?;
        match next {
            Some(next) => after = next,
            None => break,
        }
    }
    dialog.close().await;
    match (json, count) {
        (true, 0) => crate::tools::print_part("[]\n")?,
        (true, _) => crate::tools::print_part("]\n")?,
        (false, 0) => say(&format!("no unit to list on node {}", node.name)),
        (false, _) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for the units after the place `after`. Returns them, and the place where more of them begin.
async fn ask(dialog: &mut Dialog<'_>, after: i64) -> Result<(Vec<State>, Option<i64>)> {
    let request = Request::List {
        after,
        signature: None,
    };
    let page = |answer| match answer {
        // The same page may come twice.
        Answer::Units {
            after: of,
            units,
            next,
        } if of == after => Some((units, next)),
        _ => None,
    };
    let (units, next) = dialog.ask("list units", &request, page).await?;
    if next.is_some_and(|next| next <= after) {
        let name = &dialog.node.name;
        return Err(Error::data(format!(
            "list units on node {name}: its answer does not go on"
        )));
    }
    Ok((units, next))
}

/// Returns the cells of a row. In a pipe each is one word.
fn cells(state: &State, is_terminal: bool) -> [String; 5] {
    let word = |text: &str| {
        let text = printable(text, MAX_CELL);
        match (text.is_empty(), is_terminal) {
            (true, _) => "-".to_owned(),
            (false, true) => text,
            (false, false) => text.replace(' ', "\\u{20}"),
        }
    };
    [
        word(&state.unit),
        word(&state.kind),
        word(&state.state),
        state.code.map_or("-".to_owned(), |code| code.to_string()),
        word(&state.submitter),
    ]
}

fn line(layout: &Layout, row: &[String; 5], colour: bool) -> String {
    let state = |n: usize, text: &str| (n == 2 && colour).then(|| Colour::of_state(text)).flatten();
    let cells = row.iter().enumerate();
    layout.line(cells.map(|(n, text)| (text.as_str(), state(n, text))))
}
