//! Which side an end may take, from what the broker retains of a pair.
//!
//! An end is present before it looks, and looks and takes over one connection. All ends use one client
//! identifier for that connection, so the broker cuts the earlier one. Hence nothing is written between
//! the look of an end and its claim: otherwise its claim would not be written either. No time matters.

use crate::model::pair::{Claims, Side};

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

/// Returns what end `own` does when these claims stand; `is_present` says which ends
/// are connected.
#[must_use]
pub fn choose(own: &str, claims: &Claims, is_present: impl Fn(&str) -> bool) -> Choice {
    let is_free = |side: Side| claims.of(side).is_none_or(|claim| !is_present(&claim.id));
    let is_own = |side: &Side| claims.of(*side).is_some_and(|claim| claim.id == own);
    if let Some(side) = Side::ALL.into_iter().find(is_own) {
        return Choice::Holds(side);
    }
    match Side::ALL.into_iter().find(|side| is_free(*side)) {
        Some(side) => Choice::Take {
            side,
            clear_other: claims.of(side.other()).is_some() && is_free(side.other()),
        },
        None => Choice::Taken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pair::Claim;

    /// Returns claims of these ends; an empty id is none.
    fn claims(a: &str, b: &str) -> Claims {
        let mut claims = Claims::default();
        for (side, id) in [(Side::A, a), (Side::B, b)] {
            let claim = Claim {
                id: id.into(),
                user: "ann".into(),
                host: "h".into(),
                since: 0,
            };
            claims.set(side, Some(claim).filter(|claim| !claim.id.is_empty()));
        }
        claims
    }

    #[test]
    fn a_side_is_free_without_a_claim_of_an_end_that_is_present() {
        let take = |side, clear_other| Choice::Take { side, clear_other };
        let none = |_: &str| false;
        let all = |_: &str| true;
        let only_x = |id: &str| id == "x";
        let choose = |a, b, present: fn(&str) -> bool| choose("z", &claims(a, b), present);
        assert_eq!(choose("", "", all), take(Side::A, false));
        assert_eq!(choose("x", "", all), take(Side::B, false));
        assert_eq!(choose("", "y", all), take(Side::A, false));
        assert_eq!(choose("x", "y", all), Choice::Taken);
        assert_eq!(choose("x", "y", none), take(Side::A, true));
        assert_eq!(choose("x", "y", only_x), take(Side::B, false));
        assert_eq!(choose("", "y", only_x), take(Side::A, true));
    }

    #[test]
    fn an_end_knows_its_own_claim() {
        let all = |_: &str| true;
        let holds = Choice::Holds;
        assert_eq!(choose("y", &claims("x", "y"), all), holds(Side::B));
        assert_eq!(choose("x", &claims("x", ""), all), holds(Side::A));
    }
}
