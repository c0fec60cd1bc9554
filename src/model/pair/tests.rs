//! Topics of pairs, and all orders in which contestants, the broker and kills can act.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Instant;

use proptest::prelude::*;

use super::*;

#[test]
fn a_name_is_one_level() {
    assert_eq!(check_name("rescue of seq1"), Ok(()));
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    for name in ["", "a/b", "+", "#", ".x", "a\nb", &long] {
        assert!(check_name(name).is_err(), "{name}");
    }
}

#[test]
fn a_pair_has_topics_and_identifiers_of_its_own() {
    let pair = Pair::new("lab", "rescue");
    assert_eq!(pair.claim(Side::A), "lab/infrastructure/pairs/rescue/a");
    assert_eq!(pair.letters("x"), "lab/infrastructure/pairs/rescue/to/x");
    let presence = pair.presence("x");
    assert_eq!(presence, "lab/infrastructure/pairs/rescue/ends/x");
    assert_eq!(pair.present_end(presence.as_bytes()), Some("x"));
    assert_eq!(pair.present_end(pair.letters("x").as_bytes()), None);
    let side = |topic: &str| pair.claim_side(topic.as_bytes());
    assert_eq!(side("lab/infrastructure/pairs/rescue/b"), Some(Side::B));
    assert_eq!(side(&presence), None);
    let id = pair.claim_client();
    assert!(id.starts_with("tael-pair-"), "{id}");
    assert_eq!(pair.end_client("x"), format!("{id}-x"));
    // The same on every host, in every version: it excludes the third end.
    assert_eq!(id, Pair::new("lab", "rescue").claim_client());
    assert_ne!(id, Pair::new("lab/rescue", "x").claim_client());
    assert_ne!(
        Pair::new("lab/a", "b").claim_client(),
        Pair::new("lab", "ab").claim_client()
    );
}

/// Where a contestant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    /// Not connected.
    New,
    /// Connected and present.
    Present,
    /// Connected to claim; has not read.
    Desk,
    /// Has read claims and presences, and decided.
    Decided(Decision),
    /// Holds a side.
    Holds(u8),
    /// Ended with 73.
    Refused,
    /// Killed.
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Decision {
    Take(u8, bool),
    Holds(u8),
    Refuse,
}

/// A contestant. Its messages are on their way in order, as MQTT promises.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Contestant {
    phase: Phase,
    greeted: Option<usize>,
    greeted_by: Vec<usize>,
    /// Claims and hellos that have not come yet.
    inbox: VecDeque<Note>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Note {
    Claim(u8, Option<usize>),
    Hello(usize),
}

/// The broker, and the contestants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    all: Vec<Contestant>,
    claims: [Option<usize>; 2],
    /// Whose connection may claim.
    desk: Option<usize>,
}

fn claim_of(who: usize) -> Claim {
    Claim {
        id: who.to_string(),
        user: "u".into(),
        host: "h".into(),
        since: 0,
    }
}

impl World {
    fn new(count: usize) -> Self {
        let one = Contestant {
            phase: Phase::New,
            greeted: None,
            greeted_by: Vec::new(),
            inbox: VecDeque::new(),
        };
        Self {
            all: vec![one; count],
            claims: [None; 2],
            desk: None,
        }
    }

    fn is_present(&self, who: usize) -> bool {
        !matches!(
            self.all[who].phase,
            Phase::New | Phase::Refused | Phase::Dead
        )
    }

    fn write(&mut self, side: u8, claim: Option<usize>) {
        self.claims[usize::from(side)] = claim;
        for who in 0..self.all.len() {
            if self.is_present(who) {
                self.all[who].inbox.push_back(Note::Claim(side, claim));
            }
        }
    }

    /// Contestant `who` does what it does next; nothing if it waits.
    fn step(&mut self, who: usize) {
        match self.all[who].phase {
            Phase::New => {
                self.all[who].phase = Phase::Present;
                for side in 0..2 {
                    let claim = self.claims[usize::from(side)];
                    self.all[who].inbox.push_back(Note::Claim(side, claim));
                }
            }
            // The broker cuts the connection of another contestant that claims.
            Phase::Present => {
                self.desk = Some(who);
                self.all[who].phase = Phase::Desk;
            }
            Phase::Desk | Phase::Decided(_) if self.desk != Some(who) => {
                self.all[who].phase = Phase::Present;
            }
            Phase::Desk => {
                let mut claims = Claims::default();
                for (side, claim) in Side::ALL.into_iter().zip(self.claims) {
                    claims.set(side, claim.map(claim_of));
                }
                let present = |id: &str| self.is_present(id.parse().expect("id"));
                let side = |side: Side| side as u8;
                let decision = match choose(&who.to_string(), &claims, present) {
                    Choice::Take {
                        side: one,
                        clear_other,
                    } => Decision::Take(side(one), clear_other),
                    Choice::Holds(one) => Decision::Holds(side(one)),
                    Choice::Taken => Decision::Refuse,
                };
                self.all[who].phase = Phase::Decided(decision);
            }
            Phase::Decided(Decision::Take(side, clear_other)) => {
                if clear_other {
                    self.write(1 - side, None);
                }
                self.write(side, Some(who));
                self.all[who].phase = Phase::Holds(side);
            }
            Phase::Decided(Decision::Holds(side)) => self.all[who].phase = Phase::Holds(side),
            Phase::Decided(Decision::Refuse) => self.all[who].phase = Phase::Refused,
            Phase::Holds(side) => self.hear(who, side),
            Phase::Refused | Phase::Dead => {}
        }
    }

    fn hear(&mut self, who: usize, side: u8) {
        // As the real end does; the notes of before are heard first.
        let Some(note) = self.all[who].inbox.pop_front() else {
            return;
        };
        let now = Instant::now();
        let mut meeting = self.meeting(who);
        match note {
            Note::Claim(of, claim) if of != side => {
                if let Some(to) = meeting.other(claim.map(claim_of), now) {
                    let to: usize = to.parse().expect("id");
                    self.all[who].greeted = Some(to);
                    if self.is_present(to) {
                        self.all[to].inbox.push_back(Note::Hello(who));
                    }
                }
            }
            Note::Claim(..) => {}
            Note::Hello(from) => self.all[who].greeted_by.push(from),
        }
    }

    /// Returns the meeting of `who` as it stands.
    fn meeting(&self, who: usize) -> Meeting {
        let mut meeting = Meeting::new(who.to_string());
        if let Some(other) = self.all[who].greeted {
            let _ = meeting.other(Some(claim_of(other)), Instant::now());
        }
        for from in &self.all[who].greeted_by {
            meeting.hello(from.to_string(), "key".into());
        }
        meeting
    }

    fn partner(&self, who: usize) -> Option<usize> {
        let meeting = self.meeting(who);
        Some(meeting.paired()?.0.id.parse().expect("id"))
    }

    fn kill(&mut self, who: usize) {
        self.all[who].phase = Phase::Dead;
        self.all[who].inbox.clear();
    }

    /// What must hold at each moment.
    fn check(&self) {
        let mut holders: [Vec<usize>; 2] = Default::default();
        for (who, one) in self.all.iter().enumerate() {
            if let Phase::Holds(side) = one.phase {
                holders[usize::from(side)].push(who);
            }
            if let Some(other) = self.partner(who).filter(|_| self.is_present(who)) {
                assert_eq!(
                    self.all[other].greeted,
                    Some(who),
                    "a silent second partner"
                );
            }
        }
        for (holders, claim) in holders.iter().zip(self.claims) {
            assert!(holders.len() <= 1, "two hold a side: {self:?}");
            if let [who] = holders[..] {
                assert_eq!(claim, Some(who), "a holder was replaced");
            }
        }
    }

    /// Lets the others act until nothing happens, without kills.
    fn settle(&mut self) {
        loop {
            let before = self.clone();
            for who in 0..self.all.len() {
                // Alone at the desk, as after a random wait.
                for _ in 0..4 {
                    self.step(who);
                    self.check();
                }
            }
            if *self == before {
                return;
            }
        }
    }
}

/// Follows all orders of `world`, with up to `kills` kills; returns the number of states.
fn explore(world: World, kills: usize) -> usize {
    let mut seen = HashSet::new();
    let mut ends = BTreeMap::new();
    let mut open = vec![(world, kills)];
    while let Some((world, kills)) = open.pop() {
        if !seen.insert((world.clone(), kills)) {
            continue;
        }
        world.check();
        let mut settled = world.clone();
        settled.settle();
        if !settled.all.iter().any(|one| one.phase == Phase::Dead) {
            let paired: Vec<usize> = (0..settled.all.len())
                .filter(|who| settled.partner(*who).is_some())
                .collect();
            assert_eq!(paired.len(), 2, "{settled:?}");
            let refused = |one: &&Contestant| one.phase == Phase::Refused;
            let refused = settled.all.iter().filter(refused).count();
            assert_eq!(refused, settled.all.len() - 2, "{settled:?}");
            *ends.entry(paired).or_insert(0) += 1;
        }
        for who in 0..world.all.len() {
            let mut next = world.clone();
            next.step(who);
            open.push((next, kills));
            if kills > 0 && world.is_present(who) {
                let mut next = world.clone();
                next.kill(who);
                open.push((next, kills - 1));
            }
        }
    }
    assert!(ends.len() > 1, "always the same pair: {ends:?}");
    seen.len()
}

#[test]
fn of_three_contestants_two_become_a_pair_in_every_order() {
    let states = explore(World::new(3), 0);
    assert!(states > 1000, "{states}");
}

#[test]
fn a_kill_gives_no_side_to_two_in_any_order() {
    let states = explore(World::new(3), 1);
    assert!(states > 5000, "{states}");
}

proptest! {
    #[test]
    fn of_many_contestants_two_become_a_pair(
        count in 2usize..8,
        steps in proptest::collection::vec((0usize..8, 0u8..40), 0..300),
    ) {
        let mut world = World::new(count);
        for (who, kill) in steps {
            let who = who % count;
            // One is left to pair with, at least.
            if kill == 0 && world.is_present(who) {
                world.kill(who);
            } else {
                world.step(who);
            }
            world.check();
        }
        world.settle();
    }
}
