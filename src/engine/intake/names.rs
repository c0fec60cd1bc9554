//! Names of events: the id of the sender, unless an event of other content has that name already.
//! Commands use `TAEL_EVENT` as a file name.

use std::collections::HashMap;
use std::sync::Arc;

use tracing::{debug, warn};

use crate::engine::intake::judge::Admission;
use crate::error::Result;
use crate::os::host::new_id;
use crate::os::logging::SENDERS;
use crate::store::ledger::{EventKey, Naming, Part, Reader};

type Digest = [u8; 32];

/// Beginnings of ULIDs of the years 2004 to 2039. New ones mostly sort after old ones, and need no
/// look-up.
const AS_ULIDS: [&str; 2] = ["01", "02"];

/// Names of events that are being written to the ledger, where they cannot be looked up yet. There
/// are at most as many as operations that wait for it.
#[derive(Debug, Default)]
pub struct Names {
    /// By the id of the sender and the digest: the name, and the number of events in flight.
    under_way: HashMap<String, HashMap<Digest, (String, usize)>>,
    /// No event has an id in [`AS_ULIDS`] that sorts after this one.
    latest: String,
    /// Whether it was logged that a sender gives one id to different events.
    said: bool,
}

impl Names {
    /// Reads the ids in the ledger.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn read(reader: &Reader) -> Result<Self> {
        let [from, to] = AS_ULIDS;
        Ok(Self {
            latest: reader.latest_sender(from, to)?.unwrap_or_default(),
            ..Self::default()
        })
    }

    /// Notes that an event has the id `sender`. Returns whether no earlier event can have it.
    fn is_new(&mut self, sender: &str) -> bool {
        let [from, to] = AS_ULIDS;
        let is_new = sender >= from && sender < to && *sender > *self.latest;
        if is_new {
            sender.clone_into(&mut self.latest);
        }
        is_new
    }

    fn naming(&self, sender: &str, digest: &Digest) -> Naming {
        match self.under_way.get(sender) {
            None => Naming::Free,
            Some(known) => match known.get(digest) {
                Some((name, _)) => Naming::Same(name.clone()),
                None => Naming::Taken,
            },
        }
    }

    fn leaves(&mut self, key: &EventKey) {
        if let Some(sender) = &key.sender {
            let digests = self.under_way.entry(sender.clone()).or_default();
            let (_, count) = digests.entry(key.digest).or_insert((key.id.clone(), 0));
            *count += 1;
        }
    }

    /// Notes that the event of `key` is in the ledger.
    pub fn arrived(&mut self, key: &EventKey) {
        let Some(sender) = &key.sender else { return };
        let Some(digests) = self.under_way.get_mut(sender) else {
            return;
        };
        if let Some((_, count)) = digests.get_mut(&key.digest) {
            *count -= 1;
            if *count == 0 {
                digests.remove(&key.digest);
            }
        }
        if digests.is_empty() {
            self.under_way.remove(sender);
        }
    }

    /// Names an event that will run.
    pub fn name(&mut self, reader: &Reader, admission: &mut Admission) {
        let (key, parts) = (&mut admission.key, &mut admission.parts);
        let Some(sender) = &key.sender else { return };
        let is_new = self.is_new(sender);
        key.is_new = is_new;
        let runs = |part: &Part| matches!(part, Part::Run { unit, .. } if unit.event == key.id);
        if !parts.iter().any(runs) {
            return;
        }
        let naming = match self.naming(sender, &key.digest) {
            Naming::Same(name) => Naming::Same(name),
            under_way if is_new => under_way,
            under_way => match reader.naming(sender, &key.digest) {
                Ok(Naming::Free) => under_way,
                Ok(naming) => naming,
                // Our own name is always correct.
                Err(e) => {
                    debug!("name an event: {e}");
                    Naming::Taken
                }
            },
        };
        let name = match naming {
            Naming::Free => None,
            Naming::Same(name) => Some(name),
            // It has a name of our own already.
            Naming::Taken if key.id != *sender => None,
            Naming::Taken => {
                let name = new_id();
                let topic = &admission.topic;
                if std::mem::replace(&mut self.said, true) {
                    debug!(
                        TAEL_EVENT = name,
                        TAEL_TOPIC = topic,
                        "the id '{sender}' came with another content; it runs as {name}"
                    );
                } else {
                    warn!(target: SENDERS,
                        TAEL_EVENT = name,
                        TAEL_TOPIC = topic,
                        "the tael-id '{sender}' came again with another content, which runs as \
                         event {name}: does its sender copy user properties?"
                    );
                }
                Some(name)
            }
        };
        if let Some(name) = name {
            for part in parts {
                if let Part::Run { unit, .. } = part
                    && unit.event == key.id
                    // This is the only reference so far.
                    && let Some(unit) = Arc::get_mut(unit)
                {
                    unit.event.clone_from(&name);
                }
            }
            key.id = name;
        }
        self.leaves(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(sender: &str, id: &str, digest: u8) -> EventKey {
        EventKey {
            id: id.into(),
            sender: Some(sender.into()),
            digest: [digest; 32],
            ..EventKey::default()
        }
    }

    #[test]
    fn only_ids_that_sort_after_all_others_are_new() {
        let mut names = Names::default();
        assert!(names.is_new("01B") && !names.is_new("01B"));
        assert!(names.is_new("01D") && !names.is_new("01C"));
        assert!(!names.is_new("1") && !names.is_new("00") && !names.is_new("x"));
        assert!(names.is_new("01DA"), "others do not count");
        let earlier = Names {
            latest: "01M".into(),
            ..Names::default()
        };
        assert!(!{ earlier }.is_new("01L"));
    }

    #[test]
    fn an_id_is_taken_while_another_event_of_it_is_on_its_way() {
        let mut names = Names::default();
        let first = key("X", "X", 1);
        assert_eq!(names.naming("X", &[1; 32]), Naming::Free);
        names.leaves(&first);
        names.leaves(&first);
        assert_eq!(names.naming("X", &[1; 32]), Naming::Same("X".into()));
        assert_eq!(names.naming("X", &[2; 32]), Naming::Taken);
        assert_eq!(names.naming("Y", &[2; 32]), Naming::Free);
        names.leaves(&key("X", "ours", 2));
        assert_eq!(names.naming("X", &[2; 32]), Naming::Same("ours".into()));
        names.arrived(&first);
        assert_eq!(names.naming("X", &[1; 32]), Naming::Same("X".into()));
        names.arrived(&first);
        assert_eq!(names.naming("X", &[1; 32]), Naming::Taken);
        names.arrived(&key("X", "ours", 2));
        names.arrived(&key("X", "ours", 2));
        assert!(names.under_way.is_empty());
    }
}
