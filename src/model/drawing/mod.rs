//! A graph as a drawing: places of its nodes, and SVG.

mod order;
mod places;
mod svg;

pub use svg::svg;
