//! Facts: what a node tells about itself, as promises about retained messages.

pub mod bounds;
pub mod change;
pub mod kind;
pub mod nodes;
pub mod own;
pub mod presence;
pub mod round;
pub mod told;
pub mod tree;
