//! Which side an end may take, from what the broker retains of a pair.
//!
//! An end is present before it looks, and looks and takes over one connection. All ends use one client
//! identifier for that connection, so the broker cuts the earlier one. Hence nothing is written between
//! the look of an end and its claim: otherwise its claim would not be written either. No time matters.

use crate::model::pair::{Claim, Side};

/// What an end that has looked does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// It claims this side.
    Take {
        /// The side.
        side: Side,
        /// Whether the claim of the other side is left over by an end that is gone, and must be cleared.
        clear_other: bool,
    },
    /// An earlier claim of its own has reached the broker: it holds this side.
    Holds(Side),
    /// Two other ends hold the sides.
    Taken,
}

/// Returns what end `own` does when the sides `a` and `b` have these claims; `is_present` says which ends
/// are connected.
#[must_use]
pub fn choose(own: &str, claims: [Option<&Claim>; 2], is_present: impl Fn(&str) -> bool) -> Choice {
    let of = |side: Side| claims.get(side as usize).copied().flatten();
    let is_free = |side: Side| of(side).is_none_or(|claim| !is_present(&claim.id));
    let is_own = |side: &Side| of(*side).is_some_and(|claim| claim.id == own);
    if let Some(side) = Side::ALL.into_iter().find(is_own) {
        return Choice::Holds(side);
    }
    match Side::ALL.into_iter().find(|side| is_free(*side)) {
        Some(side) => Choice::Take {
            side,
            clear_other: of(side.other()).is_some() && is_free(side.other()),
        },
        None => Choice::Taken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(id: &str) -> Claim {
        Claim {
            id: id.into(),
            user: "ann".into(),
            host: "h".into(),
            since: 0,
        }
    }

    #[test]
    fn a_side_is_free_without_a_claim_of_an_end_that_is_present() {
        let (x, y) = (claim("x"), claim("y"));
        let take = |side, clear_other| Choice::Take { side, clear_other };
        let none = |_: &str| false;
        let all = |_: &str| true;
        assert_eq!(choose("z", [None, None], all), take(Side::A, false));
        assert_eq!(choose("z", [Some(&x), None], all), take(Side::B, false));
        assert_eq!(choose("z", [None, Some(&y)], all), take(Side::A, false));
        assert_eq!(choose("z", [Some(&x), Some(&y)], all), Choice::Taken);
        assert_eq!(choose("z", [Some(&x), Some(&y)], none), take(Side::A, true));
        let only_x = |id: &str| id == "x";
        assert_eq!(
            choose("z", [Some(&x), Some(&y)], only_x),
            take(Side::B, false)
        );
        assert_eq!(choose("z", [None, Some(&y)], only_x), take(Side::A, true));
    }

    #[test]
    fn an_end_knows_its_own_claim() {
        let (x, y) = (claim("x"), claim("y"));
        let all = |_: &str| true;
        assert_eq!(
            choose("y", [Some(&x), Some(&y)], all),
            Choice::Holds(Side::B)
        );
        assert_eq!(choose("x", [Some(&x), None], all), Choice::Holds(Side::A));
    }
}
