//! Who has which place, who waits for one, and who gives way. It decides; [`Seats`] does it.
//!
//! [`Seats`]: crate::net::http::seat::Seats

use std::collections::{BTreeMap, HashMap, VecDeque};

use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use crate::model::gateway::rate::Caller;
use crate::net::http::{MAX_CONNECTIONS, MAX_ENDING, MAX_LONG, MAX_QUEUED, Times};

/// What a connection is about, and for whom it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// For the client: its TLS handshake, or the head of a request.
    Head,
    /// For the client, of whose next request nothing has come.
    Idle,
    /// For the client: the body of its request.
    Body,
    /// For us: the answer is being made.
    Answer,
    /// For the network: the answer goes out.
    Sending,
    /// For the client, which does not take its answer as fast as it comes.
    Unread,
    /// For the client, which has its last answer, and has not closed its side.
    Closing,
}

/// The place of a connection.
#[derive(Debug)]
struct Place {
    caller: Caller,
    phase: Phase,
    /// Beginning of the phase.
    since: Instant,
    /// Whether its answer takes long.
    is_long: bool,
    /// Whether it was moved to the places of long answers without being asked.
    is_moved: bool,
    /// Is true when it gives way to others.
    ousted: watch::Sender<bool>,
}

impl Place {
    fn is_ousted(&self) -> bool {
        *self.ousted.borrow()
    }
}

/// A place that a connection has got.
#[derive(Debug)]
pub(super) struct Taken {
    pub id: u64,
    pub caller: Caller,
    /// Is true when the connection gives way to others.
    pub ousted: watch::Receiver<bool>,
}

/// A connection that waits for a place.
#[derive(Debug)]
struct Waiting<T> {
    id: u64,
    caller: Caller,
    /// Beginning of its turn.
    since: Instant,
    /// How it hears of its place. It hears that it is refused when this is dropped.
    tell: T,
}

/// What a caller has, apart from connections that give way.
#[derive(Debug, Default, Clone, Copy)]
struct Use {
    open: usize,
    queued: usize,
}

/// The places of a server, and those who wait for them.
#[derive(Debug)]
pub(super) struct Table<T> {
    last: u64,
    places: BTreeMap<u64, Place>,
    queue: VecDeque<Waiting<T>>,
    /// Number of places without a long answer.
    open: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            last: 0,
            places: BTreeMap::new(),
            queue: VecDeque::new(),
            open: 0,
        }
    }
}

/// Returns the fair share of each of `callers`: at most half as soon as there are two.
fn share(all: usize, callers: usize) -> usize {
    (all / callers.max(1)).max(1)
}

/// Returns how often each caller is among `callers`.
fn counted(callers: impl Iterator<Item = Caller>) -> HashMap<Caller, usize> {
    let mut counts = HashMap::new();
    for caller in callers {
        *counts.entry(caller).or_default() += 1;
    }
    counts
}

impl<T> Table<T> {
    fn id(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Returns whether connections wait for a place.
    pub fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Gives a place to a connection of `caller`, unless all are taken.
    pub fn take(&mut self, caller: Caller, now: Instant) -> Option<Taken> {
        if self.open >= MAX_CONNECTIONS {
            return None;
        }
        self.open += 1;
        let (ousted, tells) = watch::channel(false);
        let place = Place {
            caller,
            phase: Phase::Head,
            since: now,
            is_long: false,
            is_moved: false,
            ousted,
        };
        let id = self.id();
        self.places.insert(id, place);
        Some(Taken {
            id,
            caller,
            ousted: tells,
        })
    }

    /// Frees a place; returns whether it was one of a long answer.
    pub fn free(&mut self, id: u64) -> bool {
        let is_long = self.places.remove(&id).is_some_and(|place| place.is_long);
        self.open -= usize::from(!is_long);
        is_long
    }

    /// Lets a connection wait. If too many wait, it takes the turn of the last one of the caller that has
    /// the most of them, unless it has as many itself.
    pub fn enqueue(&mut self, caller: Caller, tell: T, now: Instant) -> Option<u64> {
        if self.queue.len() >= MAX_QUEUED {
            let counts = counted(self.queue.iter().map(|waiting| waiting.caller));
            let own = counts.get(&caller).copied().unwrap_or_default();
            let (most, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
            if count <= own + 1 {
                return None;
            }
            let last = self.queue.iter().rposition(|w| w.caller == most)?;
            self.queue.remove(last);
        }
        let id = self.id();
        self.queue.push_back(Waiting {
            id,
            caller,
            since: now,
            tell,
        });
        Some(id)
    }

    /// Takes a connection out of the queue, if it is there.
    pub fn leave(&mut self, id: u64) {
        self.queue.retain(|waiting| waiting.id != id);
    }

    /// Gives a place to the next one in the queue, if there is one: the first of the caller that has the
    /// fewest, of which each second of its wait makes one less: with more callers than places it comes, too.
    pub fn next(&mut self, now: Instant) -> Option<(T, Taken)> {
        if self.open >= MAX_CONNECTIONS {
            return None;
        }
        let uses = self.uses();
        let turn = |(_, waiting): &(usize, &Waiting<T>)| {
            let open = uses.get(&waiting.caller).map_or(0, |u| u.open);
            let waited = now.saturating_duration_since(waiting.since).as_secs();
            open.saturating_sub(usize::try_from(waited).unwrap_or(usize::MAX))
        };
        let (at, _) = self.queue.iter().enumerate().min_by_key(turn)?;
        let Waiting { caller, tell, .. } = self.queue.remove(at)?;
        let taken = self.take(caller, now)?;
        Some((tell, taken))
    }

    /// Sets what a connection is about, if that is not so already.
    pub fn enter(&mut self, id: u64, phase: Phase, now: Instant) {
        if let Some(place) = self.places.get_mut(&id)
            && place.phase != phase
        {
            (place.phase, place.since) = (phase, now);
        }
    }

    /// Returns what a connection is about.
    pub fn phase(&self, id: u64) -> Option<Phase> {
        self.places.get(&id).map(|place| place.phase)
    }

    /// Returns whether a connection has a long answer.
    pub fn is_long(&self, id: u64) -> bool {
        self.places.get(&id).is_some_and(|place| place.is_long)
    }

    /// Returns whether a connection has asked for a long answer.
    pub fn has_asked(&self, id: u64) -> bool {
        let place = self.places.get(&id);
        place.is_some_and(|place| place.is_long && !place.is_moved)
    }

    /// Notes that a connection with a long answer has asked for it.
    pub fn ask(&mut self, id: u64) {
        if let Some(place) = self.places.get_mut(&id) {
            place.is_moved = false;
        }
    }

    /// Returns whether others wait who have fewer places than the caller of this connection, or whether
    /// that caller waits itself.
    pub fn is_wanted(&self, id: u64) -> bool {
        let Some(place) = self.places.get(&id).filter(|_| self.has_queue()) else {
            return false;
        };
        yields(&self.uses(), place.caller)
    }

    fn uses(&self) -> HashMap<Caller, Use> {
        let mut uses: HashMap<_, Use> = HashMap::new();
        for place in self.places.values().filter(|place| !place.is_long) {
            uses.entry(place.caller).or_default().open += usize::from(!place.is_ousted());
        }
        for waiting in &self.queue {
            uses.entry(waiting.caller).or_default().queued += 1;
        }
        uses
    }

    /// Moves connections whose answers have been in the making for [`Times::rush`] to the places of long
    /// answers, as many as others wait. Returns how many, and when to call it again.
    pub fn relieve(&mut self, now: Instant, times: &Times) -> (usize, Option<Instant>) {
        let is_slow =
            |place: &Place| place.phase == Phase::Answer && !place.is_long && !place.is_ousted();
        let slow = self.places.iter().filter(|(_, place)| is_slow(place));
        let mut slow: Vec<_> = slow.map(|(id, place)| (place.since, *id)).collect();
        slow.sort_unstable();
        let (mut moved, mut next) = (0, None);
        for (since, id) in slow {
            let at = since + times.rush;
            if moved == self.queue.len() {
                break;
            }
            if at > now {
                next = Some(at);
                break;
            }
            if self.lengthen(id, now) {
                moved += 1;
                if let Some(place) = self.places.get_mut(&id) {
                    place.is_moved = true;
                }
            }
        }
        (moved, next)
    }

    /// Returns for how many callers without any place a connection has waited for [`Times::idle`], and when
    /// that will be so for the next one.
    fn starved(
        &self,
        uses: &HashMap<Caller, Use>,
        now: Instant,
        times: &Times,
    ) -> (usize, Option<Instant>) {
        let mut first: HashMap<Caller, Instant> = HashMap::new();
        for waiting in &self.queue {
            if uses.get(&waiting.caller).is_some_and(|own| own.open == 0) {
                let at = waiting.since + times.idle;
                first
                    .entry(waiting.caller)
                    .and_modify(|own| *own = at.min(*own))
                    .or_insert(at);
            }
        }
        let starved = first.values().filter(|at| **at <= now).count();
        (starved, first.into_values().filter(|at| *at > now).min())
    }

    /// Has connections give way to those that wait. Returns when to call it again, if nothing changes
    /// before.
    ///
    /// Callers that have more than their share lose connections for which others wait, the oldest first,
    /// after [`Times::rush`], or after [`Times::idle`] if the answer is being made. Others lose those that
    /// are idle after [`Times::rush`], and after [`Times::idle`] those without a request. If a caller without any place has waited
    /// for [`Times::idle`], others lose also those that have been in one phase as long.
    pub fn give_way(&mut self, now: Instant, times: &Times) -> Option<Instant> {
        if !self.has_queue() {
            return None;
        }
        let mut uses = self.uses();
        let share = share(MAX_CONNECTIONS, uses.len());
        let leaving = self.open - uses.values().map(|u| u.open).sum::<usize>();
        let mut wanted = self.queue.len().saturating_sub(leaving);
        // Places up to the shares of those who have waited. For others a place may come free by itself.
        let ripe = |waiting: &&Waiting<T>| waiting.since + times.rush <= now;
        let due = counted(self.queue.iter().filter(ripe).map(|w| w.caller)).into_iter();
        let due = due.map(|(caller, count)| {
            let open = uses.get(&caller).map_or(0, |u| u.open);
            count.min(share.saturating_sub(open))
        });
        let mut owed = due.sum::<usize>().saturating_sub(leaving);
        let unripe = self.queue.iter().filter(|waiting| !ripe(waiting));
        let unripe = unripe.map(|waiting| waiting.since + times.rush).min();
        let (starved, next) = self.starved(&uses, now, times);
        let mut next = [unripe, next].into_iter().flatten().min();
        let mut starved = starved.saturating_sub(leaving);
        let mut order: Vec<&Place> = self.places.values().collect();
        order.retain(|place| !place.is_long && !place.is_ousted());
        order.sort_by_key(|place| place.since);
        for only_over in [true, false] {
            for place in &order {
                let (open, yields) = match uses.get(&place.caller) {
                    Some(own) => (own.open, yields(&uses, place.caller)),
                    None => continue,
                };
                let is_over = owed > 0 && open > share;
                let patience = match place.phase {
                    Phase::Head | Phase::Body | Phase::Unread | Phase::Closing if is_over => {
                        times.rush
                    }
                    // A client that reuses its connection may be about to send.
                    Phase::Idle if is_over || yields => times.rush,
                    Phase::Head if yields => times.idle,
                    Phase::Answer if is_over => times.idle,
                    Phase::Body | Phase::Unread | Phase::Closing | Phase::Answer
                        if starved > 0 && yields =>
                    {
                        times.idle
                    }
                    _ => continue,
                };
                if wanted == 0 || place.is_ousted() || (only_over && !is_over) {
                    continue;
                }
                let at = place.since + patience;
                if at > now {
                    next = Some(next.map_or(at, |next| next.min(at)));
                    continue;
                }
                place.ousted.send_replace(true);
                wanted -= 1;
                owed = owed.saturating_sub(1);
                starved = starved.saturating_sub(1);
                if let Some(own) = uses.get_mut(&place.caller) {
                    own.open -= 1;
                }
            }
        }
        next
    }

    /// Has a connection of another than `caller` give way that has read nothing of its answer for `patience`: the
    /// one that has done so for the longest time, of the caller that has the most of them.
    pub fn oust_unread(&mut self, caller: Caller, patience: Duration, now: Instant) {
        let is_unread = |place: &&Place| {
            let waited = now.saturating_duration_since(place.since);
            let is_other = place.caller != caller && !place.is_ousted();
            is_other && place.phase == Phase::Unread && waited >= patience
        };
        let unread = || self.places.values().filter(is_unread);
        let counts = counted(unread().map(|place| place.caller));
        let count = |place: &&Place| counts.get(&place.caller).copied();
        let next = unread().max_by_key(|place| (count(place), now - place.since));
        if let Some(place) = next {
            place.ousted.send_replace(true);
        }
    }

    /// Moves a connection to the places of long answers, unless they are taken, and no caller has more of
    /// them than its share, who then loses its last one. Returns whether it is moved.
    pub fn lengthen(&mut self, id: u64, now: Instant) -> bool {
        let Some(caller) = self.places.get(&id).map(|place| place.caller) else {
            return false;
        };
        let long = || self.places.values().filter(|place| place.is_long);
        let ending = long().filter(|place| place.is_ousted()).count();
        if long().count() - ending >= MAX_LONG {
            let staying = long().filter(|place| !place.is_ousted());
            let mut counts = counted(staying.map(|place| place.caller));
            let own = *counts.entry(caller).or_default();
            let share = share(MAX_LONG, counts.len());
            let most = counts.into_iter().max_by_key(|(_, count)| *count);
            let Some((most, _)) = most.filter(|(_, count)| *count > share && own < share) else {
                return false;
            };
            let last = long().filter(|place| place.caller == most && !place.is_ousted());
            match last.max_by_key(|place| place.since) {
                Some(last) if ending < MAX_ENDING => last.ousted.send_replace(true),
                _ => return false,
            };
        }
        if let Some(place) = self.places.get_mut(&id) {
            (place.is_long, place.since) = (true, now);
            self.open -= 1;
        }
        true
    }
}

/// Returns whether `caller` waits, or one with fewer places.
fn yields(uses: &HashMap<Caller, Use>, caller: Caller) -> bool {
    let own = uses.get(&caller).copied().unwrap_or_default();
    let is_before = |other: &Use| other.queued > 0 && other.open < own.open;
    own.queued > 0 || uses.values().any(is_before)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;
    const RUSH: Duration = Duration::from_millis(250);
    const IDLE: Duration = Duration::from_secs(1);

    fn caller(last: u8) -> Caller {
        Caller::at(Some([192, 0, 2, last].into()))
    }

    /// A table at some time.
    struct Fixture {
        table: Table<()>,
        begun: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                table: Table::default(),
                begun: Instant::now(),
            }
        }

        /// Takes `count` places for a caller, in this phase.
        fn take(&mut self, who: u8, count: usize, phase: Phase) -> Vec<Taken> {
            let mut all = Vec::new();
            for _ in 0..count {
                let taken = self.table.take(caller(who), self.begun).expect("place");
                self.table.enter(taken.id, phase, self.begun);
                all.push(taken);
            }
            all
        }

        fn queue(&mut self, who: u8, count: usize) {
            for _ in 0..count {
                let turn = self.table.enqueue(caller(who), (), self.begun);
                turn.expect("turn");
            }
        }

        /// Returns after what time since the beginning to look again.
        fn give_way(&mut self, after: Duration) -> Option<Duration> {
            let next = self.table.give_way(self.begun + after, &Times::default());
            next.map(|next| next - self.begun)
        }

        /// Returns who gets the next place.
        fn next(&mut self) -> Option<Caller> {
            self.table.next(self.begun).map(|(_, taken)| taken.caller)
        }
    }

    fn ousted(all: &[Taken]) -> usize {
        all.iter().filter(|taken| *taken.ousted.borrow()).count()
    }

    #[test]
    fn one_caller_alone_has_all_and_waits_for_itself() {
        for phase in [Phase::Body, Phase::Unread, Phase::Answer, Phase::Sending] {
            let mut own = Fixture::new();
            let all = own.take(1, MAX_CONNECTIONS, phase);
            assert!(own.table.take(caller(1), own.begun).is_none());
            own.queue(1, MAX_QUEUED);
            assert!(own.table.enqueue(caller(1), (), own.begun).is_none());
            assert_eq!(own.give_way(IDLE * 100), None);
            assert_eq!(ousted(&all), 0, "{phase:?}");
        }
        // Idle connections make room after a moment, and those without a request after a while.
        let mut own = Fixture::new();
        let idle = own.take(1, 3, Phase::Idle);
        let heads = own.take(1, MAX_CONNECTIONS - 3, Phase::Head);
        own.queue(1, 5);
        assert_eq!(own.give_way(NOW), Some(RUSH));
        assert_eq!(
            (ousted(&idle), ousted(&heads)),
            (0, 0),
            "their clients may send"
        );
        assert_eq!(own.give_way(RUSH), Some(IDLE));
        assert_eq!((ousted(&idle), ousted(&heads)), (3, 0));
        assert_eq!(own.give_way(IDLE), None);
        assert_eq!(ousted(&heads), 2, "as many as wait");
    }

    #[test]
    fn others_get_places_up_to_their_share() {
        for phase in [Phase::Head, Phase::Body, Phase::Unread, Phase::Closing] {
            let mut own = Fixture::new();
            let mut all = own.take(1, MAX_CONNECTIONS, phase);
            own.queue(1, 100);
            own.queue(2, 50);
            assert_eq!(own.give_way(NOW), Some(RUSH), "{phase:?}");
            assert_eq!(own.give_way(RUSH), Some(IDLE));
            assert_eq!(ousted(&all), MAX_CONNECTIONS / 2, "{phase:?}");
            assert_eq!(own.next(), None, "none is free yet");
            all.retain(|taken| {
                let is_ousted = *taken.ousted.borrow();
                if is_ousted {
                    own.table.free(taken.id);
                }
                !is_ousted
            });
            for _ in 0..MAX_CONNECTIONS / 2 {
                assert_eq!(own.next(), Some(caller(2)), "{phase:?}");
            }
            // Now they have as many, and slow requests have their own limits.
            let next = own.give_way(RUSH * 2);
            assert_eq!(ousted(&all), 0, "{phase:?}: {next:?}");
        }
        // Answers that are being made are not lost.
        let mut own = Fixture::new();
        let all = own.take(1, MAX_CONNECTIONS, Phase::Sending);
        own.queue(2, 1);
        assert_eq!(own.give_way(IDLE * 100), None);
        assert_eq!(ousted(&all), 0);
    }

    #[test]
    fn answers_that_wait_for_something_move_away_when_others_want_places() {
        let mut own = Fixture::new();
        let times = Times::default();
        let all = own.take(1, MAX_CONNECTIONS, Phase::Answer);
        let begun = own.begun;
        let relieve = |own: &mut Fixture, after| {
            let (moved, next) = own.table.relieve(begun + after, &times);
            (moved, next.map(|next| next - begun))
        };
        assert_eq!(relieve(&mut own, IDLE), (0, None), "none waits");
        own.queue(2, 3);
        assert_eq!(relieve(&mut own, NOW), (0, Some(RUSH)));
        assert_eq!(relieve(&mut own, RUSH), (3, None), "as many as wait");
        assert_eq!(own.give_way(RUSH * 2).map(|at| at > RUSH), Some(true));
        assert_eq!(ousted(&all), 0, "each is answered");
        let moved = all.iter().filter(|taken| own.table.is_long(taken.id));
        let moved: Vec<u64> = moved.map(|taken| taken.id).collect();
        assert_eq!(moved.len(), 3);
        assert!(!own.table.has_asked(moved[0]));
        own.table.ask(moved[0]);
        assert!(own.table.has_asked(moved[0]));
        for _ in 0..3 {
            assert_eq!(own.next(), Some(caller(2)));
        }
    }

    #[test]
    fn answers_without_a_long_place_give_way_to_those_with_less_than_their_share() {
        let mut own = Fixture::new();
        let long = |own: &mut Fixture| {
            let taken = own.take(1, 1, Phase::Answer).pop().expect("place");
            assert!(own.table.lengthen(taken.id, own.begun));
        };
        (0..MAX_LONG).for_each(|_| long(&mut own));
        let all = own.take(1, MAX_CONNECTIONS, Phase::Answer);
        own.queue(2, 3);
        let (moved, _) = own.table.relieve(own.begun + IDLE, &Times::default());
        assert_eq!(moved, 0, "it has more than its share of them");
        assert_eq!(own.give_way(RUSH), Some(IDLE));
        assert_eq!(ousted(&all), 0);
        own.give_way(IDLE);
        assert_eq!(ousted(&all), 3);
    }

    #[test]
    fn a_caller_without_a_place_gets_one_though_no_other_has_more_than_its_share() {
        for phase in [Phase::Head, Phase::Body, Phase::Unread, Phase::Answer] {
            let mut own = Fixture::new();
            let mut all = Vec::new();
            for who in 1..=u8::try_from(MAX_CONNECTIONS).expect("few") {
                all.extend(own.take(who, 1, phase));
            }
            // Several turns of one caller are one.
            own.queue(201, 1);
            own.queue(202, 10);
            assert_eq!(own.give_way(RUSH), Some(IDLE), "{phase:?}");
            assert_eq!(ousted(&all), 0, "{phase:?}");
            own.give_way(IDLE);
            match phase {
                Phase::Head => assert!(ousted(&all) >= 2),
                _ => assert_eq!(ousted(&all), 2, "{phase:?}"),
            }
            own.give_way(IDLE);
            if phase != Phase::Head {
                assert_eq!(ousted(&all), 2, "{phase:?}: these are leaving");
            }
        }
    }

    #[test]
    fn many_callers_have_small_shares() {
        let mut own = Fixture::new();
        let mut all = Vec::new();
        for who in 1..=4 {
            all.push(own.take(who, MAX_CONNECTIONS / 4, Phase::Body));
            own.queue(who, 10);
        }
        own.queue(5, 20);
        assert_eq!(own.give_way(RUSH), Some(IDLE));
        let lost: usize = all.iter().map(|all| ousted(all)).sum();
        // A share is a fifth, 12.8 places.
        assert_eq!(lost, 12);
        assert!(all.iter().all(|all| ousted(all) <= 4));
    }

    #[test]
    fn a_second_connection_of_a_caller_does_not_end_its_first() {
        let mut own = Fixture::new();
        let uploads = own.take(1, 1, Phase::Body);
        let mut others = Vec::new();
        for who in 2..=MAX_CONNECTIONS as u8 {
            others.extend(own.take(who, 1, Phase::Answer));
        }
        // It takes the place of one that has just ended.
        own.table.free(others.pop().expect("one").id);
        let _second = own.take(1, 1, Phase::Answer);
        // The upload is old by now, and the other caller has only just come.
        let now = own.begun + IDLE;
        let turn = own.table.enqueue(caller(MAX_CONNECTIONS as u8), (), now);
        turn.expect("turn");
        assert_eq!(own.give_way(IDLE), Some(IDLE + RUSH));
        assert_eq!(ousted(&uploads), 0);
    }

    #[test]
    fn with_more_callers_than_places_each_gets_its_turn() {
        let mut own = Fixture::new();
        let mut all = own.take(1, 2, Phase::Answer);
        for who in 2..MAX_CONNECTIONS as u8 {
            all.extend(own.take(who, 1, Phase::Answer));
        }
        own.queue(1, 1);
        for (waited, want) in [(0, 100), (1, 101), (2, 1)] {
            own.table.free(all.pop().expect("one").id);
            let now = own.begun + IDLE * waited;
            let turn =
                own.table
                    .enqueue(caller(100 + u8::try_from(waited).expect("small")), (), now);
            turn.expect("turn");
            let next = own.table.next(now).map(|(_, taken)| taken.caller);
            assert_eq!(next, Some(caller(want)), "after {waited} s");
        }
    }

    #[test]
    fn the_few_connections_of_a_caller_are_left_alone_when_others_have_more() {
        let mut own = Fixture::new();
        let few = own.take(1, 1, Phase::Idle);
        let many = own.take(2, MAX_CONNECTIONS - 1, Phase::Idle);
        own.queue(2, MAX_QUEUED);
        assert!(!own.table.is_wanted(few[0].id) && own.table.is_wanted(many[0].id));
        assert_eq!(own.give_way(IDLE), None);
        assert_eq!((ousted(&few), ousted(&many)), (0, MAX_CONNECTIONS - 1));
    }

    #[test]
    fn an_answer_that_is_not_read_makes_room_for_that_of_another() {
        let mut own = Fixture::new();
        let few = own.take(1, 1, Phase::Unread);
        let many = own.take(2, 2, Phase::Unread);
        let reads = own.take(3, 9, Phase::Sending);
        let mut oust = |who: u8, after: Duration| {
            own.table.oust_unread(caller(who), IDLE, own.begun + after);
            (ousted(&few), ousted(&many), ousted(&reads))
        };
        assert_eq!(oust(4, RUSH), (0, 0, 0), "they may go on reading");
        assert_eq!(oust(4, IDLE), (0, 1, 0), "the one that has the most");
        assert_eq!(oust(2, IDLE), (1, 1, 0), "its own is no help");
        assert_eq!(oust(1, IDLE), (1, 2, 0));
        assert_eq!(oust(4, IDLE), (1, 2, 0), "none is left");
    }

    #[test]
    fn the_queue_is_shared_too_and_serves_those_with_the_fewest_places_first() {
        let mut own = Fixture::new();
        let mut all = own.take(1, MAX_CONNECTIONS, Phase::Answer);
        own.queue(1, MAX_QUEUED);
        own.queue(2, MAX_QUEUED / 2);
        assert!(own.table.enqueue(caller(2), (), own.begun).is_none());
        assert!(own.table.enqueue(caller(1), (), own.begun).is_none());
        own.queue(3, 1);
        for who in [2, 3, 2, 2] {
            let taken = all.pop().expect("place");
            own.table.free(taken.id);
            assert_eq!(own.next(), Some(caller(who)));
        }
    }

    #[test]
    fn long_answers_are_shared_and_the_last_one_gives_way() {
        let mut own = Fixture::new();
        let long = |own: &mut Fixture, who: u8, at: u64| {
            let taken = own.take(who, 1, Phase::Answer).pop().expect("place");
            let at = own.begun + Duration::from_millis(at);
            let is_long = own.table.lengthen(taken.id, at);
            if !is_long {
                own.table.free(taken.id);
            }
            is_long.then_some(taken)
        };
        let mut first = Vec::new();
        for n in 0..MAX_LONG {
            first.push(long(&mut own, 1, n as u64).expect("all of them"));
        }
        assert!(long(&mut own, 1, 1_000).is_none());
        let mut second = Vec::new();
        for n in 1..=MAX_ENDING {
            second.push(long(&mut own, 2, 1_000).expect("its share"));
            assert_eq!(ousted(&first), n);
            assert!(*first[MAX_LONG - n].ousted.borrow());
        }
        // No more at a time.
        assert!(long(&mut own, 2, 1_000).is_none());
        first.retain(|taken| {
            let is_ousted = *taken.ousted.borrow();
            if is_ousted {
                own.table.free(taken.id);
            }
            !is_ousted
        });
        while let Some(taken) = long(&mut own, 2, 1_000) {
            second.push(taken);
            assert!(second.len() <= MAX_LONG);
        }
        assert_eq!((second.len(), ousted(&second)), (MAX_LONG / 2, 0));
    }
}
