//! Places of the nodes of a graph, and the ways of its edges.
//!
//! One library computes them, with the algorithm of Gansner et al. ("A technique for drawing directed
//! graphs", 1993). It fails for graphs with a circle, so it sees none: [`order`](super::order) opens
//! them before. Its time grows fast, and large graphs get simple columns.

use rust_sugiyama::configure::Config;
use rust_sugiyama::from_vertices_and_edges;

use crate::model::drawing::order::{Arrow, columns};

/// Maximum number of nodes, of edges, and of nodes and bends that the library places; a graph of this size
/// takes it a quarter of a second.
const MAX_NODES: usize = 300;
const MAX_EDGES: usize = 1_000;
const MAX_POINTS: usize = 1_200;

/// Room between two columns, two nodes in a column, and parts of the graph.
const COLUMN_GAP: f64 = 64.0;
const ROW_GAP: f64 = 14.0;
const PART_GAP: f64 = 24.0;

/// Room of a bend in its column.
const BEND: f64 = 10.0;

/// Width of the rows of nodes without edges, at least.
const ROW_WIDTH: f64 = 900.0;

/// A point; x grows to the right and y downwards.
pub(super) type Point = (f64, f64);

/// Where everything is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Places {
    /// The middle of each node.
    pub nodes: Vec<Point>,
    /// The bends of each arrow, from left to right.
    pub bends: Vec<Vec<Point>>,
    /// Width and height of everything.
    pub size: Point,
}

/// What a vertex of the library is.
#[derive(Debug, Clone, Copy)]
enum What {
    /// A node.
    Node(usize),
    /// A bend of an arrow.
    Bend(usize),
}

/// Returns the places of nodes with these sizes and of the arrows between them.
pub(super) fn places(sizes: &[Point], arrows: &[Arrow]) -> Places {
    let mut has_edge = vec![false; sizes.len()];
    for n in arrows.iter().flat_map(|arrow| [arrow.left, arrow.right]) {
        if let Some(has) = has_edge.get_mut(n) {
            *has = true;
        }
    }
    let linked = has_edge.iter().filter(|has| **has).count();
    let mut places = Places {
        nodes: vec![(0.0, 0.0); sizes.len()],
        bends: vec![Vec::new(); arrows.len()],
        size: (0.0, 0.0),
    };
    match linked <= MAX_NODES && arrows.len() <= MAX_EDGES {
        true => layered(sizes, arrows, &has_edge, &mut places),
        false => simple(sizes, arrows, &has_edge, &mut places),
    }
    rows(sizes, &has_edge, &mut places);
    places
}

/// Has the library place all nodes with edges.
fn layered(sizes: &[Point], arrows: &[Arrow], has_edge: &[bool], places: &mut Places) {
    let column = columns(sizes.len(), arrows);
    let at = |n: usize| column.get(n).copied().unwrap_or(0);
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    // What each vertex of the library is. It numbers them from 0.
    let mut whats: Vec<What> = Vec::new();
    let mut own = vec![0; sizes.len()];
    for ((n, own), _) in own
        .iter_mut()
        .enumerate()
        .zip(has_edge)
        .filter(|(_, has)| **has)
    {
        *own = whats.len();
        whats.push(What::Node(n));
    }
    let mut edges = Vec::new();
    for (place, arrow) in arrows.iter().enumerate() {
        let vertex = |n: usize| number(own.get(n).copied().unwrap_or(0));
        let mut last = vertex(arrow.left);
        let between = at(arrow.left) + 1..at(arrow.right);
        if whats.len() + between.len() <= MAX_POINTS {
            for _ in between {
                let bend = number(whats.len());
                whats.push(What::Bend(place));
                edges.push((last, bend));
                last = bend;
            }
        }
        edges.push((last, vertex(arrow.right)));
    }
    let size_of = |n: usize| match whats.get(n) {
        Some(What::Node(n)) => sizes.get(*n).copied().unwrap_or((BEND, BEND)),
        _ => (BEND, BEND),
    };
    // Columns are what the library calls rows.
    let vertices: Vec<(u32, Point)> = (0..whats.len())
        .map(|n| {
            let (width, height) = size_of(n);
            (number(n), (height + ROW_GAP, width + COLUMN_GAP))
        })
        .collect();
    edges.sort_unstable();
    edges.dedup();
    let config = Config {
        vertex_spacing: 0.0,
        dummy_size: BEND,
        ..Config::default()
    };
    let mut top = 0.0;
    for (part, _, _) in from_vertices_and_edges(&vertices, &edges, &config) {
        // The extents as they are: those of the library count vertices. Its x is our y.
        let (mut least, mut most) = ((f64::INFINITY, f64::INFINITY), (0.0_f64, 0.0_f64));
        for (n, (y, x)) in &part {
            let (width, height) = size_of(*n);
            least = (least.0.min(x - width / 2.0), least.1.min(y - height / 2.0));
            most = (most.0.max(x + width / 2.0), most.1.max(y + height / 2.0));
        }
        let mut found: Vec<(usize, Point)> = part
            .iter()
            .map(|(n, (y, x))| (*n, (x - least.0, y - least.1 + top)))
            .collect();
        // The bends of an arrow follow each other.
        found.sort_unstable_by_key(|(n, _)| *n);
        for (n, at) in found {
            match whats.get(n) {
                Some(What::Bend(arrow)) => {
                    places
                        .bends
                        .get_mut(*arrow)
                        .into_iter()
                        .for_each(|b| b.push(at));
                }
                Some(What::Node(n)) => {
                    places
                        .nodes
                        .get_mut(*n)
                        .into_iter()
                        .for_each(|own| *own = at);
                }
                None => {}
            }
        }
        let (last_x, last_y) = (most.0 - least.0, most.1 - least.1);
        places.size.0 = places.size.0.max(last_x);
        top += last_y + PART_GAP;
        places.size.1 = top - PART_GAP;
    }
}

/// Places all nodes with edges in columns, in their order.
fn simple(sizes: &[Point], arrows: &[Arrow], has_edge: &[bool], places: &mut Places) {
    let column = columns(sizes.len(), arrows);
    let count = column.iter().max().map_or(0, |last| last + 1);
    let mut widths = vec![0.0_f64; count];
    for (column, (width, _)) in column.iter().zip(sizes) {
        if let Some(own) = widths.get_mut(*column) {
            *own = own.max(*width);
        }
    }
    let mut lefts = Vec::with_capacity(count);
    let mut left = 0.0;
    for width in &widths {
        lefts.push(left);
        left += width + COLUMN_GAP;
    }
    let mut tops = vec![0.0_f64; count];
    for (n, ((column, (width, height)), has)) in column.iter().zip(sizes).zip(has_edge).enumerate()
    {
        let (Some(left), Some(top), true) = (lefts.get(*column), tops.get_mut(*column), *has)
        else {
            continue;
        };
        if let Some(own) = places.nodes.get_mut(n) {
            *own = (left + width / 2.0, *top + height / 2.0);
        }
        *top += height + ROW_GAP;
        places.size.0 = places.size.0.max(left + width);
        places.size.1 = places.size.1.max(*top - ROW_GAP);
    }
}

/// Places the nodes without edges in rows below the others.
fn rows(sizes: &[Point], has_edge: &[bool], places: &mut Places) {
    let limit = places.size.0.max(ROW_WIDTH);
    let mut top = match places.size.1 > 0.0 {
        true => places.size.1 + PART_GAP,
        false => 0.0,
    };
    let (mut left, mut tallest) = (0.0_f64, 0.0_f64);
    for (n, ((width, height), has)) in sizes.iter().zip(has_edge).enumerate() {
        if *has {
            continue;
        }
        if left > 0.0 && left + width > limit {
            top += tallest + ROW_GAP;
            (left, tallest) = (0.0, 0.0);
        }
        if let Some(own) = places.nodes.get_mut(n) {
            *own = (left + width / 2.0, top + height / 2.0);
        }
        tallest = tallest.max(*height);
        places.size.0 = places.size.0.max(left + width);
        places.size.1 = places.size.1.max(top + height);
        left += width + ROW_GAP;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::drawing::order::arrows;
    use proptest::prelude::*;

    const SIZE: Point = (100.0, 30.0);

    fn placed(count: usize, edges: &[(usize, usize)]) -> Places {
        let arrows: Vec<Arrow> = arrows(count, edges).into_iter().flatten().collect();
        places(&vec![SIZE; count], &arrows)
    }

    fn apart(places: &Places) {
        for (n, a) in places.nodes.iter().enumerate() {
            assert!(
                a.0 >= SIZE.0 / 2.0 - 0.1 && a.0 <= places.size.0,
                "{n}: {places:?}"
            );
            assert!(
                a.1 >= SIZE.1 / 2.0 - 0.1 && a.1 <= places.size.1,
                "{n}: {places:?}"
            );
            for b in &places.nodes[..n] {
                let is_apart = (a.0 - b.0).abs() >= SIZE.0 || (a.1 - b.1).abs() >= SIZE.1;
                assert!(is_apart, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn a_chain_goes_from_left_to_right_and_an_edge_bends_around_it() {
        let places = placed(4, &[(0, 1), (1, 2), (0, 2)]);
        let x = |n: usize| places.nodes[n].0;
        assert!(x(0) < x(1) && x(1) < x(2), "{places:?}");
        assert_eq!(
            places.bends.iter().map(Vec::len).collect::<Vec<_>>(),
            [0, 0, 1]
        );
        assert!(
            (places.bends[2][0].1 - places.nodes[1].1).abs() > SIZE.1 / 2.0,
            "{places:?}"
        );
        assert!(places.nodes[3].1 > places.nodes[1].1, "the last is below");
        apart(&places);
    }

    #[test]
    fn large_graphs_have_columns_soon() {
        for (count, edges) in [(1_000, 5_000), (300, 1_000), (300, 299)] {
            let edges: Vec<_> = (0..edges)
                .map(|n| (n % count, (n * 7 + 1) % count))
                .collect();
            apart(&placed(count, &edges));
        }
        let chain: Vec<_> = (0..299).map(|n| (n, n + 1)).collect();
        apart(&placed(300, &chain));
        let star: Vec<_> = (0..299).map(|n| (n, 299)).collect();
        apart(&placed(300, &star));
    }

    proptest! {
        #[test]
        fn nodes_never_overlap(edges in proptest::collection::vec((0_usize..12, 0_usize..12), 0..40)) {
            let places = placed(12, &edges);
            apart(&places);
            prop_assert_eq!(&places, &placed(12, &edges), "the same again");
        }
    }
}
