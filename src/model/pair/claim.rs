//! The claim of a side: a retained message that says who holds it.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::model::event::MAX_ID_BYTES;
use crate::model::json;
use crate::model::pair::Side;
use crate::model::text::printable;

/// Time after which the broker forgets a claim that was not renewed. A broker that was killed publishes
/// no will, and may have kept the claim on its disk.
pub const LIFETIME: Duration = Duration::from_secs(50);

/// Interval at which a holder renews its claim.
pub const RENEWAL: Duration = Duration::from_secs(10);

/// Maximum size of a claim that is read, bytes.
const MAX_BYTES: usize = 4096;

/// Maximum number of characters of a name to show.
const MAX_NAME: usize = 80;

/// The claim of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Identifies the process that holds the side (a ULID).
    pub id: String,
    /// Its user.
    pub user: String,
    /// Its host.
    pub host: String,
    /// When it took the side, seconds since 1970.
    pub since: i64,
}

impl Claim {
    /// Returns its payload, `{"id":…,"user":…,"host":…,"since":…}`.
    #[must_use]
    pub fn payload(&self) -> String {
        json::to_text(&Value::Object(self.object()))
    }

    /// Returns it as JSON.
    #[must_use]
    pub fn object(&self) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("id".into(), self.id.clone().into());
        object.insert("user".into(), self.user.clone().into());
        object.insert("host".into(), self.host.clone().into());
        object.insert("since".into(), self.since.into());
        object
    }

    /// Reads the payload of a claim. `None` for an empty one, which means that the side is free, and for
    /// everything that no end of a pair has written.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        if payload.len() > MAX_BYTES {
            return None;
        }
        let value = json::parse(payload).ok()?;
        let text = |key: &str| value.get(key)?.as_str();
        // It becomes a level of a topic.
        let is_id = |id: &&str| id.bytes().all(|b| b.is_ascii_alphanumeric()) && !id.is_empty();
        let id = text("id")
            .filter(|id| id.len() <= MAX_ID_BYTES)
            .filter(is_id)?;
        Some(Self {
            id: id.to_owned(),
            user: text("user")?.to_owned(),
            host: text("host")?.to_owned(),
            since: value.get("since")?.as_i64()?,
        })
    }

    /// Returns the holder for people, `ann@seq1`.
    #[must_use]
    pub fn holder(&self) -> String {
        let user = printable(&self.user, MAX_NAME);
        format!("{user}@{}", printable(&self.host, MAX_NAME))
    }
}

/// What stands on the claims of both sides.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    a: Option<Claim>,
    b: Option<Claim>,
}

impl Claims {
    /// Returns the claim of `side`.
    #[must_use]
    pub const fn of(&self, side: Side) -> Option<&Claim> {
        match side {
            Side::A => self.a.as_ref(),
            Side::B => self.b.as_ref(),
        }
    }

    /// Notes the claim of `side`.
    pub fn set(&mut self, side: Side, claim: Option<Claim>) {
        match side {
            Side::A => self.a = claim,
            Side::B => self.b = claim,
        }
    }

    /// Returns all claims.
    pub fn all(&self) -> impl Iterator<Item = &Claim> {
        self.a.iter().chain(&self.b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim() -> Claim {
        Claim {
            id: "01JBV7Y3ZK8Q5W2N4T6R9M1XCD".into(),
            user: "ann".into(),
            host: "seq1".into(),
            since: 1_772_368_496,
        }
    }

    #[test]
    fn a_claim_is_read_as_it_was_written() {
        let payload = claim().payload();
        assert_eq!(
            payload,
            r#"{"id":"01JBV7Y3ZK8Q5W2N4T6R9M1XCD","user":"ann","host":"seq1","since":1772368496}"#
        );
        assert_eq!(Claim::parse(payload.as_bytes()), Some(claim()));
        assert_eq!(claim().holder(), "ann@seq1");
    }

    #[test]
    fn what_no_end_has_written_claims_nothing() {
        let long = format!(
            r#"{{"id":"{}","user":"a","host":"b","since":1}}"#,
            "x".repeat(5000)
        );
        for payload in [
            "",
            "{}",
            "ann",
            "[1]",
            r#"{"id":"","user":"a","host":"b","since":1}"#,
            r#"{"id":"+","user":"a","host":"b","since":1}"#,
            r#"{"id":"x/y","user":"a","host":"b","since":1}"#,
            r#"{"id":"x","user":"a","host":"b"}"#,
            r#"{"id":"x","user":1,"host":"b","since":1}"#,
            &long,
        ] {
            assert_eq!(Claim::parse(payload.as_bytes()), None, "{payload}");
        }
        let odd = Claim {
            user: "a\x1b[2Jb\n".into(),
            ..claim()
        };
        assert!(!odd.holder().contains(['\x1b', '\n']), "{}", odd.holder());
    }

    proptest! {
        #[test]
        fn no_payload_makes_it_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Claim::parse(&payload);
        }
    }
}
