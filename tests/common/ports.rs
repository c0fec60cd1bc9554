//! Free ports, for programs that cannot choose one themselves.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::ops::Range;

/// Ports of tests. No outgoing connection takes one of them before its program listens, or while that is
/// down (Linux: `ip_local_port_range`).
pub const PORTS: Range<u16> = 20_000..32_000;

/// Returns a free port. No other test gets it, in this process or another, until all [`PORTS`] had their
/// turn: a file holds the last one.
pub fn free_port() -> u16 {
    let name = format!("tael-test-ports-{}", nix::unistd::geteuid());
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options
        .open(std::env::temp_dir().join(name))
        .expect("ports");
    // It is released when the file is closed.
    file.lock().expect("lock");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("ports");
    let last = text.trim().parse().ok().filter(|last| PORTS.contains(last));
    let mut port: u16 = last.unwrap_or_else(|| fastrand::u16(PORTS));
    let used = used_ports();
    loop {
        port = match port + 1 {
            next if PORTS.contains(&next) => next,
            _ => PORTS.start,
        };
        if !used.contains(&port) {
            break;
        }
    }
    file.set_len(0).expect("ports");
    file.rewind().expect("ports");
    write!(file, "{port}").expect("ports");
    port
}

/// Returns the local ports of all sockets. Binding each to see whether it is free would take it for a moment;
/// a process that another test starts then holds it longer.
fn used_ports() -> Vec<u16> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let text: String = tables
        .iter()
        .map(|table| fs::read_to_string(table).unwrap_or_default())
        .collect();
    let ports = text.lines().filter_map(|line| {
        let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    });
    ports.collect()
}
