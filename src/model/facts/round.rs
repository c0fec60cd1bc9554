//! One round of a node: what the broker holds is compared with what was gathered.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::model::facts::change::Changes;
use crate::model::facts::kind::Kind;
use crate::model::facts::presence::{Presence, State, Verdict, age};
use crate::model::facts::told::Told;
use crate::model::facts::tree::{Facts, digest};

/// Difference of two boot times that is that of a clock, seconds: the kernel counts the time of its
/// boot back from the present time, which is being set (`proc_stat(5)`, `btime`).
const SAME_BOOT: i64 = 60;

/// The node that tells its facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its host.
    pub host: String,
    /// Version of Tael.
    pub version: String,
    /// Hash of its machine; empty if it is not known.
    pub machine: String,
    /// Seconds between two looks.
    pub interval: i64,
    /// Seconds after which the broker forgets the facts of a node that tells no more.
    pub keep: u32,
    /// Kinds that it shares.
    pub share: Vec<Kind>,
}

/// Facts that a broker holds for a node.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldFacts {
    /// When they last changed, seconds since 1970.
    pub ts: i64,
    /// The facts.
    pub facts: Facts,
    /// Second since 1970 at which the broker forgets them; `None` if it does not say.
    pub until: Option<i64>,
}

impl HeldFacts {
    /// Returns the facts of `kind` of `node` in a payload, whose rest of a Message Expiry Interval
    /// was `expiry` seconds at second `now`; `None` as [`Told::parse`].
    #[must_use]
    pub fn parse(
        node: &str,
        kind: Kind,
        payload: &[u8],
        expiry: Option<u32>,
        now: i64,
    ) -> Option<Self> {
        let told = Told::parse(node, kind, payload)?;
        Some(Self {
            ts: told.ts,
            facts: told.facts(),
            until: expiry.map(|seconds| now.saturating_add(seconds.into())),
        })
    }
}

/// What a broker holds for a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Held {
    /// The facts of each kind; `None` for a message that cannot be read.
    pub kinds: BTreeMap<Kind, Option<HeldFacts>>,
    /// The presence.
    pub presence: Option<Presence>,
}

/// What was gathered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gathered {
    /// The facts of each kind, within the bounds.
    pub kinds: BTreeMap<Kind, Facts>,
    /// Facts that could not be told.
    pub failed: Vec<String>,
}

/// A retained message of a kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Tell {
    /// The kind.
    pub kind: Kind,
    /// The payload; `None` clears what the broker holds.
    pub payload: Option<Value>,
}

/// What a round publishes.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Facts that differ, or that the broker would forget.
    pub tell: Vec<Tell>,
    /// Events about facts that have changed.
    pub changed: Vec<Value>,
    /// The presence, which comes last.
    pub presence: Presence,
    /// Kinds that the broker did not hold as they are: the promise was repaired, or kept if there
    /// are none.
    pub repaired: Vec<Kind>,
}

impl Plan {
    /// Returns the outcome in a word.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self.repaired.is_empty() {
            true => "kept",
            false => "repaired",
        }
    }

    /// Returns the outcome for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let names: Vec<&str> = self.repaired.iter().map(|kind| kind.name()).collect();
        json!({"outcome": self.outcome(), "changed": names, "failed": self.presence.failed})
    }
}

/// Returns the payload of the facts of a kind.
#[must_use]
pub fn payload(node: &str, kind: Kind, ts: i64, facts: &Facts) -> Value {
    json!({"node": node, "kind": kind.name(), "ts": ts, "facts": facts})
}

impl Node {
    /// Returns its presence.
    #[must_use]
    pub fn presence(&self, state: State, now: i64) -> Presence {
        Presence {
            state,
            node: self.name.clone(),
            host: self.host.clone(),
            version: self.version.clone(),
            ts: now,
            interval: self.interval,
            kinds: BTreeMap::new(),
            failed: Vec::new(),
            machine: self.machine.clone(),
        }
    }

    /// Returns the presence of another machine that holds the name of this node, as far as that
    /// tells facts still.
    #[must_use]
    pub fn rival<'a>(&self, held: &'a Held, now: i64) -> Option<&'a Presence> {
        held.presence.as_ref().filter(|presence| {
            let both_known = !presence.machine.is_empty() && !self.machine.is_empty();
            both_known
                && presence.machine != self.machine
                && presence.verdict(now) == Verdict::Fresh
        })
    }

    /// Decides what to publish at second `now`, if the broker has `held` and this was `gathered`.
    #[must_use]
    pub fn plan(&self, held: &Held, gathered: &Gathered, now: i64) -> Plan {
        let mut presence = self.presence(State::Online, now);
        presence.failed.clone_from(&gathered.failed);
        let (mut tell, mut repaired) = (Vec::new(), Vec::new());
        let mut changes = Changes::default();
        for kind in Kind::ALL {
            let held = held.kinds.get(&kind);
            let gathered = gathered.kinds.get(&kind);
            let Some(facts) = gathered.filter(|_| self.share.contains(&kind)) else {
                // What is no longer shared is not to be read either.
                if held.is_some() {
                    let payload = None;
                    tell.push(Tell { kind, payload });
                    repaired.push(kind);
                }
                continue;
            };
            let held = held.and_then(Option::as_ref);
            let facts = steady(held.map(|held| &held.facts), facts.clone());
            presence.kinds.insert(kind, digest(&facts));
            let ts = match held {
                // One that was told by a clock ahead of the present one has no age.
                Some(held) if held.facts == facts && age(held.ts, now).is_some() => {
                    let left = held.until.map(|until| until.saturating_sub(now));
                    let half = i64::from(self.keep / 2);
                    let is_safe = |left: i64| left >= half && left <= i64::from(self.keep);
                    if left.is_none_or(is_safe) {
                        continue;
                    }
                    held.ts
                }
                held => {
                    if let Some(held) = held.filter(|_| kind != Kind::Dynamic) {
                        changes.add(&self.name, kind, (&held.facts, &facts), now);
                    }
                    repaired.push(kind);
                    now
                }
            };
            let payload = Some(payload(&self.name, kind, ts, &facts));
            tell.push(Tell { kind, payload });
        }
        Plan {
            tell,
            changed: changes.events(&self.name, now),
            presence,
            repaired,
        }
    }
}

/// Returns the facts `is`, with the boot time of `was` if both are that of the same boot.
fn steady(was: Option<&Facts>, mut is: Facts) -> Facts {
    let boot = |facts: &Facts| facts.get("boot").and_then(Value::as_i64);
    if let (Some(earlier), Some(later)) = (was.and_then(boot), boot(&is))
        && earlier.abs_diff(later) <= SAME_BOOT.unsigned_abs()
    {
        is.insert("boot".to_owned(), json!(earlier));
    }
    is
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::facts::bounds::{MAX_MESSAGE, MAX_VALUES};
    use crate::model::facts::tree::sorted;
    use crate::model::facts::tree::tests::facts;

    fn node(share: &[Kind]) -> Node {
        Node {
            name: "seq1".into(),
            host: "h".into(),
            version: "1".into(),
            machine: "m1".into(),
            interval: 60,
            keep: 1000,
            share: share.to_vec(),
        }
    }

    fn gathered(value: Value) -> Gathered {
        Gathered {
            kinds: BTreeMap::from([(Kind::State, sorted(facts(value)))]),
            failed: Vec::new(),
        }
    }

    fn held(value: Value, until: Option<i64>) -> Held {
        let facts = sorted(facts(value));
        let held = HeldFacts {
            ts: 10,
            facts,
            until,
        };
        Held {
            kinds: BTreeMap::from([(Kind::State, Some(held))]),
            presence: None,
        }
    }

    #[test]
    fn what_the_broker_holds_is_kept() {
        let all = json!({"b": 1, "a": {"c": [2]}});
        for until in [None, Some(2000), Some(1500)] {
            let plan =
                node(&Kind::ALL).plan(&held(all.clone(), until), &gathered(all.clone()), 1000);
            assert_eq!(
                (plan.outcome(), plan.tell.len(), plan.changed.len()),
                ("kept", 0, 0)
            );
            assert!(plan.presence.kinds.contains_key(&Kind::State));
        }
        assert_eq!(
            node(&Kind::ALL)
                .plan(&held(all.clone(), None), &gathered(all), 1000)
                .json()
                .to_string(),
            r#"{"outcome":"kept","changed":[],"failed":[]}"#
        );
    }

    #[test]
    fn facts_are_told_again_before_they_expire_with_the_date_of_their_change() {
        let all = json!({"a": 1});
        // Too little is left, or more than the present limit.
        for until in [1499, 2001] {
            let plan = node(&Kind::ALL).plan(
                &held(all.clone(), Some(until)),
                &gathered(all.clone()),
                1000,
            );
            assert_eq!(plan.outcome(), "kept");
            assert_eq!(plan.tell[0].payload.as_ref().expect("payload")["ts"], 10);
            assert_eq!(plan.changed.len(), 0);
        }
    }

    #[test]
    fn a_change_is_repaired_and_told() {
        let plan = node(&Kind::ALL).plan(
            &held(json!({"a": 1}), None),
            &gathered(json!({"a": 2})),
            1000,
        );
        assert_eq!(plan.repaired, [Kind::State]);
        assert_eq!(plan.changed[0]["was"], 1);
        let text = r#"{"node":"seq1","kind":"state","ts":1000,"facts":{"a":2}}"#;
        assert_eq!(
            plan.tell[0]
                .payload
                .as_ref()
                .map(ToString::to_string)
                .as_deref(),
            Some(text)
        );
    }

    #[test]
    fn the_first_telling_is_no_change() {
        let plan = node(&Kind::ALL).plan(&Held::default(), &gathered(json!({"a": 2})), 1000);
        assert_eq!((plan.outcome(), plan.changed.len()), ("repaired", 0));
        // Neither is one after a message that cannot be read.
        let held = Held {
            kinds: BTreeMap::from([(Kind::State, None)]),
            presence: None,
        };
        let plan = node(&Kind::ALL).plan(&held, &gathered(json!({"a": 2})), 1000);
        assert_eq!((plan.outcome(), plan.changed.len()), ("repaired", 0));
    }

    #[test]
    fn what_is_no_longer_shared_is_cleared() {
        let all = json!({"a": 1});
        let plan = node(&[Kind::Common]).plan(&held(all.clone(), None), &gathered(all), 1000);
        assert_eq!(
            plan.tell,
            [Tell {
                kind: Kind::State,
                payload: None
            }]
        );
        assert!(plan.presence.kinds.is_empty());
    }

    #[test]
    fn a_boot_time_that_jitters_is_the_same() {
        let near = node(&Kind::ALL).plan(
            &held(json!({"boot": 5000}), None),
            &gathered(json!({"boot": 5001})),
            9000,
        );
        assert_eq!(near.outcome(), "kept");
        let far = node(&Kind::ALL).plan(
            &held(json!({"boot": 5000}), None),
            &gathered(json!({"boot": 6000})),
            9000,
        );
        assert_eq!(far.outcome(), "repaired");
    }

    #[test]
    fn facts_that_a_wrong_clock_has_told_are_told_again() {
        let all = json!({"a": 1});
        let mut wrong = held(all.clone(), Some(2000));
        if let Some(Some(held)) = wrong.kinds.get_mut(&Kind::State) {
            held.ts = 5000;
        }
        let plan = node(&Kind::ALL).plan(&wrong, &gathered(all), 1000);
        assert_eq!((plan.outcome(), plan.changed.len()), ("repaired", 0));
        let told = plan.tell.first().and_then(|tell| tell.payload.as_ref());
        assert_eq!(told.map(|payload| &payload["ts"]), Some(&json!(1000)));
    }

    #[test]
    fn another_machine_holds_the_name_while_it_is_fresh() {
        let rival = |machine: &str, state, ts| {
            let mut held = Held::default();
            let mut presence = node(&[]).presence(state, ts);
            presence.machine = machine.to_owned();
            held.presence = Some(presence);
            node(&[]).rival(&held, 1000).is_some()
        };
        assert!(rival("m2", State::Online, 990));
        assert!(!rival("m1", State::Online, 990) && !rival("", State::Online, 990));
        assert!(!rival("m2", State::Online, 700) && !rival("m2", State::Offline, 990));
        assert!(rival("m2", State::Online, 1030) && !rival("m2", State::Online, 1031));
        assert!(!rival("m2", State::Online, i64::MAX));
    }

    #[test]
    fn facts_of_another_node_are_not_ours() {
        let text = payload("seq1", Kind::State, 7, &facts(json!({"a": 1}))).to_string();
        let parse =
            |node, kind, text: &str| HeldFacts::parse(node, kind, text.as_bytes(), Some(5), 100);
        assert_eq!(
            parse("seq1", Kind::State, &text).and_then(|held| held.until),
            Some(105)
        );
        assert_eq!(parse("seq2", Kind::State, &text), None);
        assert_eq!(parse("seq1", Kind::Static, &text), None);
        assert_eq!(parse("seq1", Kind::State, "{}"), None);
        let many = |count: usize| {
            let all = (0..count).map(|n| (n.to_string(), json!(1))).collect();
            payload("seq1", Kind::State, 7, &all).to_string()
        };
        assert!(parse("seq1", Kind::State, &many(MAX_VALUES)).is_some());
        assert_eq!(parse("seq1", Kind::State, &many(MAX_VALUES + 1)), None);
        let large = facts(json!({"a": "x".repeat(MAX_MESSAGE)}));
        let large = payload("seq1", Kind::State, 7, &large).to_string();
        assert_eq!(parse("seq1", Kind::State, &large), None);
    }
}
