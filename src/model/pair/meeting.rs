//! How two ends find each other: each sees the claim of the other, and says hello to it.

use std::time::{Duration, Instant};

use crate::model::pair::Claim;

/// Time for which both claims must stand before an end pairs. Another contestant may have found our side
/// free a moment ago, and cuts us off meanwhile. Then nothing is lost yet.
pub const SETTLE: Duration = Duration::from_secs(1);

/// What an end knows of the other one until they are a pair.
#[derive(Debug, Default)]
pub struct Meeting {
    /// The claim of the other side.
    other: Option<Claim>,
    /// When both claims stood first.
    since: Option<Instant>,
    /// Whether the broker has our claim.
    claimed: bool,
    /// To whom we have said hello.
    greeted: Option<String>,
    /// Who has said hello to us.
    greeted_by: Option<String>,
}

impl Meeting {
    /// Notes that the broker has our claim.
    pub fn claimed(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.claimed, true) {
            self.since = self.other.as_ref().map(|_| now);
        }
    }

    /// Notes what stands on the claim of the other side.
    pub fn other(&mut self, claim: Option<Claim>, now: Instant) {
        let id = |claim: &Option<Claim>| claim.as_ref().map(|claim| claim.id.clone());
        if id(&self.other) != id(&claim) {
            self.since = claim.as_ref().filter(|_| self.claimed).map(|_| now);
        }
        self.other = claim;
    }

    /// Notes that `from` has said hello to us.
    pub fn hello(&mut self, from: String) {
        self.greeted_by = Some(from);
    }

    /// Returns when to say hello, unless that is done or there is no other end.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let other = self.other.as_ref()?;
        let done = self.greeted.as_ref() == Some(&other.id);
        self.since.filter(|_| !done).map(|since| since + SETTLE)
    }

    /// Returns to whom to say hello at `now`, and notes that it was said.
    pub fn greet(&mut self, now: Instant) -> Option<String> {
        self.due().filter(|due| *due <= now)?;
        self.greeted = self.other.as_ref().map(|other| other.id.clone());
        self.greeted.clone()
    }

    /// Returns the claim of the other end once both have said hello to each other.
    #[must_use]
    pub fn paired(&self) -> Option<&Claim> {
        self.other.as_ref().filter(|other| {
            let is_its = |id: &Option<String>| id.as_ref() == Some(&other.id);
            is_its(&self.greeted) && is_its(&self.greeted_by)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(id: &str) -> Option<Claim> {
        Some(Claim {
            id: id.into(),
            user: "ann".into(),
            host: "h".into(),
            since: 0,
        })
    }

    const TICK: Duration = Duration::from_millis(1);

    #[test]
    fn both_say_hello_after_both_claims_have_stood() {
        let start = Instant::now();
        let mut meeting = Meeting::default();
        meeting.other(claim("y"), start);
        assert_eq!(meeting.due(), None, "our claim does not stand");
        let later = start + SETTLE * 3;
        meeting.claimed(later);
        assert_eq!(meeting.greet(later + SETTLE - TICK), None);
        assert_eq!(meeting.greet(later + SETTLE), Some("y".into()));
        assert_eq!(meeting.greet(later + SETTLE * 2), None, "once");
        assert_eq!(meeting.due(), None);
        assert!(meeting.paired().is_none());
        meeting.hello("z".into());
        assert!(meeting.paired().is_none(), "another one");
        meeting.hello("y".into());
        assert_eq!(meeting.paired().map(|other| &*other.id), Some("y"));
    }

    #[test]
    fn an_end_that_comes_later_starts_the_wait_again() {
        let start = Instant::now();
        let mut meeting = Meeting::default();
        meeting.claimed(start);
        meeting.other(claim("y"), start);
        // A renewed claim changes nothing.
        meeting.other(claim("y"), start + SETTLE / 2);
        assert_eq!(meeting.due(), Some(start + SETTLE));
        meeting.other(None, start + SETTLE / 2);
        assert_eq!(meeting.due(), None);
        meeting.hello("z".into());
        meeting.other(claim("z"), start + SETTLE);
        assert!(meeting.paired().is_none(), "not greeted yet");
        assert_eq!(meeting.greet(start + SETTLE), None);
        assert_eq!(meeting.greet(start + SETTLE * 2), Some("z".into()));
        assert!(meeting.paired().is_some());
        // A claim that is gone for a moment does not undo what was said.
        meeting.other(None, start + SETTLE * 2);
        assert!(meeting.paired().is_none());
        meeting.other(claim("z"), start + SETTLE * 2);
        assert!(meeting.paired().is_some());
    }
}
