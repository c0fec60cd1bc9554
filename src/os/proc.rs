//! Processes as `/proc` shows them (`proc(5)`).

use std::fs;

/// One process, at the moment of the look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// The id of its parent.
    pub parent: u32,
    /// The id of its process group.
    pub group: u32,
    /// When it was started, clock ticks since boot. Together with the id it identifies one process.
    pub start: u64,
    /// Whether it has ended, and waits to be reaped.
    pub ended: bool,
}

impl Process {
    /// Reads the process of this id; `None` if there is none, or none that we may see.
    #[must_use]
    pub fn read(pid: u32) -> Option<Self> {
        let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(pid, &String::from_utf8_lossy(&text))
    }

    fn parse(pid: u32, stat: &str) -> Option<Self> {
        // The name in parentheses may contain parentheses too.
        let (_, rest) = stat.rsplit_once(") ")?;
        // State is field 3, the parent 4, the group 5, and the start 22.
        let mut fields = rest.split(' ');
        Some(Self {
            pid,
            ended: matches!(fields.next()?, "Z" | "X" | "x"),
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
            start: fields.nth(16)?.parse().ok()?,
        })
    }

    /// Returns whether the process was started with `variable`, a `NAME=VALUE`, in its environment.
    #[must_use]
    pub fn has(&self, variable: &str) -> bool {
        let environment = self.environment();
        let mut entries = environment.split(|b| *b == 0);
        entries.any(|entry| entry == variable.as_bytes())
    }

    /// Returns the value that variable `name` had when the process was started; `None` if it had
    /// none, or one that is not UTF-8.
    #[must_use]
    pub fn value_of(&self, name: &str) -> Option<String> {
        let environment = self.environment();
        let mut entries = environment.split(|b| *b == 0);
        let value =
            entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        String::from_utf8(value?.to_vec()).ok()
    }

    /// Returns the environment that the process was started with. Those of other users cannot be
    /// read.
    fn environment(&self) -> Vec<u8> {
        fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default()
    }
}

/// Returns all processes that we may see; `None` where `/proc` is missing.
#[must_use]
pub fn all() -> Option<Vec<Process>> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let list: Vec<Process> = pids.filter_map(Process::read).collect();
    let own = std::process::id();
    list.iter()
        .any(|process| process.pid == own)
        .then_some(list)
}

/// Returns when process `pid` was started, clock ticks since boot; `None` if there is none.
/// Together with it, an id cannot mean a later process.
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    Process::read(pid).map(|process| process.start)
}

/// Returns the processes of `list` for which `is_root` holds, and their descendants, without
/// `except` and what descends from it only.
#[must_use]
pub fn with_descendants(
    list: &[Process],
    except: Option<u32>,
    is_root: impl Fn(&Process) -> bool,
) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::new();
    let mut rest: Vec<Process> = Vec::new();
    for process in list.iter().filter(|process| Some(process.pid) != except) {
        if is_root(process) {
            found.push(*process);
        } else {
            rest.push(*process);
        }
    }
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|process| process.pid) {
        next += 1;
        rest.retain(|process| {
            let is_child = process.parent == parent;
            if is_child {
                found.push(*process);
            }
            !is_child
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent: u32) -> Process {
        Process {
            pid,
            parent,
            group: pid,
            start: 0,
            ended: false,
        }
    }

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "7 (a) Z 1 (b) S 3 5 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 100 200";
        let want = Process {
            group: 5,
            start: 4711,
            ..process(7, 3)
        };
        assert_eq!(Process::parse(7, stat), Some(want));
        assert_eq!(Process::parse(7, "7 (a) S 3 5"), None);
    }

    #[test]
    fn we_see_ourselves() {
        let own = std::process::id();
        let list = all().expect("proc");
        let found = list.iter().find(|process| process.pid == own);
        assert_eq!(found.map(|process| process.start), start_time(own));
        let path = std::env::var("PATH").expect("PATH");
        assert!(found.is_some_and(|process| process.has(&format!("PATH={path}"))));
        assert!(found.is_some_and(|process| !process.has("PATH=")));
        assert_eq!(
            found.and_then(|process| process.value_of("PATH")),
            Some(path)
        );
        assert_eq!(found.and_then(|process| process.value_of("PAT")), None);
    }

    #[test]
    fn descendants_are_found_in_any_order() {
        let list = [(9, 8), (8, 2), (2, 1), (3, 1), (4, 3), (5, 4), (6, 4)];
        let list = list.map(|(pid, parent)| process(pid, parent));
        let of = |root: u32, except| {
            let found = with_descendants(&list, except, |process| process.pid == root);
            let mut pids: Vec<u32> = found.iter().map(|process| process.pid).collect();
            pids.sort_unstable();
            pids
        };
        assert_eq!(of(2, None), [2, 8, 9]);
        assert_eq!(of(3, None), [3, 4, 5, 6]);
        assert_eq!(of(3, Some(4)), [3]);
        assert_eq!(of(7, None), [0; 0]);
    }
}
