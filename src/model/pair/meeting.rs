//! How two ends become a pair: each sees the claim of the other, and says hello to it.
//!
//! An end says hello to one other end at a time, and to a next one only when that is gone, and after it has
//! told it so. Two ends are a pair when each has said hello to the other. So an end never takes itself for a
//! part of a pair whose other end has another partner, in spite of what the claims say.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::model::pair::Claim;

/// Time for which the presence of the other end, or its claim, may be missing. An end writes again what
/// another client has cleared.
pub const MISSING: Duration = Duration::from_secs(1);

/// Maximum number of ends whose hello is kept before we have said ours.
const MAX_HELLOS: usize = 16;

/// Number of times that an end writes its claim over that of another end before it gives the side up.
const MAX_REWRITES: u32 = 5;

/// A hello to us.
#[derive(Debug)]
struct Hello {
    from: String,
    /// Public key of the sender; `None` after hellos with different ones, of which one is forged.
    key: Option<String>,
}

/// What an end knows of the other one until they are a pair.
#[derive(Debug)]
pub struct Meeting {
    /// Our id.
    own: String,
    /// The claim of the other side.
    other: Option<Claim>,
    /// To whom we have said hello.
    greeted: Option<Claim>,
    /// Whether it is connected, as far as we know.
    present: bool,
    /// Who has said hello to us.
    greeted_by: VecDeque<Hello>,
    /// Until when the one that we greeted must be there again.
    missing: Option<Instant>,
    /// Whom we have given up, until it is told.
    given_up: Option<String>,
    /// Number of times that our claim was replaced by that of another end.
    replaced: u32,
    /// Whether we have given our side up.
    is_over: bool,
}

impl Meeting {
    /// Returns the meeting of end `own`, whose claim the broker has.
    #[must_use]
    pub const fn new(own: String) -> Self {
        Self {
            own,
            other: None,
            greeted: None,
            present: true,
            greeted_by: VecDeque::new(),
            missing: None,
            given_up: None,
            replaced: 0,
            is_over: false,
        }
    }

    /// Notes what stands on the claim of the other side. Returns to whom to say hello.
    #[must_use]
    pub fn other(&mut self, claim: Option<Claim>, now: Instant) -> Option<String> {
        self.other = claim;
        self.check(now);
        self.greet()
    }

    /// Returns to whom to say hello, if that is due.
    #[must_use]
    pub fn greet(&mut self) -> Option<String> {
        if self.greeted.is_some() || self.is_over {
            return None;
        }
        self.greeted.clone_from(&self.other);
        self.greeted.as_ref().map(|other| other.id.clone())
    }

    /// Notes that `from` takes us for gone, or leaves.
    pub fn left(&mut self, from: &str) {
        if self.greeted.as_ref().is_some_and(|other| other.id == from) {
            self.forget();
        }
    }

    /// Returns whom to tell that we have given it up.
    pub fn given_up(&mut self) -> Option<String> {
        self.given_up.take()
    }

    /// Notes whether the end `id` is connected.
    pub fn presence(&mut self, id: &str, present: bool, now: Instant) {
        if self.greeted.as_ref().is_some_and(|other| other.id == id) {
            self.present = present;
            self.check(now);
        }
    }

    /// Notes that `from` has said hello to us, with this public key.
    pub fn hello(&mut self, from: String, key: String) {
        let is_other = self.greeted.as_ref().is_some_and(|other| other.id != from);
        if is_other {
            return;
        }
        if let Some(before) = self
            .greeted_by
            .iter_mut()
            .find(|before| before.from == from)
        {
            before.key.take_if(|before| *before != key);
            return;
        }
        if self.greeted_by.len() >= MAX_HELLOS {
            self.greeted_by.pop_front();
        }
        let key = Some(key);
        self.greeted_by.push_back(Hello { from, key });
    }

    /// Notes that another end has claimed our side. That happens when others write to the topics of the
    /// pair. Of two that dispute a side the one with the smaller id stays, unless it finds no partner.
    pub fn replaced(&mut self, by: &Claim) {
        self.replaced += 1;
        let yields = self.greeted.is_none() && by.id < self.own || self.replaced > MAX_REWRITES;
        self.is_over |= yields && self.paired().is_none();
    }

    /// Returns when [`Self::is_over`] must be asked again.
    #[must_use]
    pub const fn due(&self) -> Option<Instant> {
        self.missing
    }

    /// Returns whether no pair comes from this meeting: the end must leave, and look again with a new id.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        let is_forged = self.its_hello().is_some_and(|hello| hello.key.is_none());
        self.is_over || is_forged || self.missing.is_some_and(|by| by <= now)
    }

    /// Returns the claim and the public key of the other end once both have said hello to each other.
    #[must_use]
    pub fn paired(&self) -> Option<(&Claim, &str)> {
        let key = self.its_hello()?.key.as_deref()?;
        let greeted = self.greeted.as_ref().filter(|_| !self.is_over)?;
        Some((greeted, key))
    }

    /// Returns the hello of the end that we greeted.
    fn its_hello(&self) -> Option<&Hello> {
        let other = self.greeted.as_ref()?;
        self.greeted_by.iter().find(|hello| hello.from == other.id)
    }

    /// Forgets the end that we greeted, and its hello.
    fn forget(&mut self) {
        let other = self.greeted.take().map(|other| other.id);
        self.greeted_by
            .retain(|hello| Some(&hello.from) != other.as_ref());
        self.present = true;
        self.missing = None;
    }

    /// Counts the time for which the end that we greeted is not there. Without presence and claim it is gone
    /// for good, as its id is.
    fn check(&mut self, now: Instant) {
        let id = |claim: &Option<Claim>| claim.as_ref().map(|claim| claim.id.clone());
        let Some(greeted) = id(&self.greeted) else {
            return;
        };
        let claims = id(&self.other).as_ref() == Some(&greeted);
        if !claims && !self.present {
            self.forget();
            self.given_up = Some(greeted);
            return;
        }
        let there = claims && self.present;
        self.missing = (!there).then(|| self.missing.unwrap_or(now + MISSING));
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

    fn paired(meeting: &Meeting) -> Option<&str> {
        meeting.paired().map(|(other, _)| &*other.id)
    }

    #[test]
    fn both_say_hello() {
        let now = Instant::now();
        let mut meeting = Meeting::new("x".into());
        assert_eq!(meeting.other(None, now), None);
        assert_eq!(meeting.other(claim("y"), now), Some("y".into()));
        assert_eq!(meeting.other(claim("y"), now), None, "renewed");
        meeting.hello("z".into(), "key".into());
        assert_eq!(paired(&meeting), None, "another one");
        meeting.hello("y".into(), "key".into());
        assert_eq!(paired(&meeting), Some("y"));
        // A hello may come before we see the claim; later ones push it out only when there are many.
        let mut meeting = Meeting::new("x".into());
        meeting.hello("y".into(), "key".into());
        for stranger in 0..MAX_HELLOS - 1 {
            meeting.hello(stranger.to_string(), "key".into());
            meeting.hello(stranger.to_string(), "key".into());
        }
        assert_eq!(meeting.other(claim("y"), now), Some("y".into()));
        assert_eq!(paired(&meeting), Some("y"));
    }

    #[test]
    fn an_end_greets_a_next_one_when_the_one_before_is_gone() {
        let now = Instant::now();
        let mut meeting = Meeting::new("x".into());
        meeting.hello("y".into(), "key".into());
        assert_eq!(meeting.other(claim("y"), now), Some("y".into()));
        let mut other = Meeting::new("x".into());
        assert_eq!(other.other(claim("y"), now), Some("y".into()));
        other.presence("y", false, now);
        assert_eq!(other.given_up(), None);
        // In either order.
        assert_eq!(other.other(claim("z"), now), Some("z".into()));
        assert_eq!(other.given_up(), Some("y".into()));
        assert_eq!(other.other(None, now), None);
        other.presence("z", false, now);
        assert_eq!(other.given_up(), Some("z".into()));
        assert_eq!(other.other(claim("y"), now), Some("y".into()));
        // One that takes us for gone is greeted again.
        other.left("z");
        assert_eq!(other.greet(), None);
        other.hello("y".into(), "key".into());
        other.left("y");
        assert_eq!(paired(&other), None);
        assert_eq!(other.greet(), Some("y".into()));
        assert_eq!(paired(&other), None, "its hello was before");
    }

    #[test]
    fn an_end_greets_one_other_end_at_a_time() {
        let start = Instant::now();
        let mut meeting = Meeting::new("x".into());
        assert_eq!(meeting.other(claim("y"), start), Some("y".into()));
        assert_eq!(meeting.other(claim("z"), start), None);
        meeting.hello("z".into(), "key".into());
        assert_eq!(paired(&meeting), None);
        assert!(!meeting.is_over(start));
        assert_eq!(meeting.due(), Some(start + MISSING));
        // It is there again.
        assert_eq!(meeting.other(claim("y"), start + MISSING / 2), None);
        assert_eq!(meeting.due(), None);
        meeting.presence("z", false, start + MISSING);
        meeting.presence("y", false, start + MISSING);
        meeting.presence("z", true, start + MISSING);
        let _ = meeting.other(claim("y"), start + MISSING * 3 / 2);
        assert_eq!(meeting.due(), Some(start + MISSING * 2), "since the first");
        assert!(meeting.is_over(start + MISSING * 2));
    }

    #[test]
    fn of_two_keys_of_one_end_one_is_forged() {
        let now = Instant::now();
        for ours_first in [true, false] {
            let mut meeting = Meeting::new("x".into());
            if ours_first {
                assert!(meeting.other(claim("y"), now).is_some());
            }
            meeting.hello("y".into(), "one".into());
            meeting.hello("y".into(), "one".into());
            assert_eq!(meeting.paired().is_some(), ours_first);
            meeting.hello("y".into(), "other".into());
            meeting.hello("y".into(), "one".into());
            let _ = meeting.other(claim("y"), now);
            assert!(meeting.is_over(now) && meeting.paired().is_none());
        }
    }

    #[test]
    fn one_of_two_that_dispute_a_side_yields() {
        let now = Instant::now();
        let by = |id| claim(id).expect("claim");
        let mut small = Meeting::new("m".into());
        let mut large = Meeting::new("n".into());
        small.replaced(&by("n"));
        large.replaced(&by("m"));
        assert!(!small.is_over(now) && large.is_over(now));
        assert_eq!(large.other(claim("y"), now), None);
        // One that was greeted, or may have been, stays longer; a pair always.
        let mut meeting = Meeting::new("n".into());
        assert!(meeting.other(claim("y"), now).is_some());
        for _ in 0..MAX_REWRITES {
            meeting.replaced(&by("m"));
            assert!(!meeting.is_over(now));
        }
        meeting.hello("y".into(), "key".into());
        meeting.replaced(&by("m"));
        assert!(!meeting.is_over(now) && meeting.paired().is_some());
        let mut meeting = Meeting::new("n".into());
        for _ in 0..=MAX_REWRITES {
            meeting.replaced(&by("o"));
        }
        assert!(meeting.is_over(now));
    }
}
