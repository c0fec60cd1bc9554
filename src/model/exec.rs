//! Size limits for the arguments and environment of a command.
//!
//! Source: Linux, `execve(2)`, "Limits on size of arguments and environment", and
//! `bprm_stack_limits` in `fs/exec.c`: a quarter of the stack limit, at least 128 KiB and at most 6
//! MiB, for all strings and a pointer to each.

use crate::model::variables::Variables;

/// Minimum that the system allows under every stack limit, bytes.
const LEAST: u64 = 128 * 1024;

/// Maximum that the system allows, bytes.
const MOST: u64 = 6 * 1024 * 1024;

/// Size of a pointer to a string, bytes.
const POINTER: usize = size_of::<usize>();

/// Room for what the system adds, bytes: the path of the program, and of interpreters in the first
/// lines of scripts.
const RESERVE: usize = 16 * 1024;

/// Returns what the system allows under a stack limit of `stack` bytes (`None`: no limit).
#[must_use]
pub fn allowed(stack: Option<u64>) -> usize {
    let allowed = (stack.unwrap_or(u64::MAX) / 4).clamp(LEAST, MOST);
    usize::try_from(allowed).unwrap_or(usize::MAX)
}

/// Returns the size of a string of `length` bytes with its NUL and its pointer.
#[must_use]
pub const fn string(length: usize) -> usize {
    length + 1 + POINTER
}

/// Returns the size of a variable.
#[must_use]
pub const fn variable(name: usize, value: usize) -> usize {
    string(name + 1 + value)
}

/// Removes from `variables` what does not fit, if everything else takes `fixed` of `allowed` bytes.
/// Half of the rest stays free, because the command runs commands of its own with longer arguments.
/// Returns how many were removed; the first ones stay.
pub fn fit(variables: &mut Variables, fixed: usize, allowed: usize) -> usize {
    let mut room = allowed.saturating_sub(fixed).saturating_sub(RESERVE) / 2;
    let before = variables.len();
    variables.retain(|(name, value)| {
        let left = room.checked_sub(variable(name.len(), value.len()));
        room = left.unwrap_or(room);
        left.is_some()
    });
    before - variables.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_allows_a_quarter_of_the_stack_within_bounds() {
        assert_eq!(allowed(Some(8 * 1024 * 1024)), 2 * 1024 * 1024);
        assert_eq!(allowed(Some(1)), 128 * 1024);
        assert_eq!(allowed(None), 6 * 1024 * 1024);
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let list = || -> Variables {
            let large = ("B".into(), "x".repeat(10_000).into());
            vec![("A".into(), "1".into()), large, ("C".into(), "2".into())]
        };
        let names = |list: &Variables| list.iter().map(|v| v.0.clone()).collect::<String>();
        let mut all = list();
        assert_eq!(fit(&mut all, 0, 1024 * 1024), 0);
        assert_eq!(names(&all), "ABC");
        let mut some = list();
        assert_eq!(fit(&mut some, 0, RESERVE + 1000), 1);
        assert_eq!(names(&some), "AC");
        let mut none = list();
        assert_eq!(fit(&mut none, 2000, 1000), 3);
    }
}
