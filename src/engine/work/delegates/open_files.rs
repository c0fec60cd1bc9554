//! Which units have open files for output: there may be more units than descriptors.

use std::collections::VecDeque;

/// Maximum number of units whose files stay open between two pieces of output. Further ones cost a unit
/// that was idle for longer an `open(2)` at its next piece.
const MAX_OPEN: usize = 32;

/// Units with open files, the last that has written at the end.
#[derive(Debug, Default)]
pub struct OpenFiles(VecDeque<String>);

impl OpenFiles {
    /// Notes that output of `unit` was written. Returns a unit whose files must be closed.
    pub fn wrote(&mut self, unit: &str) -> Option<String> {
        if self.0.back().is_some_and(|last| last == unit) {
            return None;
        }
        if let Some(at) = self.0.iter().position(|open| open == unit) {
            self.0.remove(at);
        }
        self.0.push_back(unit.to_owned());
        match self.0.len() > MAX_OPEN {
            true => self.0.pop_front(),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_that_was_idle_for_longest_gives_its_place() {
        let mut open = OpenFiles::default();
        for unit in 0..MAX_OPEN {
            assert_eq!(open.wrote(&unit.to_string()), None);
        }
        assert_eq!(open.wrote("0"), None);
        assert_eq!(open.wrote("0"), None);
        assert_eq!(open.wrote("another"), Some("1".to_owned()));
        assert_eq!(open.wrote("1"), Some("2".to_owned()));
        assert_eq!(open.wrote("0"), None);
    }
}
