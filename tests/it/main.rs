//! Tests from outside: our commands, run against real and scripted brokers.
//!
//! They are one binary, which links once and shares all threads. They also share a process: none may
//! change its environment, folder, limits or signals.
// A test that fails panics, and so may its helpers. clippy.toml covers the tests themselves only.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

#[path = "../common/mod.rs"]
mod common;

mod amqp;
mod answering;
mod answers;
mod asking;
mod asking_attacks;
mod asking_blocked;
mod asking_faults;
mod asking_interop;
mod asking_loops;
mod bad_input;
mod bad_options;
mod blocked_output;
mod burst;
mod chain;
mod client;
mod cluster;
mod config;
mod control;
mod crash;
mod delegation;
mod delegation_faults;
mod descent;
mod drawing;
mod embedded;
mod events;
mod export;
mod facts;
mod facts_docs;
mod facts_scripts;
mod facts_views;
mod faults;
mod foreign_state;
mod fuzz;
mod gateway;
mod gateway_check;
mod gateway_crowds;
mod gateway_http;
mod gateway_kills;
mod gateway_page;
mod gateway_page_bounds;
mod gateway_queues;
mod gateway_reload;
mod gateway_route_work;
mod gateway_routes;
mod gateway_tls;
mod gateway_units;
mod gateway_wait;
mod gateway_wire;
mod gateway_work;
mod gateway_xmlrpc;
mod help;
mod hostile_text;
mod identity;
mod kept;
mod lasting;
mod ledger;
mod limits;
mod listeners;
mod logging;
mod offers;
mod outbox;
mod output;
mod package;
mod pair;
mod playbooks;
mod ports;
mod queue_attacks;
mod queue_faults;
mod queue_options;
mod queue_tools;
mod queues;
mod queues_interop;
mod quota;
mod rabbit;
mod receptor;
mod redelivery;
mod remote;
mod requests;
mod retained;
mod roots;
mod runner_protocol;
mod runners;
mod session;
mod session_protocol;
mod settings;
mod shared;
mod starter;
mod systemd;
mod terminal;
mod tls;
mod tools;
mod transfers;
mod units;
mod watching;
mod wire;
mod work_list;
mod work_retry;
mod work_types;
