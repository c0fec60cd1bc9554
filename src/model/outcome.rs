//! How a run ended, as a line of JSON: in the unit's folder, in the ledger, from the runner.

use serde_json::{Value, json};

use crate::model::unit::{End, Outcome, Stopped};

/// Returns an outcome as its file contains it.
#[must_use]
pub fn outcome_text(outcome: &Outcome) -> String {
    let end = match &outcome.end {
        End::Exited(code) => json!({"exited": code}),
        End::Signaled(signal) => json!({"signaled": signal}),
        End::NotStarted(cause) => json!({"not_started": cause}),
        End::Interrupted => json!("interrupted"),
    };
    let stopped = outcome.stopped.map(|stopped| match stopped {
        Stopped::Canceled => "canceled",
        Stopped::TimedOut => "timed-out",
    });
    json!({
        "end": end,
        "stopped": stopped,
        "started_ms": outcome.started,
        "elapsed_us": outcome.elapsed,
        "max_rss_kib": outcome.max_rss,
        "cpu_us": outcome.cpu,
        "dropped_stdout": outcome.dropped[0],
        "dropped_stderr": outcome.dropped[1],
        "remains": outcome.remains,
    })
    .to_string()
}

/// Reads the text of [`outcome_text`].
#[must_use]
pub fn parse_outcome(bytes: &[u8]) -> Option<Outcome> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    let code = |v: &Value| v.as_i64().and_then(|n| i32::try_from(n).ok());
    let end = value.get("end")?;
    let end = match end.as_object().and_then(|o| o.iter().next()) {
        Some((kind, v)) => match kind.as_str() {
            "exited" => End::Exited(code(v)?),
            "signaled" => End::Signaled(code(v)?),
            "not_started" => End::NotStarted(v.as_str()?.to_owned()),
            _ => return None,
        },
        None if end == "interrupted" => End::Interrupted,
        None => return None,
    };
    let stopped = match value.get("stopped")? {
        Value::Null => None,
        v => match v.as_str()? {
            "canceled" => Some(Stopped::Canceled),
            "timed-out" => Some(Stopped::TimedOut),
            _ => return None,
        },
    };
    Some(Outcome {
        end,
        stopped,
        started: value.get("started_ms")?.as_i64()?,
        elapsed: number("elapsed_us")?,
        max_rss: number("max_rss_kib")?,
        cpu: number("cpu_us")?,
        dropped: [number("dropped_stdout")?, number("dropped_stderr")?],
        // Earlier versions did not write it.
        remains: match value.get("remains") {
            None | Some(Value::Null) => None,
            Some(text) => Some(text.as_str()?.to_owned()),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outcomes() -> impl Strategy<Value = Outcome> {
        let end = prop_oneof![
            any::<i32>().prop_map(End::Exited),
            (1..64).prop_map(End::Signaled),
            any::<String>().prop_map(End::NotStarted),
            Just(End::Interrupted),
        ];
        let stopped = prop_oneof![
            Just(None),
            Just(Some(Stopped::Canceled)),
            Just(Some(Stopped::TimedOut))
        ];
        (
            end,
            stopped,
            any::<(i64, u64, u64, u64, [u64; 2], Option<String>)>(),
        )
            .prop_map(
                |(end, stopped, (started, elapsed, max_rss, cpu, dropped, remains))| Outcome {
                    end,
                    stopped,
                    started,
                    elapsed,
                    max_rss,
                    cpu,
                    dropped,
                    remains,
                },
            )
    }

    proptest! {
        #[test]
        fn outcomes_are_read_as_written(outcome in outcomes()) {
            prop_assert_eq!(parse_outcome(outcome_text(&outcome).as_bytes()), Some(outcome));
        }

        #[test]
        fn half_an_outcome_is_none(outcome in outcomes(), cut in 0.0..1.0f64) {
            let text = outcome_text(&outcome);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let part = &text.as_bytes()[..(text.len() as f64 * cut) as usize];
            prop_assert_eq!(parse_outcome(part), None);
        }
    }
}
