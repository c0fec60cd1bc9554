//! The identity of a pipeline at its brokers: the file `session` in its state folder.
//!
//! It holds the client identifier, and the topic filters that a broker may hold for it. It is
//! separate from the ledger, so that a ledger that is moved away or restored does not change the
//! identity.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::model::topic::Filter;
use crate::os::host;

/// Name of the file, and of its next version while it is written.
const NAME: &str = "session";
const NEW: &str = "session.new";

/// Version of the format.
const VERSION: u64 = 1;

/// Maximum number of remembered brokers; beyond it the least recently used is forgotten.
const MAX_BROKERS: usize = 8;

/// Maximum size of the file, in bytes.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Maximum length of a client identifier that we make, bytes. A broker must accept 23 letters and
/// digits, and may accept more (MQTT 5.0, section 3.1.3.1); all known ones accept 64 bytes.
const MAX_ID: usize = 64;

/// Number of random characters in it: 80 bits.
const RANDOM: usize = 16;

/// Filters that a broker may hold for one client identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    id: String,
    /// Address of the broker.
    broker: String,
    filters: Vec<Filter>,
    /// Whether the broker has granted them in a session that outlives its connection.
    session: bool,
}

/// The identity of one pipeline.
#[derive(Debug)]
pub struct Identity {
    path: PathBuf,
    /// Whether there was no file.
    is_new: bool,
    /// Our own identifier; `None` before [`Identity::own_id`].
    id: Option<String>,
    /// The broker that was used last is last.
    held: Vec<Held>,
}

impl Identity {
    /// Reads the identity of the pipeline in the state folder `home`.
    ///
    /// # Errors
    /// When the file cannot be read (73) or comes from a newer version (78).
    pub fn open(home: &Path) -> Result<Self> {
        let path = home.join(NAME);
        let wrong = |cause: &str| {
            Error::cannot_create(format!(
                "read session file {}: {cause}; restore it, or move it away: events that \
                 the broker keeps for this client are then lost",
                path.display()
            ))
        };
        let text = read(&path);
        let is_new = matches!(&text, Err(e) if e.kind() == io::ErrorKind::NotFound);
        let (id, held) = match text {
            Ok(text) => {
                let value: Value =
                    serde_json::from_str(&text).map_err(|e| wrong(&e.to_string()))?;
                let version = value.get("version").and_then(Value::as_u64);
                if version.is_some_and(|version| version > VERSION) {
                    return Err(Error::config(format!(
                        "read session file {}: a newer Tael has written it; start that one",
                        path.display()
                    )));
                }
                parse(&value).ok_or_else(|| wrong("it is damaged"))?
            }
            Err(_) if is_new => (None, Vec::new()),
            Err(e) => return Err(wrong(&e.to_string())),
        };
        Ok(Self {
            path,
            is_new,
            id,
            held,
        })
    }

    /// Returns our client identifier. Without a file it is `earlier`, which a version without a
    /// file has used here, or a random one that contains the name `who`. It is written with the
    /// filters.
    pub fn own_id(&mut self, earlier: Option<&str>, who: &str) -> &str {
        let earlier = earlier.filter(|_| self.is_new);
        self.id
            .get_or_insert_with(|| earlier.map_or_else(|| random_id(who), str::to_owned))
    }

    /// Returns the filters that a broker may hold for client `id`, and whether the one at `broker`
    /// should have its session. The filters of all brokers count, because one broker can have
    /// several addresses.
    #[must_use]
    pub fn held(&self, id: &str, broker: &str) -> (Vec<Filter>, bool) {
        let ours = self.held.iter().filter(|held| held.id == id);
        let mut filters: Vec<Filter> = ours.flat_map(|held| held.filters.clone()).collect();
        filters.sort();
        filters.dedup();
        let here = self.held.iter().find(|held| held.is(id, broker));
        (filters, here.is_some_and(|held| held.session))
    }

    /// Notes that the broker at `broker` will get `filters` for client `id` too.
    ///
    /// # Errors
    /// When the file cannot be written (73).
    pub fn will_hold(&mut self, id: &str, broker: &str, filters: &[Filter]) -> Result<()> {
        let place = self.held.iter().position(|held| held.is(id, broker));
        let mut held = place.map_or_else(
            || Held {
                id: id.to_owned(),
                broker: broker.to_owned(),
                filters: Vec::new(),
                session: false,
            },
            |place| self.held.remove(place),
        );
        held.filters.extend_from_slice(filters);
        self.put(held)
    }

    /// Notes that the broker at `broker` holds exactly `filters` for client `id`, and whether in a
    /// `session` that outlives its connection.
    ///
    /// # Errors
    /// When the file cannot be written (73).
    pub fn holds(
        &mut self,
        id: &str,
        broker: &str,
        filters: Vec<Filter>,
        session: bool,
    ) -> Result<()> {
        self.held.retain(|held| !held.is(id, broker));
        self.put(Held {
            id: id.to_owned(),
            broker: broker.to_owned(),
            filters,
            session,
        })
    }

    fn put(&mut self, mut held: Held) -> Result<()> {
        held.filters.sort();
        held.filters.dedup();
        self.held.push(held);
        let surplus = self.held.len().saturating_sub(MAX_BROKERS);
        self.held.drain(..surplus);
        self.save()
    }

    /// Writes the file, unless it has this content already.
    ///
    /// # Errors
    /// When the file cannot be written (73), or not now (75).
    pub fn save(&self) -> Result<()> {
        let sessions: Vec<Value> = self.held.iter().map(Held::json).collect();
        let value = json!({"version": VERSION, "id": self.id, "sessions": sessions});
        let text = format!("{value}\n");
        if read(&self.path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        replace(&self.path, text.as_bytes()).map_err(|e| {
            let message = format!("write session file {}: {e}", self.path.display());
            Error::state(&e, message)
        })
    }
}

impl Held {
    fn is(&self, id: &str, broker: &str) -> bool {
        self.id == id && self.broker == broker
    }

    fn json(&self) -> Value {
        let filters: Vec<&str> = self.filters.iter().map(Filter::as_str).collect();
        json!({
            "id": self.id,
            "broker": self.broker,
            "filters": filters,
            "session": self.session,
        })
    }
}

fn parse(value: &Value) -> Option<(Option<String>, Vec<Held>)> {
    let id = match value.get("id")? {
        Value::Null => None,
        id => Some(id.as_str().filter(|id| !id.is_empty())?.to_owned()),
    };
    let text = |value: &Value, key: &str| Some(value.get(key)?.as_str()?.to_owned());
    let sessions = value.get("sessions")?.as_array()?.iter().map(|value| {
        let filters = value.get("filters")?.as_array()?.iter();
        Some(Held {
            id: text(value, "id")?,
            broker: text(value, "broker")?,
            filters: filters
                .map(|filter| Filter::new(filter.as_str()?).ok())
                .collect::<Option<_>>()?,
            session: value.get("session")?.as_bool()?,
        })
    });
    Some((id, sessions.collect::<Option<_>>()?))
}

fn read(path: &Path) -> io::Result<String> {
    let size = fs::metadata(path)?.len();
    if size > MAX_BYTES {
        return Err(io::Error::other(format!("it has {size} bytes")));
    }
    fs::read_to_string(path)
}

/// Replaces the file at `path` in one step that survives a power failure.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_file_name(NEW);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Returns a client identifier that no other client has, with `who` in it for people who read the
/// log of the broker.
fn random_id(who: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let room = MAX_ID - "tael--".len() - RANDOM;
    let name: String = who.chars().map(plain).take(room).collect();
    // The end of an id is its random part.
    let id = host::new_id().to_ascii_lowercase();
    let random = &id[id.len().saturating_sub(RANDOM)..];
    format!("tael-{name}-{random}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn filters(list: &[&str]) -> Vec<Filter> {
        let filters = list.iter().map(|f| Filter::new(*f).expect("filter"));
        filters.collect()
    }

    #[test]
    fn an_identity_is_kept_and_is_private() {
        let home = tempfile::tempdir().expect("tempdir");
        let open = || Identity::open(home.path()).expect("identity");
        let mut first = open();
        let id = first.own_id(None, "p q").to_owned();
        assert!(
            id.starts_with("tael-p-q-") && id.len() == 9 + RANDOM,
            "{id}"
        );
        assert_eq!(first.held(&id, "b:1"), (Vec::new(), false));
        let both = filters(&["a/#", "b"]);
        first.will_hold(&id, "b:1", &both).expect("write");
        assert_eq!(open().held(&id, "b:1"), (both.clone(), false));
        let mut second = open();
        assert_eq!(second.own_id(Some("other"), "p"), id);
        second
            .holds(&id, "b:1", filters(&["b"]), true)
            .expect("write");
        assert_eq!(open().held(&id, "b:1"), (filters(&["b"]), true));
        // Another address may be the same broker, but then it has no session to lose.
        assert_eq!(open().held(&id, "b:2"), (filters(&["b"]), false));
        assert_eq!(open().held("other", "b:1"), (Vec::new(), false));
        let mode = fs::metadata(home.path().join(NAME))
            .expect("file")
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        assert!(!home.path().join(NEW).exists());
    }

    #[test]
    fn an_earlier_identifier_stays_and_names_make_short_ones() {
        let home = tempfile::tempdir().expect("tempdir");
        let mut upgraded = Identity::open(home.path()).expect("identity");
        assert_eq!(upgraded.own_id(Some("tael-p-host"), "p"), "tael-p-host");
        for who in ["", "αβγ", &"x".repeat(128)] {
            let id = random_id(who);
            assert!(id.len() <= MAX_ID && id.is_ascii(), "{id}");
        }
        assert_ne!(random_id("p"), random_id("p"));
    }

    #[test]
    fn brokers_are_forgotten_and_damage_is_left_alone() {
        let home = tempfile::tempdir().expect("tempdir");
        let mut identity = Identity::open(home.path()).expect("identity");
        for n in 0..=MAX_BROKERS {
            let filters = filters(&[&format!("t/{n}")]);
            identity
                .holds("i", &format!("b:{n}"), filters, true)
                .expect("write");
        }
        assert_eq!(identity.held("i", "b:0").0.len(), MAX_BROKERS);
        for (text, code) in [
            ("", 73),
            ("{}", 73),
            (r#"{"version":1,"id":7,"sessions":[]}"#, 73),
            (r#"{"version":1,"id":"i","sessions":[{"id":"i"}]}"#, 73),
            (r#"{"version":2}"#, 78),
        ] {
            let path = home.path().join(NAME);
            fs::write(&path, text).expect("write");
            let error = Identity::open(home.path()).expect_err(text);
            assert_eq!(error.exit_code(), code, "{error}");
            assert_eq!(fs::read_to_string(&path).expect("read"), text);
        }
    }
}
