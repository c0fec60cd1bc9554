//! Draws a graph as SVG (w3.org/TR/SVG11).
//!
//! The names in it are those of senders. They are only ever text and values of attributes, escaped. Colours
//! are attributes, which every style sheet overrides.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::model::drawing::order::{Arrow, arrows};
use crate::model::drawing::places::{Point, places};
use crate::model::network::{Graph, Node};
use crate::model::table;
use crate::model::text::printable;

/// Maximum number of nodes, and of edges, in a drawing.
const MAX_NODES: usize = 2_000;
const MAX_EDGES: usize = 5_000;

/// Maximum width of a label, columns, and of a title, characters.
const MAX_LABEL: usize = 28;
const MAX_TITLE: usize = 500;

/// Width of a column of a label, room beside it, and the least width of a node.
const COLUMN: f64 = 7.6;
const PADDING: f64 = 12.0;
const MIN_WIDTH: f64 = 56.0;

/// Height of a node.
const HEIGHT: f64 = 30.0;

/// Room around everything.
const MARGIN: f64 = 12.0;

/// Length and half of the width of the head of an arrow.
const HEAD: Point = (8.0, 4.0);

/// Returns `text` for XML 1.0. Characters that it cannot have become U+FFFD.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

struct Box<'a> {
    name: &'a str,
    /// The state of a pipeline; `None` for a topic.
    state: Option<&'a str>,
    label: String,
}

/// Returns the name of a class for `state`, which a sender has chosen.
fn class(state: &str) -> &'static str {
    let known = ["online", "paused", "offline", "lost"];
    let found = known.into_iter().find(|known| *known == state);
    found.unwrap_or("unknown")
}

/// Returns a drawing of `graph`, and why a part of it is missing, if one is.
#[must_use]
pub fn svg(graph: &Graph) -> (String, Option<String>) {
    let pipelines = graph.pipelines.len().min(MAX_NODES);
    let boxed = |name: &'_ str| table::cut(&printable(name, MAX_TITLE), MAX_LABEL);
    let own = graph.pipelines.iter().take(MAX_NODES);
    let mut boxes: Vec<Box<'_>> = own
        .map(|(name, state)| Box {
            name,
            state: Some(state),
            label: boxed(name),
        })
        .collect();
    let topics = graph.topics.iter().take(MAX_NODES - pipelines);
    boxes.extend(topics.map(|name| Box {
        name,
        state: None,
        label: boxed(name),
    }));
    let place = |node: &Node| match node {
        Node::Pipeline(n) => Some(*n).filter(|n| *n < pipelines),
        Node::Topic(n) => Some(n + pipelines).filter(|n| *n < boxes.len()),
    };
    let mut edges: Vec<(usize, usize)> = Vec::new();
    let mut silent = HashMap::new();
    let mut left_out = graph.pipelines.len() + graph.topics.len() - boxes.len();
    for (from, to, is_silent) in &graph.edges {
        match (place(from), *to < pipelines) {
            (Some(from), true) if edges.len() < MAX_EDGES || silent.contains_key(&(from, *to)) => {
                // One line, and a whole one if one of two is.
                let known = silent.entry((from, *to)).or_insert_with(|| {
                    edges.push((from, *to));
                    true
                });
                *known &= is_silent;
            }
            _ => left_out += 1,
        }
    }
    let sizes: Vec<Point> = boxes
        .iter()
        .map(|one| (width(&one.label), HEIGHT))
        .collect();
    let kept: Vec<((usize, usize), Arrow)> = edges
        .iter()
        .zip(arrows(boxes.len(), &edges))
        .filter_map(|(edge, arrow)| Some((*edge, arrow?)))
        .collect();
    let arrows: Vec<Arrow> = kept.iter().map(|(_, arrow)| *arrow).collect();
    let places = places(&sizes, &arrows);
    let (width, height) = (places.size.0 + 2.0 * MARGIN, places.size.1 + 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"graph\" role=\"img\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<title>Which pipeline starts which</title>\n"
    );
    let name = |n: usize| boxes.get(n).map_or("", |one| one.name);
    let middle = |n: usize| places.nodes.get(n).copied().unwrap_or_default();
    let half = |n: usize| sizes.get(n).map_or(0.0, |(width, _)| width / 2.0);
    for (((from, to), arrow), bends) in kept.iter().zip(&places.bends) {
        let (left, right) = (middle(arrow.left), middle(arrow.right));
        let mut points = vec![(left.0 + half(arrow.left), left.1)];
        points.extend(bends);
        points.push((right.0 - half(arrow.right), right.1));
        if arrow.is_back {
            points.reverse();
        }
        let is_silent = silent.get(&(*from, *to)) == Some(&true);
        let mut text = printable(name(*from), MAX_TITLE);
        text.push_str(if is_silent { " (silent) → " } else { " → " });
        text.push_str(&printable(name(*to), MAX_TITLE));
        let start = match boxes.get(*from).and_then(|one| one.state) {
            Some(_) => format!(" data-from=\"{}\"", escaped(name(*from))),
            None => String::new(),
        };
        let _ = writeln!(
            out,
            "<g class=\"edge{}\"{start} data-to=\"{}\"><title>{}</title>{}</g>",
            if is_silent { " silent" } else { "" },
            escaped(name(*to)),
            escaped(&text),
            line(&points, is_silent),
        );
    }
    for (n, one) in boxes.iter().enumerate() {
        let (x, y) = middle(n);
        let (x, y) = (x + MARGIN, y + MARGIN);
        let (left, top, width) = (x - half(n), y - HEIGHT / 2.0, 2.0 * half(n));
        let name = escaped(one.name);
        let title = escaped(&printable(one.name, MAX_TITLE));
        let (group, title, round, dashes) = match one.state {
            Some(state) => {
                let state = class(state);
                let dashes = match state {
                    "online" => "",
                    _ => " stroke-dasharray=\"4 3\"",
                };
                let group = format!("class=\"node {state}\" data-who=\"{name}\"");
                (group, format!("{title}: {state}"), 4.0, dashes)
            }
            None => ("class=\"topic\"".to_owned(), title, HEIGHT / 2.0, ""),
        };
        let _ = writeln!(
            out,
            "<g {group}><title>{title}</title><rect x=\"{left:.1}\" y=\"{top:.1}\" \
             width=\"{width:.1}\" height=\"{HEIGHT:.1}\" rx=\"{round:.0}\" fill=\"#fff\" \
             stroke=\"#444\"{dashes}/><text x=\"{x:.1}\" y=\"{:.1}\" \
             text-anchor=\"middle\">{}</text></g>",
            y + 4.5,
            escaped(&one.label),
        );
    }
    out.push_str("</svg>\n");
    let cause = format!(
        "a drawing has at most {MAX_NODES} nodes and {MAX_EDGES} lines: {left_out} are left out"
    );
    (out, (left_out > 0).then_some(cause))
}

/// Returns the width of a node with this label.
#[allow(clippy::cast_precision_loss)] // a few columns
fn width(label: &str) -> f64 {
    (table::width(label) as f64 * COLUMN + 2.0 * PADDING).max(MIN_WIDTH)
}

/// Returns a curve through `points`, and the head of an arrow at its end.
fn line(points: &[Point], is_silent: bool) -> String {
    let points: Vec<Point> = points
        .iter()
        .map(|(x, y)| (x + MARGIN, y + MARGIN))
        .collect();
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return String::new();
    };
    let way = if last.0 >= first.0 { 1.0 } else { -1.0 };
    let neck = last.0 - way * HEAD.0;
    let mut path = format!("M{:.1} {:.1}", first.0, first.1);
    for pair in points.windows(2) {
        let [(x, y), (to_x, to_y)] = pair else {
            continue;
        };
        let to_x = if (*to_x, *to_y) == *last { neck } else { *to_x };
        let bend = (to_x - x) / 2.0;
        let _ = write!(
            path,
            " C{:.1} {y:.1} {:.1} {to_y:.1} {to_x:.1} {to_y:.1}",
            x + bend,
            to_x - bend,
        );
    }
    let (x, y) = last;
    let dashes = if is_silent {
        " stroke-dasharray=\"2 4\""
    } else {
        ""
    };
    format!(
        "<path d=\"{path}\" fill=\"none\" stroke=\"#666\"{dashes}/>\
         <polygon points=\"{x:.1},{y:.1} {neck:.1},{:.1} {neck:.1},{:.1}\" fill=\"#666\"/>",
        y - HEAD.1,
        y + HEAD.1,
    )
}
