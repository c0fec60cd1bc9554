//! README.md and docs/ are true: every fenced block is run, or compared with real output.
//!
//! The info string of a block is its kind: how it is tested. [`page::KINDS`] lists all kinds, and a
//! block of another kind fails. The host `mqtt.lab.example` stands for the broker of the test, and
//! `/usr/local/bin/` for the folder of the binaries.
// A test that fails panics, and so may its helpers. clippy.toml covers the tests themselves only.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

#[allow(dead_code)] // tests/it uses all of it
mod common;

#[path = "docs/broker.rs"]
mod broker;
#[path = "docs/commands.rs"]
mod commands;
#[path = "docs/day.rs"]
mod day;
#[path = "docs/page.rs"]
mod page;
#[path = "docs/pages.rs"]
mod pages;
#[path = "docs/tour.rs"]
mod tour;
#[path = "docs/wire.rs"]
mod wire;
#[path = "docs/words.rs"]
mod words;
