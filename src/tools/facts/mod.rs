//! `tael facts`: tells what this node is, and shows what others are.

mod collect;
pub mod folder;
pub mod forget;
pub mod gather;
pub mod publish;
pub mod rounds;
pub mod show;
pub mod view;
