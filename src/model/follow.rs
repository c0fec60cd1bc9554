//! A unit that starts follows its trigger as it is at that moment.

use std::sync::Arc;

use crate::model::command::Command;
use crate::model::control::{self, Action};
use crate::model::event::{self, Attributes, Refusal};
use crate::model::queue_delivery::scalars;
use crate::model::status::REASON_RAISED;
use crate::model::trigger::{Taken, Trigger};
use crate::model::unit::Unit;

/// Environment of a unit that starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Followed {
    /// The one that it carries.
    AsAccepted,
    /// Another one, and warnings about attributes that it lacks.
    Anew(Vec<String>),
}

/// Makes `unit`, which has its payload, run as its `trigger` says now. Command and environment change
/// together: a new command may need variables that the unit does not carry. If its attributes cannot
/// be read, both stay.
///
/// # Errors
/// When its event lacks what the trigger requires now. The passthrough attributes are those of its
/// status.
pub fn follow(trigger: &Trigger, unit: &mut Unit) -> Result<Followed, Refusal> {
    let now = &trigger.spec;
    if now.exports.is_some() && unit.spec.exports == now.exports {
        unit.spec = Arc::clone(now);
        return Ok(Followed::AsAccepted);
    }
    let Some(attributes) = attributes(unit) else {
        // An earlier version has not recorded how its command is run: only the trigger can run it.
        if matches!(unit.spec.command, Command::Recorded(_)) {
            unit.spec = Arc::clone(now);
        }
        return Ok(Followed::AsAccepted);
    };
    let Taken {
        variables,
        passthrough,
        warnings,
    } = trigger.take(&attributes);
    unit.passthrough = passthrough;
    if let Some(refusal) = trigger.lacking(&attributes) {
        return Err(refusal);
    }
    unit.variables = variables;
    unit.spec = Arc::clone(now);
    Ok(Followed::Anew(warnings))
}

/// Returns the attributes of the event of `unit`, if its payload has them.
fn attributes(unit: &Unit) -> Option<Attributes> {
    // It was accepted under the limit of that time.
    let limit = usize::MAX;
    let payload = unit.payload.as_deref()?;
    if unit.origin.is_some() {
        return event::attributes(payload, limit).ok().map(scalars);
    }
    if unit.reason != REASON_RAISED {
        return event::attributes(payload, limit).ok();
    }
    match control::parse(payload, limit).1 {
        Ok(Action::Raise { attributes, .. }) => Some(attributes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::env::Export;
    use crate::model::policy::Policy;
    use crate::model::spec::{Exports, Spec};
    use crate::model::topic::Filter;
    use crate::model::variables::Variables;

    fn trigger(command: &str, required: &[&str]) -> Trigger {
        let required = required.iter().map(|key| (*key).to_owned()).collect();
        let export = Export::new(None, required).expect("export");
        let spec = Spec {
            exports: Some(Exports {
                export: export.clone(),
                passthrough: vec!["SAMPLE".into()],
            }),
            ..Spec::new("t", Command::Direct(vec![command.into()]))
        };
        Trigger {
            name: "t".into(),
            filters: vec![Filter::new("lab/a").expect("filter")],
            conditions: Vec::new(),
            export,
            passthrough: vec!["SAMPLE".into()],
            queue: None,
            accept_retained: false,
            reply: None,
            absent: None,
            policy: Policy::default(),
            spec: Arc::new(spec),
        }
    }

    /// A unit that `trigger` has made of `payload`.
    fn unit(trigger: &Trigger, payload: &str, reason: &str) -> Unit {
        let mut unit = Unit {
            id: "u".into(),
            spec: Arc::clone(&trigger.spec),
            event: "e".into(),
            topic: "lab/a".into(),
            reason: reason.into(),
            hops: 0,
            traceparent: None,
            attempt: 1,
            retry_of: None,
            due: 0,
            variables: Vec::new(),
            passthrough: Attributes::new(),
            payload: Some(payload.to_owned().into()),
            reply: None,
            origin: None,
            work: None,
        };
        let taken = attributes(&unit).map(|attributes| trigger.take(&attributes));
        let taken = taken.unwrap_or_default();
        (unit.variables, unit.passthrough) = (taken.variables, taken.passthrough);
        unit
    }

    fn variables(list: &[(&str, &str)]) -> Variables {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).into());
        list.iter().map(pair).collect()
    }

    #[test]
    fn command_and_environment_follow_together() {
        let (old, new) = (trigger("old", &[]), trigger("new", &["SAMPLE"]));
        for (payload, reason) in [
            (r#"{"sample":"S7"}"#, "lab/a finished"),
            (
                r#"{"action":"raise","trigger":"t","sample":"S7","tael-request":{"id":"1"}}"#,
                REASON_RAISED,
            ),
        ] {
            let mut waits = unit(&old, payload, reason);
            assert_eq!(waits.variables, variables(&[("ATTR_SAMPLE", "S7")]));
            assert_eq!(follow(&new, &mut waits), Ok(Followed::Anew(Vec::new())));
            assert_eq!(waits.variables, variables(&[("SAMPLE", "S7")]), "{reason}");
            assert_eq!(waits.passthrough["SAMPLE"], "S7");
            assert_eq!(waits.spec, new.spec);
        }
    }

    #[test]
    fn what_lacks_a_required_attribute_now_does_not_run() {
        let (old, new) = (trigger("old", &[]), trigger("new", &["SAMPLE"]));
        let mut waits = unit(&old, r#"{"sampel":"S7"}"#, "lab/a finished");
        let refusal = follow(&new, &mut waits).expect_err("it lacks SAMPLE");
        assert_eq!(refusal.code(), "missing-attributes");
        assert_eq!(waits.spec, old.spec);
    }

    #[test]
    fn without_attributes_the_old_command_keeps_its_environment() {
        let (old, new) = (trigger("old", &[]), trigger("new", &["SAMPLE"]));
        for (payload, reason) in [("", "lab/a finished"), (r#"{"action":"x"}"#, REASON_RAISED)] {
            let mut waits = unit(&old, payload, reason);
            waits.variables = variables(&[("KEPT", "1")]);
            let before = waits.clone();
            assert_eq!(follow(&new, &mut waits), Ok(Followed::AsAccepted));
            assert_eq!(waits, before);
        }
    }

    #[test]
    fn the_same_exports_need_no_second_look() {
        let (old, new) = (trigger("old", &["SAMPLE"]), trigger("new", &["SAMPLE"]));
        let mut waits = unit(&old, r#"{"sample":"S7"}"#, "lab/a finished");
        waits.variables = variables(&[("KEPT", "1")]);
        assert_eq!(follow(&new, &mut waits), Ok(Followed::AsAccepted));
        assert_eq!(
            (&waits.variables, &waits.spec),
            (&variables(&[("KEPT", "1")]), &new.spec)
        );
        // An earlier version has not recorded them.
        let mut waits = unit(&old, r#"{"sample":"S7"}"#, "lab/a finished");
        waits.spec = Arc::new(Spec::new("t", Command::Recorded("old".into())));
        assert_eq!(follow(&new, &mut waits), Ok(Followed::Anew(Vec::new())));
        assert_eq!(waits.variables, variables(&[("SAMPLE", "S7")]));
    }
}
