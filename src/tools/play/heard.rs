//! Statuses of nodes and pipelines, and whether they fulfil a wait. Pure.

use std::collections::HashMap;

use crate::model::node::{ALIVE, LOST, TERMINATED, explain, failure};
use crate::model::playbook::is_pipeline_state;

/// Statuses of one of them.
#[derive(Debug, Clone, Default)]
struct Voice {
    /// Statuses since its last command.
    since: Vec<String>,
    /// Exit code of the last failure since then.
    failed: Option<i32>,
    /// Whether it is lost.
    lost: bool,
    /// Whether it was there at its last status, and the broker has not published its loss since.
    present: bool,
    /// Its very last status, for people.
    last: Option<String>,
}

impl Voice {
    fn has_ended(&self) -> bool {
        self.last.as_deref() == Some(TERMINATED)
    }
}

/// State of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Held,
    /// It has failed, with this exit code.
    Failed(i32),
    /// It is gone: its connection broke.
    Lost,
    /// It has ended, and says nothing any more.
    Ended,
    NotYet,
}

/// Statuses of all of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard(HashMap<String, Voice>);

impl Heard {
    fn voice(&mut self, name: &str) -> &mut Voice {
        self.0.entry(name.to_owned()).or_default()
    }

    /// Notes a command: earlier statuses no longer count.
    pub fn told(&mut self, name: &str) {
        let voice = self.voice(name);
        voice.since.clear();
        voice.failed = None;
    }

    /// Notes the `status` of a node. A retained one is older than our subscription.
    pub fn node(&mut self, name: &str, status: &str, retained: bool) {
        let voice = self.voice(name);
        // After a broken connection, a retained one may be new.
        let news = voice.last.as_deref().is_some_and(|last| last != status);
        voice.last = Some(status.to_owned());
        voice.lost = status == LOST;
        voice.present = ![LOST, TERMINATED].contains(&status);
        if voice.lost {
            voice.since.clear();
        } else if !retained || news {
            voice.failed = failure(status).or(voice.failed);
            voice.since.push(status.to_owned());
        }
    }

    /// Notes the status of a pipeline, with an exit code if it is an end.
    pub fn pipeline(&mut self, name: &str, status: &str, code: Option<i32>) {
        let voice = self.voice(name);
        voice.last = Some(status.to_owned());
        voice.since.push(status.to_owned());
        if ["failed", "falsestart"].contains(&status) {
            voice.failed = Some(code.unwrap_or(1));
        }
    }

    /// Returns whether `name` has ended, and was not started again.
    pub fn has_ended(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(Voice::has_ended)
    }

    /// Returns the state of a wait for `status` of `name`. With `exact` the whole status must be
    /// equal; otherwise it must contain it.
    pub fn judge(&self, name: &str, status: &str, exact: bool) -> Verdict {
        let Some(voice) = self.0.get(name) else {
            return Verdict::NotYet;
        };
        let exact = exact || is_pipeline_state(status);
        let fits = |said: &String| {
            if exact {
                said == status
            } else {
                said.contains(status)
            }
        };
        // These two are states: what was sent since does not end them.
        let is = match status {
            ALIVE => voice.present,
            TERMINATED => voice.has_ended(),
            _ => false,
        };
        // Either may be started again.
        let gone = status != ALIVE;
        if is || voice.since.iter().any(fits) {
            Verdict::Held
        } else if gone && voice.lost {
            Verdict::Lost
        } else if let Some(code) = voice.failed {
            Verdict::Failed(code)
        } else if gone && voice.has_ended() {
            Verdict::Ended
        } else {
            Verdict::NotYet
        }
    }

    /// Returns `NAME last said …`, for people.
    pub fn last(&self, name: &str) -> String {
        let voice = self.0.get(name);
        match voice.and_then(|v| v.last.as_deref()) {
            Some(last) => match failure(last) {
                Some(code) => format!("{name} last said '{last}': {}", explain(code)),
                None => format!("{name} last said '{last}'"),
            },
            None => format!(
                "{name} has said nothing since this playbook began: does it run, is it started, and is \
                 --root right?"
            ),
        }
    }

    /// Notes that a wait for `status` of pipeline `name` is fulfilled. The next wait needs a new
    /// one.
    pub fn took(&mut self, name: &str, status: &str) {
        let voice = self.voice(name);
        if let Some(place) = voice.since.iter().position(|said| said == status) {
            voice.since.drain(..=place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_before_a_command_does_not_answer_it() {
        let mut heard = Heard::default();
        let judge = |heard: &Heard, status: &str| heard.judge("n", status, false);
        assert_eq!(judge(&heard, "ALIVE"), Verdict::NotYet);
        heard.node("n", "STOPPED", true);
        assert_eq!(judge(&heard, "STOPPED"), Verdict::NotYet, "from yesterday");
        heard.node("n", "ALIVE", true);
        assert_eq!(judge(&heard, "ALIVE"), Verdict::Held);
        heard.told("n");
        for status in ["Command STOP received", "STARTED", "STOPPED"] {
            heard.node("n", status, false);
        }
        assert_eq!(judge(&heard, "STARTED"), Verdict::Held, "no gaps");
        assert_eq!(judge(&heard, "STOP"), Verdict::Held, "contained");
        assert_eq!(heard.judge("n", "STOP", true), Verdict::NotYet);
        heard.told("n");
        assert_eq!(judge(&heard, "STOPPED"), Verdict::NotYet);
        heard.node("n", "FAILED 3", false);
        assert_eq!(judge(&heard, "STOPPED"), Verdict::Failed(3));
        assert_eq!(judge(&heard, "FAILED"), Verdict::Held, "it was waited for");
    }

    #[test]
    fn who_is_gone_keeps_nobody_waiting() {
        let mut heard = Heard::default();
        heard.node("n", "ALIVE", true);
        heard.node("n", "LOST", false);
        assert_eq!(heard.judge("n", "STOPPED", false), Verdict::Lost);
        assert_eq!(
            heard.judge("n", "ALIVE", false),
            Verdict::NotYet,
            "it may come back"
        );
        assert_eq!(heard.last("n"), "n last said 'LOST'");
        heard.node("n", "ALIVE", false);
        assert_eq!(heard.judge("n", "ALIVE", false), Verdict::Held);
        heard.node("m", "STOPPED", true);
        assert_eq!(
            heard.judge("m", "ALIVE", false),
            Verdict::Held,
            "it is there"
        );
        heard.node("m", "STARTED", true);
        assert_eq!(
            heard.judge("m", "STARTED", false),
            Verdict::Held,
            "said meanwhile"
        );
        heard.node("m", "TERMINATED", false);
        assert_eq!(heard.judge("m", "ALIVE", false), Verdict::NotYet);
    }

    #[test]
    fn who_has_ended_keeps_nobody_waiting() {
        let mut heard = Heard::default();
        let judge = |heard: &Heard, status: &str| heard.judge("n", status, false);
        heard.node("n", "TERMINATED", true);
        assert_eq!(judge(&heard, "STARTED"), Verdict::Ended, "since yesterday");
        assert_eq!(judge(&heard, "ALIVE"), Verdict::NotYet, "it may be started");
        heard.told("n");
        assert_eq!(judge(&heard, "TERMINATED"), Verdict::Held);
        heard.node("n", "ALIVE", false);
        assert!(!heard.has_ended("n"));
        heard.told("n");
        assert_eq!(judge(&heard, "TERMINATED"), Verdict::NotYet);
        heard.node("n", "FAILED 3", false);
        heard.node("n", "TERMINATED", false);
        assert_eq!(
            judge(&heard, "STARTED"),
            Verdict::Failed(3),
            "before it ended"
        );
    }

    #[test]
    fn pipelines_end_one_way_or_the_other() {
        let mut heard = Heard::default();
        heard.pipeline("p", "started", None);
        assert_eq!(heard.judge("p", "finished", false), Verdict::NotYet);
        heard.pipeline("p", "failed", Some(7));
        assert_eq!(heard.judge("p", "finished", false), Verdict::Failed(7));
        assert_eq!(heard.judge("p", "failed", false), Verdict::Held);
    }
}
