//! Ports that tests choose for programs.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::thread;

use crate::common::ports::{PORTS, free_port};

#[test]
fn no_two_tests_get_one_port() {
    let tests: Vec<_> = (0..8)
        .map(|_| thread::spawn(|| (0..25).map(|_| free_port()).collect::<Vec<_>>()))
        .collect();
    let chosen: Vec<u16> = tests
        .into_iter()
        .flat_map(|test| test.join().expect("test"))
        .collect();
    let different: BTreeSet<u16> = chosen.iter().copied().collect();
    assert_eq!(different.len(), 200, "{chosen:?}");
    assert!(chosen.iter().all(|port| PORTS.contains(port)), "{chosen:?}");
    // One that is in use is left out.
    let taken = (0..20).find_map(|_| TcpListener::bind(("127.0.0.1", free_port() + 5)).ok());
    let taken = taken.expect("a port");
    let taken_port = taken.local_addr().expect("address").port();
    let next: Vec<u16> = (0..25).map(|_| free_port()).collect();
    assert!(!next.contains(&taken_port), "{taken_port} in {next:?}");
}
