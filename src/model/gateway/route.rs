//! Routes: a path of the gateway, who may call it, and what becomes of a request.
//!
//! ```toml
//! [[route]]
//! name = "push"
//! path = "/hooks/push"
//! source = "github"
//! secret-file = "/etc/tael/push.secret"
//! topic = "lab/git/push"
//! rule = { json = "ref", value = "refs/heads/main" }
//! map.commit = { json = "after" }
//! ```

use std::fmt;

use toml::Value;

use crate::model::event::Attributes;
use crate::model::gateway::answer::Answer;
use crate::model::gateway::keys::{Keys, MAX_SHOWN, Wrong, Wrongs};
use crate::model::gateway::mapping::{Mapping, Unmapped};
use crate::model::gateway::parameters::{self, Wrong as Unread};
use crate::model::gateway::part::is_field;
use crate::model::gateway::request::{Incoming, Only, Request};
use crate::model::gateway::rules::{ReadFile, Rule, TooLong};
use crate::model::gateway::secret::Secret;
use crate::model::gateway::signature::{Code, Encoding, Hash, Refusal, Scheme, Verifier, event_id};
use crate::model::gateway::work::Kind;
use crate::model::text::printable;
use crate::model::topic;

/// Maximum length of the name of a route, bytes. It begins the ids of its events.
pub const MAX_NAME: usize = 27;

/// Maximum length of a path, bytes.
pub const MAX_PATH: usize = 256;

/// Paths of the gateway itself, with all below those that end with `/`.
const RESERVED: &[&str] = &[
    "/", "/RPC2", "/api/", "/healthz", "/metrics", "/q/", "/t/", "/units", "/units/", "/w/",
];

/// Methods that a route may have.
const METHODS: &[&str] = &["POST", "PUT", "GET", "PATCH", "DELETE"];

/// Field of the forms of GitHub and Gitea with the JSON document.
const FORM_MEMBER: &str = "payload";

/// Keys of a `[[route]]` table, and their meaning.
pub const KEYS: [(&str, &str); 16] = [
    (
        "name",
        "Name of the route, in the log, in metrics and before the ids of its deliveries",
    ),
    ("path", "Path of its requests"),
    (
        "method",
        "Method of its requests, or a list [default: POST]",
    ),
    (
        "source",
        "Who signs: github, gitea, forgejo, gitlab, standard, hmac-sha256, hmac-sha512 or bearer; without it the \
         caller needs a token of the gateway",
    ),
    (
        "secret-file",
        "File with the secret of the source, or a list of files while it is replaced",
    ),
    (
        "header",
        "Field with the signature of hmac-sha256 and hmac-sha512",
    ),
    ("prefix", "What stands before the signature in that field"),
    (
        "encoding",
        "hex or base64: how that signature is written [default: hex]",
    ),
    (
        "id-header",
        "Field with the id of a delivery: a delivery that comes again runs once",
    ),
    (
        "rule",
        "Table, or a list of tables, that must hold: and, or, not, ip, header, query, json, request",
    ),
    (
        "map",
        "Table of attributes; each is a table with header, query, json, request or value, and default or optional",
    ),
    (
        "payload",
        "true: the members of the body are attributes, too [default: true without map]",
    ),
    (
        "answer",
        "Table with status, message, type, mismatch and wait",
    ),
    ("topic", "Topic of the message"),
    ("queue", "Queue of the message"),
    ("work", "NODE/TYPE of the work, which allow-work must name"),
];

/// Where the event of a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A message on a topic.
    Topic(String),
    /// A message in a work queue.
    Queue(String),
    /// A unit of work.
    Work(Kind),
}

/// Checks that a route may lead somewhere; an error is a text for the user.
pub type CheckTarget<'a> = &'a dyn Fn(&Target) -> Result<(), String>;

/// A route.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its name.
    pub name: String,
    /// Its path.
    pub path: String,
    /// Its methods, in upper case.
    pub methods: Vec<String>,
    /// Where its events go.
    pub target: Target,
    /// How it answers.
    pub answer: Answer,
    verifier: Option<Verifier>,
    /// Field of a form that holds the JSON document: some senders can send forms instead.
    member: Option<&'static str>,
    rule: Option<Rule>,
    mapping: Mapping,
}

/// A request that a route has accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// Attributes of the event.
    pub attributes: Attributes,
    /// Id of the event, the same if the sender sends the request again. Without one the event gets a
    /// new id.
    pub id: Option<String>,
}

/// Why a route does not accept a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It does not come from the sender.
    Sender(Refusal),
    /// Its rule does not hold.
    Rule,
    /// Its rule cannot be judged.
    TooLong(TooLong),
    /// Its query or its body cannot be read: a text for the caller.
    Unread(String),
    /// It has no attributes.
    Unmapped(Unmapped),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sender(refusal) => refusal.fmt(f),
            Self::Rule => f.write_str("the rule of the route does not hold"),
            Self::TooLong(cause) => cause.fmt(f),
            Self::Unread(cause) => f.write_str(cause),
            Self::Unmapped(cause) => cause.fmt(f),
        }
    }
}

impl Refused {
    /// Returns the status of the answer.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Sender(_) => 401,
            Self::Rule => 403,
            Self::TooLong(_) | Self::Unmapped(Unmapped::TooLarge { .. }) => 413,
            Self::Unread(_) | Self::Unmapped(_) => 400,
        }
    }

    /// Returns what the caller is told. A caller that is not known learns no reason.
    #[must_use]
    pub fn answer(&self) -> String {
        match self {
            Self::Sender(_) => "the signature or token is missing or wrong".to_owned(),
            other => other.to_string(),
        }
    }
}

impl Route {
    /// Reads a `[[route]]` table. `file` returns the content of files with secrets, and `may` checks where
    /// it leads. Notes everything that is wrong.
    pub fn read(
        value: &Value,
        file: ReadFile<'_>,
        may: CheckTarget<'_>,
        wrongs: &mut Wrongs,
    ) -> Option<Self> {
        let keys = wrongs.keep(Keys::of(value, Vec::new()))?;
        keys.others(&KEYS.map(|(key, _)| key))
            .for_each(|wrong| wrongs.note(wrong));
        let name = wrongs.keep(required(&keys, "name", check_name));
        let path = wrongs.keep(required(&keys, "path", check_path));
        let methods = wrongs.keep(methods(&keys));
        let verifier = verifier(&keys, file, wrongs);
        let table = |key: &str, wrongs: &mut Wrongs| {
            let table = keys.get(key)?;
            wrongs.keep(Keys::of(table, keys.place(key)))
        };
        let map = table("map", wrongs);
        let payload = wrongs.keep(keys.flag("payload"));
        let source = keys.text("source").ok().flatten();
        let is_gitea = matches!(source, Some("gitea" | "forgejo"));
        let may_be_form = is_gitea || source == Some("github");
        let own_header = verifier.as_ref().and_then(Option::as_ref);
        let own_header = own_header.and_then(Verifier::own_header);
        let mapping = Mapping::read(map, payload.flatten(), own_header, is_gitea, wrongs);
        let answers = table("answer", wrongs);
        let answer = match &answers {
            Some(answers) => Answer::read(answers, wrongs),
            None => Some(Answer::default()),
        };
        let target = target(&keys).and_then(|(key, target)| {
            let checked = may(&target);
            checked.map_err(|cause| keys.wrong(key, cause))?;
            Ok(target)
        });
        let target = wrongs.keep(target);
        if let (Some(Target::Queue(_)), Some(answers), Some(_)) = (
            &target,
            &answers,
            answer.as_ref().and_then(|answer| answer.wait),
        ) {
            wrongs.note(answers.wrong("wait", "the gateway hears no answers from a queue"));
        }
        let rule = match keys.get("rule") {
            Some(rule) => Some(Rule::read(rule, keys.place("rule"), file, wrongs)?),
            None => None,
        };
        Some(Self {
            name: name?.to_owned(),
            path: path?.to_owned(),
            methods: methods?,
            target: target?,
            answer: answer?,
            member: may_be_form.then_some(FORM_MEMBER),
            rule,
            verifier: verifier?,
            mapping,
        })
    }

    /// Returns whether it asks who the caller is.
    #[must_use]
    pub const fn has_sender(&self) -> bool {
        self.verifier.is_some()
    }

    /// Decides about a request at the time `now`, in seconds since 1970. Attributes may have `limit`
    /// bytes. Nothing of the request is read before it is known to come from its sender.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn judge(
        &self,
        incoming: &Incoming<'_>,
        now: i64,
        limit: usize,
    ) -> Result<Accepted, Refused> {
        let Incoming { headers, body, .. } = *incoming;
        let verified = self.verifier.as_ref();
        let verified = verified.map(|verifier| verifier.verify(headers, body, now));
        let id = verified.transpose().map_err(Refused::Sender)?.flatten();
        let unread = |wrong| match wrong {
            Unread::Media(cause) | Unread::Data(cause) => Refused::Unread(cause),
        };
        let query = parameters::decoded(incoming.query.as_bytes(), "query").map_err(unread)?;
        let media = match headers.only("content-type") {
            Only::One(media) => std::str::from_utf8(media).ok(),
            Only::None => None,
            Only::Several => {
                let cause = "there are several media types".to_owned();
                return Err(Refused::Unread(cause));
            }
        };
        let payload = parameters::payload(media, body, self.member).map_err(unread)?;
        let request = Request {
            method: incoming.method,
            path: incoming.path,
            query: &query,
            headers,
            peer: incoming.peer,
            body,
            payload: &payload,
        };
        if let Some(rule) = &self.rule
            && !rule.holds(&request).map_err(Refused::TooLong)?
        {
            return Err(Refused::Rule);
        }
        let attributes = self.mapping.apply(&request, limit);
        Ok(Accepted {
            attributes: attributes.map_err(Refused::Unmapped)?,
            id: id.map(|id| event_id(&self.name, &id)),
        })
    }
}

/// What a route has for itself: no other may have the same.
#[derive(Debug, Default)]
pub struct Claims<'a> {
    /// Its name, if that is right.
    pub name: Option<&'a str>,
    /// Its path with each method, if they are right.
    pub paths: Vec<(String, String)>,
}

impl<'a> Claims<'a> {
    /// Returns those of a `[[route]]` table. What else is wrong with it is not told.
    #[must_use]
    pub fn of(value: &'a Value) -> Self {
        let Ok(keys) = Keys::of(value, Vec::new()) else {
            return Self::default();
        };
        let path = required(&keys, "path", check_path).ok();
        let methods = methods(&keys).unwrap_or_default().into_iter();
        Self {
            name: required(&keys, "name", check_name).ok(),
            paths: path.map_or_else(Vec::new, |path| {
                methods.map(|method| (path.to_owned(), method)).collect()
            }),
        }
    }
}

/// Returns the text at a key that a route needs.
fn required<'a>(
    keys: &Keys<'a>,
    key: &str,
    check: fn(&str) -> Result<(), String>,
) -> Result<&'a str, Wrong> {
    let text = keys.text(key)?;
    let text = text.ok_or_else(|| keys.wrong_table(format!("a route needs a '{key}'")))?;
    check(text).map_err(|cause| keys.wrong(key, cause))?;
    Ok(text)
}

/// Checks the name of a route: it begins ids of events.
fn check_name(name: &str) -> Result<(), String> {
    let may = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(may) {
        true => Ok(()),
        false => Err(format!(
            "a route's name has 1 to {MAX_NAME} letters, digits, dots, hyphens and underscores"
        )),
    }
}

fn check_path(path: &str) -> Result<(), String> {
    let levels = || path.split('/').skip(1);
    let may = |b: u8| b.is_ascii_alphanumeric() || b"/-._~".contains(&b);
    if !path.starts_with('/') || path.len() > MAX_PATH || !path.bytes().all(may) {
        return Err(format!(
            "a path begins with / and has at most {MAX_PATH} letters, digits and -._~"
        ));
    }
    let is_reserved = |own: &&str| match *own {
        "/" => path == "/",
        own if own.ends_with('/') => path.starts_with(own),
        own => path == own,
    };
    if let Some(own) = RESERVED.iter().find(|own| is_reserved(own)) {
        return Err(format!(
            "'{own}' belongs to the gateway: choose another path"
        ));
    }
    match levels().any(|level| ["", ".", ".."].contains(&level)) {
        true => Err("a path has no empty level, and neither . nor ..".to_owned()),
        false => Ok(()),
    }
}

fn methods(keys: &Keys<'_>) -> Result<Vec<String>, Wrong> {
    let mut methods = Vec::new();
    for name in keys.texts("method")? {
        let name = name.to_ascii_uppercase();
        if !METHODS.contains(&name.as_str()) {
            let cause = format!("it is none of {}", METHODS.join(", "));
            return Err(keys.wrong("method", cause));
        }
        if !methods.contains(&name) {
            methods.push(name);
        }
    }
    if methods.is_empty() {
        methods.push("POST".to_owned());
    }
    Ok(methods)
}

/// Returns where a route leads, and the key that says so.
fn target(keys: &Keys<'_>) -> Result<(&'static str, Target), Wrong> {
    let Some(key) = keys.one_of(&["topic", "queue", "work"])? else {
        return Err(keys.wrong_table("a route needs one of topic, queue and work"));
    };
    let text = keys.text(key)?.unwrap_or_default();
    let wrong = |cause: String| keys.wrong(key, cause);
    let target = match key {
        "topic" => {
            topic::check_name(text).map_err(wrong)?;
            if text.starts_with('$') {
                return Err(wrong(
                    "topics that begin with $ belong to the broker".to_owned(),
                ));
            }
            Target::Topic(text.to_owned())
        }
        "queue" => {
            crate::model::queue::check_name(text).map_err(wrong)?;
            Target::Queue(text.to_owned())
        }
        _ => Target::Work(Kind::parse(text).map_err(wrong)?),
    };
    Ok((key, target))
}

/// Reads who may call a route.
/// Returns what verifies the sender, if the route asks for one; `None` after a mistake.
fn verifier(keys: &Keys<'_>, file: ReadFile<'_>, wrongs: &mut Wrongs) -> Option<Option<Verifier>> {
    const OWN: &[&str] = &["header", "prefix", "encoding"];
    let Some(source) = wrongs.keep(keys.text("source"))? else {
        let about = [&["secret-file", "id-header"], OWN].concat();
        let alone = about.into_iter().filter(|key| keys.get(key).is_some());
        let alone: Vec<_> = alone
            .map(|key| keys.wrong(key, "it belongs to a 'source', which is missing"))
            .collect();
        let is_right = alone.is_empty();
        alone.into_iter().for_each(|wrong| wrongs.note(wrong));
        return is_right.then_some(None);
    };
    let scheme = wrongs.keep(scheme(keys, source));
    let is_other = scheme
        .as_ref()
        .is_some_and(|scheme| !matches!(scheme, Scheme::Code(_)));
    for key in OWN.iter().filter(|key| is_other && keys.get(key).is_some()) {
        wrongs.note(keys.wrong(key, "it belongs to hmac-sha256 and hmac-sha512"));
    }
    let id_header = wrongs.keep(id_header(keys));
    let wrong = |cause: String| keys.wrong("secret-file", cause);
    if keys.get("secret-file").is_none() {
        let source = printable(source, MAX_SHOWN);
        wrongs.note(keys.wrong("source", format!("{source} needs 'secret-file'")));
        return None;
    }
    let paths = wrongs.keep(keys.texts("secret-file"))?;
    let secrets: Vec<Option<Secret>> = paths
        .into_iter()
        .map(|path| {
            let content = file(path.as_ref());
            let secret = content.and_then(|content| {
                let secret = Secret::new(&content);
                secret.map_err(|cause| format!("{}: {cause}", printable(path, MAX_SHOWN)))
            });
            wrongs.keep(secret.map_err(wrong))
        })
        .collect();
    let secrets: Vec<Secret> = secrets.into_iter().collect::<Option<_>>()?;
    let verifier = Verifier::new(scheme?, id_header?, &secrets);
    wrongs.keep(verifier.map_err(wrong)).map(Some)
}

/// Returns the field that holds the id of a delivery, if the route names one.
fn id_header(keys: &Keys<'_>) -> Result<Option<String>, Wrong> {
    let name = keys.text("id-header")?.map(str::to_ascii_lowercase);
    match name.as_deref().is_some_and(|name| !is_field(name)) {
        true => Err(keys.wrong("id-header", "it is not the name of a header field")),
        false => Ok(name),
    }
}

/// Returns the scheme of a source.
fn scheme(keys: &Keys<'_>, source: &str) -> Result<Scheme, Wrong> {
    Ok(match source {
        "github" => Scheme::GitHub,
        "gitea" | "forgejo" => Scheme::Gitea,
        "gitlab" => Scheme::GitLab,
        "standard" => Scheme::Standard,
        "hmac-sha256" => code(keys, Hash::Sha256)?,
        "hmac-sha512" => code(keys, Hash::Sha512)?,
        "bearer" => Scheme::Bearer,
        other => {
            let names = Scheme::NAMES.join(", ");
            let other = printable(other, MAX_SHOWN);
            let cause = format!("'{other}' is no source: it is one of {names}");
            return Err(keys.wrong("source", cause));
        }
    })
}

/// Reads the form of an authentication code.
fn code(keys: &Keys<'_>, hash: Hash) -> Result<Scheme, Wrong> {
    let header = keys.text("header")?;
    let header = header.ok_or_else(|| keys.wrong_table("the source needs a 'header'"))?;
    if !is_field(header) {
        return Err(keys.wrong("header", "it is not the name of a header field"));
    }
    let encoding = keys.text("encoding")?.unwrap_or("hex");
    let encoding = Encoding::parse(encoding).ok_or_else(|| {
        let cause = format!("it is none of {}", Encoding::NAMES.join(", "));
        keys.wrong("encoding", cause)
    })?;
    Ok(Scheme::Code(Code {
        hash,
        header: header.to_ascii_lowercase(),
        prefix: keys.text("prefix")?.unwrap_or_default().to_owned(),
        encoding,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::is_id;
    use crate::model::gateway::request::Headers;
    use crate::model::gateway::routes::{Found, Routes};
    use serde_json::json;
    use std::path::Path;

    const SECRET: &str = "a secret of push";

    fn read_all(text: &str) -> Result<Routes, Vec<(usize, Wrong)>> {
        let table: toml::Table = text.parse().expect(text);
        let tables = table
            .get("route")
            .and_then(Value::as_array)
            .expect("routes");
        let file = &mut |path: &Path| match path.to_str() {
            Some("secret") => Ok(SECRET.as_bytes().to_vec()),
            Some("empty") => Ok(Vec::new()),
            _ => Err("read it: there is no such file".to_owned()),
        };
        Routes::read(tables, file, &|target| match target {
            Target::Work(kind) if kind.kind == "forbidden" => Err("it is not allowed".to_owned()),
            _ => Ok(()),
        })
    }

    /// Returns the routes, or the first mistake.
    fn read(text: &str) -> Result<Routes, (usize, Wrong)> {
        read_all(text).map_err(|wrongs| wrongs.into_iter().next().expect("a mistake"))
    }

    const PUSH: &str = r#"
        [[route]]
        name = "push"
        path = "/hooks/push"
        source = "github"
        secret-file = "secret"
        topic = "lab/git/push"
        rule = { json = "ref", value = "refs/heads/main" }
        map.commit = { json = "after" }
        "#;

    /// A body for [`PUSH`], and its signature by GitHub's way.
    fn sent(body: &str) -> Headers {
        let key = Secret::new(SECRET.as_bytes()).expect("secret");
        let key = key.key(ring::hmac::HMAC_SHA256);
        let code = ring::hmac::sign(&key, body.as_bytes());
        let code = format!("sha256={}", crate::model::signature::hex(code.as_ref()));
        let fields = [
            ("X-Hub-Signature-256", code.as_str()),
            ("X-GitHub-Delivery", "17"),
        ];
        fields.into_iter().collect()
    }

    fn judge(route: &Route, headers: &Headers, body: &str) -> Result<Accepted, Refused> {
        let request = Incoming {
            method: "POST",
            path: "/hooks/push",
            query: "",
            headers,
            peer: None,
            body: body.as_bytes(),
        };
        route.judge(&request, 0, 100)
    }

    #[test]
    fn a_route_verifies_judges_and_maps() {
        let routes = read(PUSH).unwrap_or_else(|(_, wrong)| panic!("{wrong}"));
        let Found::Route(route) = routes.find("POST", "/hooks/push") else {
            panic!("no route");
        };
        assert!(route.has_sender());
        assert_eq!(route.target, Target::Topic("lab/git/push".to_owned()));
        let body = r#"{"ref": "refs/heads/main", "after": "0d1a"}"#;
        let accepted = judge(route, &sent(body), body).expect("accepted");
        assert_eq!(accepted.id.as_deref(), Some("push:17"));
        assert_eq!(json!(accepted.attributes), json!({"commit": "0d1a"}));
        let refused = |body: &str| {
            let refused = judge(route, &sent(body), body).expect_err(body);
            (refused.status(), refused)
        };
        assert_eq!(refused(r#"{"ref": "other"}"#), (403, Refused::Rule));
        assert_eq!(refused(r#"{"ref": "refs/heads/main"}"#).0, 400);
        let large = format!(
            r#"{{"ref": "refs/heads/main", "after": "{}"}}"#,
            "x".repeat(99)
        );
        assert_eq!(refused(&large).0, 413);
        // The sender comes first, and its caller learns no reason.
        let forged = judge(route, &sent("{}"), body).expect_err("forged");
        assert_eq!(
            (forged.status(), &forged),
            (401, &Refused::Sender(Refusal::Wrong))
        );
        let bare = judge(route, &Headers::default(), body).expect_err("unsigned");
        assert_eq!(forged.answer(), bare.answer());
        assert_ne!(forged.to_string(), bare.to_string());
    }

    #[test]
    fn a_method_of_a_path_has_one_route() {
        let route = |name: &str, path: &str, method: &str| {
            format!("[[route]]\nname = '{name}'\npath = '{path}'\nmethod = {method}\nqueue = 'q'\n")
        };
        let routes = read(
            &[
                route("a", "/a", "['put', 'POST']"),
                route("b", "/a", "'GET'"),
            ]
            .concat(),
        );
        let routes = routes.expect("routes");
        let name = |method: &str, path: &str| match routes.find(method, path) {
            Found::Route(route) => route.name.clone(),
            other => format!("{other:?}"),
        };
        assert_eq!(name("PUT", "/a"), "a");
        assert_eq!(name("GET", "/a"), "b");
        assert_eq!(name("DELETE", "/a"), "Method");
        assert_eq!(name("GET", "/a/"), "None");
        assert_eq!(routes.allow("/a"), "PUT, POST, GET");
        assert_eq!(routes.all().len(), 2);
        let same = [route("a", "/a", "'POST'"), route("a", "/b", "'POST'")].concat();
        let (n, wrong) = read(&same).expect_err("the same name");
        assert_eq!((n, wrong.place.join(".").as_str()), (1, "name"));
        let same = [
            route("a", "/a", "'POST'"),
            route("b", "/a", "['GET', 'POST']"),
        ]
        .concat();
        let (n, wrong) = read(&same).expect_err("the same path");
        assert_eq!((n, wrong.place.join(".").as_str()), (1, "path"));
    }

    #[test]
    fn names_of_routes_leave_room_for_ids() {
        let name = "n".repeat(MAX_NAME);
        assert_eq!(check_name(&name), Ok(()));
        let guid = "72d3162e-cc78-11e3-81ab-4c9367dc0958";
        let id = event_id(&name, guid);
        assert!(is_id(&id) && id.ends_with(guid), "{id}");
    }

    #[test]
    fn all_mistakes_of_all_routes_are_found() {
        let text =
            "[[route]]\nname = 'a b'\npath = 'a'\nmetod = 'GET'\nmethd = 'PUT'\nsource = 'github'
            secret-file = ['none', 'empty', 'secret']\nid-header = 'a b'\nwork = 'n/forbidden'
            rule = [{ header = 'x' }, { ip = 'y' }, { json = 'x', exists = true }]
            map = { a = {}, b = { json = 'x' }, c = 1 }
            answer = { status = 1, mismatch = 1, wait = 'x', other = 1 }
            [[route]]\nname = 'b'\npath = '/b'\nsource = 'hmac'\nsecret-file = 'none'
            [[route]]\nname = 'b'\npath = '/b'\ntopic = 't'\nsource = 'github'
            [[route]]\nname = 'c'\npath = '/c'\ntopic = 't'
            [[route]]\nname = 'c'\npath = '/c'\ntopic = 't'";
        let wrongs = read_all(text).expect_err("mistakes");
        let found = wrongs.iter();
        let found = found.map(|(n, wrong)| format!("{n} {}", wrong.place.join(".")));
        let mut found: Vec<String> = found.collect();
        found.sort();
        let want = [
            "0 answer.mismatch",
            "0 answer.other",
            "0 answer.status",
            "0 answer.wait",
            "0 id-header",
            "0 map.a",
            "0 map.c",
            "0 methd",
            "0 metod",
            "0 name",
            "0 path",
            "0 rule.0",
            "0 rule.1.ip",
            "0 secret-file",
            "0 secret-file",
            "0 work",
            "1 ",
            "1 secret-file",
            "1 source",
            "2 name",
            "2 path",
            "2 source",
            "4 name",
            "4 path",
        ];
        assert_eq!(found, want, "{wrongs:?}");
        assert!(
            wrongs
                .iter()
                .any(|(n, wrong)| *n == 2 && wrong.cause == "github needs 'secret-file'")
        );
    }

    #[test]
    fn mistakes_name_their_key() {
        let minimal = "name = 'a'\npath = '/a'\ntopic = 't'\n";
        assert!(read(&format!("[[route]]\n{minimal}")).is_ok());
        let hmac = "source = 'hmac-sha256'\nsecret-file = 'secret'\n";
        for (old, new, place) in [
            ("name = 'a'", "", ""),
            ("name = 'a'", "name = 'a:b'", "name"),
            ("name = 'a'", "name = 1", "name"),
            ("path = '/a'", "", ""),
            ("'/a'", "'a'", "path"),
            ("'/a'", "'/'", "path"),
            ("'/a'", "'/RPC2'", "path"),
            ("'/a'", "'/units/x'", "path"),
            ("'/a'", "'/t/x'", "path"),
            ("'/a'", "'/a//b'", "path"),
            ("'/a'", "'/a/../b'", "path"),
            ("'/a'", "'/a?b'", "path"),
            ("topic = 't'", "", ""),
            ("topic = 't'", "topic = 't/#'", "topic"),
            ("topic = 't'", "topic = '$SYS/x'", "topic"),
            ("topic = 't'", "queue = 'amq.x'", "queue"),
            ("topic = 't'", "work = 'node'", "work"),
            ("topic = 't'", "topic = 't'\nqueue = 'q'", "queue"),
            ("topic = 't'", "topic = 't'\nmethod = 'TRACE'", "method"),
            ("topic = 't'", "topic = 't'\npayload = 1", "payload"),
            ("topic = 't'", "topic = 't'\nmap = 1", "map"),
            ("topic = 't'", "topic = 't'\nanswer = 1", "answer"),
            (
                "topic = 't'",
                "topic = 't'\nanswer.status = 1",
                "answer.status",
            ),
            ("topic = 't'", "topic = 't'\nrule = 1", "rule"),
            (
                "topic = 't'",
                "topic = 't'\nrule = { header = 'x', valu = 1 }",
                "rule.valu",
            ),
            ("topic = 't'", "topic = 't'\ntopics = 1", "topics"),
            ("topic = 't'", "topic = 't'\nsource = 'git'", "source"),
            ("topic = 't'", "topic = 't'\nsource = 'github'", "source"),
            (
                "topic = 't'",
                "topic = 't'\nsecret-file = 'secret'",
                "secret-file",
            ),
            (
                "topic = 't'",
                "topic = 't'\nsource = 'github'\nsecret-file = 'empty'",
                "secret-file",
            ),
            (
                "topic = 't'",
                "topic = 't'\nsource = 'github'\nsecret-file = 'none'",
                "secret-file",
            ),
            (
                "topic = 't'",
                "topic = 't'\nsource = 'bearer'\nsecret-file = 'secret'\nprefix = 'x'",
                "prefix",
            ),
            ("topic = 't'", &format!("topic = 't'\n{hmac}"), ""),
            (
                "topic = 't'",
                &format!("topic = 't'\n{hmac}header = 'a b'"),
                "header",
            ),
            (
                "topic = 't'",
                &format!("topic = 't'\n{hmac}header = 'x'\nencoding = 'z'"),
                "encoding",
            ),
            (
                "topic = 't'",
                &format!("topic = 't'\n{hmac}header = 'x'\nid-header = ''"),
                "id-header",
            ),
            (
                "topic = 't'",
                &format!("topic = 't'\n{hmac}header = 'X-S'\nmap.a = {{ header = 'x-s' }}"),
                "map.a.header",
            ),
        ] {
            let text = format!("[[route]]\n{}", minimal.replace(old, new));
            let (_, wrong) = read(&text).expect_err(&text);
            assert_eq!(wrong.place.join("."), place, "{text}: {wrong}");
            assert!(!wrong.to_string().contains('\n') && !wrong.cause.is_empty());
        }
    }
}
