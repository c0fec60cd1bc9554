use super::*;
use crate::model::gateway::request::Headers;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

fn read(text: &str) -> Result<Rule, Wrong> {
    let table: toml::Table = text.parse().expect(text);
    let rule = table.get("rule").cloned().expect("rule");
    let file = &mut |path: &Path| match path.to_str() {
        Some("token") => Ok(b"secret\n".to_vec()),
        _ => Err("read it: there is no such file".to_owned()),
    };
    let mut wrongs = Wrongs::default();
    let rule = Rule::read(&rule, vec!["rule".to_owned()], file, &mut wrongs);
    match wrongs.all().into_iter().next() {
        Some(wrong) => Err(wrong),
        None => Ok(rule.expect("no mistake")),
    }
}

/// A request, of which tests change what they are about.
struct Sent {
    headers: Headers,
    query: Vec<(String, String)>,
    peer: Option<&'static str>,
    body: Vec<u8>,
    payload: Json,
}

impl Default for Sent {
    fn default() -> Self {
        Self {
            headers: [("X-Event", "push"), ("X-Token", "secret")]
                .into_iter()
                .collect(),
            query: vec![("a".to_owned(), "1".to_owned())],
            peer: Some("192.0.2.7"),
            body: b"body".to_vec(),
            payload: json!({"ref": "refs/heads/main", "n": 7, "f": 0.5, "t": true, "z": null,
                "list": [{"name": "x"}]}),
        }
    }
}

impl Sent {
    fn judged(&self, rule: &str) -> Result<bool, TooLong> {
        let request = Request {
            method: "POST",
            path: "/hook",
            query: &self.query,
            headers: &self.headers,
            peer: self.peer.and_then(|peer| peer.parse().ok()),
            body: &self.body,
            payload: &self.payload,
        };
        let read = read(rule);
        read.unwrap_or_else(|wrong| panic!("{rule}: {wrong}"))
            .holds(&request)
    }
}

fn holds(rule: &str) -> bool {
    Sent::default().judged(rule).expect(rule)
}

#[test]
fn parts_are_compared_with_values() {
    for (rule, expected) in [
        ("rule = { header = 'x-EVENT', value = 'push' }", true),
        ("rule = { header = 'X-Event', value = 'pus' }", false),
        ("rule = { header = 'X-None', value = '' }", false),
        ("rule = { query = 'a', value = 1 }", true),
        ("rule = { query = 'a', value = [2, '1'] }", true),
        ("rule = { query = 'A', value = 1 }", false),
        ("rule = { json = 'n', value = 7 }", true),
        ("rule = { json = 'f', value = 0.5 }", true),
        ("rule = { json = 't', value = true }", true),
        ("rule = { json = 'z', value = '' }", true),
        ("rule = { json = 'list.0.name', value = 'x' }", true),
        ("rule = { json = 'list.1.name', value = 'x' }", false),
        (
            "rule = { json = 'list', value = '[{\"name\":\"x\"}]' }",
            true,
        ),
        ("rule = { request = 'method', value = 'POST' }", true),
        ("rule = { request = 'path', value = '/hook' }", true),
        ("rule = { request = 'body', value = 'body' }", true),
        ("rule = { request = 'peer', value = '192.0.2.7' }", true),
        ("rule = { header = 'X-Token', value-file = 'token' }", true),
        ("rule = { header = 'X-Event', value-file = 'token' }", false),
        ("rule = { json = 'z', exists = true }", true),
        ("rule = { json = 'y', exists = true }", false),
        ("rule = { json = 'y', exists = false }", true),
    ] {
        assert_eq!(holds(rule), expected, "{rule}");
    }
}

#[test]
fn patterns_are_searched() {
    for (rule, expected) in [
        (
            "rule = { json = 'ref', regex = '^refs/heads/(main|dev)$' }",
            true,
        ),
        ("rule = { json = 'ref', regex = 'MAIN' }", false),
        ("rule = { json = 'ref', regex = '(?i)MAIN' }", true),
        ("rule = { json = 'n', regex = '^[0-9]+$' }", true),
        ("rule = { json = 'none', regex = '' }", false),
        ("rule = { request = 'body', regex = 'o.y' }", true),
    ] {
        assert_eq!(holds(rule), expected, "{rule}");
    }
    let sent = Sent {
        body: b"a\xffb".to_vec(),
        ..Sent::default()
    };
    assert_eq!(
        sent.judged("rule = { request = 'body', regex = '^a.b$' }"),
        Ok(true)
    );
}

#[test]
fn a_part_that_is_too_long_is_never_judged() {
    let sent = Sent {
        body: vec![b'a'; MAX_SEARCHED + 1],
        ..Sent::default()
    };
    let too_long = Err(TooLong(MAX_SEARCHED + 1));
    for rule in [
        "rule = { request = 'body', regex = 'b' }",
        "rule = { not = { request = 'body', regex = 'b' } }",
        "rule = { or = [{ request = 'body', regex = 'b' }, { query = 'a', value = 1 }] }",
    ] {
        assert_eq!(sent.judged(rule), too_long, "{rule}");
    }
    // It is compared, and what decides before is enough.
    for rule in [
        "rule = { request = 'body', value = 'b' }",
        "rule = { and = [{ query = 'a', value = 2 }, { request = 'body', regex = 'b' }] }",
    ] {
        assert_eq!(sent.judged(rule), Ok(false), "{rule}");
    }
    let sent = Sent {
        body: vec![b'a'; MAX_SEARCHED],
        ..Sent::default()
    };
    assert_eq!(
        sent.judged("rule = { request = 'body', regex = 'a$' }"),
        Ok(true)
    );
}

#[test]
fn addresses_are_in_networks() {
    let from = |peer: Option<&'static str>, rule: &str| {
        let sent = Sent {
            peer,
            ..Sent::default()
        };
        sent.judged(rule).expect(rule)
    };
    let v4 = "rule = { ip = ['198.51.100.0/24', '192.0.2.0/29'] }";
    for (peer, inside) in [
        (Some("192.0.2.7"), true),
        (Some("::ffff:192.0.2.7"), true),
        (Some("192.0.2.8"), false),
        (Some("2001:db8::1"), false),
        (None, false),
    ] {
        assert_eq!(from(peer, v4), inside, "{peer:?}");
    }
    assert!(from(
        Some("2001:db8:0:1::2"),
        "rule = { ip = '2001:db8::/32' }"
    ));
    assert!(from(None, "rule = { not = { ip = '::/0' } }"));
}

#[test]
fn rules_are_combined() {
    let (yes, no) = ("{ query = 'a', value = 1 }", "{ query = 'a', value = 2 }");
    for (rule, expected) in [
        (format!("rule = {{ and = [{yes}, {yes}] }}"), true),
        (format!("rule = {{ and = [{yes}, {no}] }}"), false),
        (format!("rule = {{ or = [{no}, {yes}] }}"), true),
        (format!("rule = {{ or = [{no}, {no}] }}"), false),
        (format!("rule = {{ not = {no} }}"), true),
        (
            format!("rule = {{ not = {{ and = [{yes}, {{ not = {no} }}] }} }}"),
            false,
        ),
        (format!("rule = [{yes}, {no}]"), false),
        (format!("rule = [{yes}, {yes}]"), true),
    ] {
        assert_eq!(holds(&rule), expected, "{rule}");
    }
    assert!(holds(
        "[[rule]]\nquery = 'a'\nvalue = 1\n[[rule]]\nheader = 'X-Event'\nregex = '^p'"
    ));
}

#[test]
fn rules_are_bounded() {
    let nested = |depth: usize| {
        let inner = "{ query = 'a', value = 1 }";
        read(&format!(
            "rule = {}{inner}{}",
            "{ not = ".repeat(depth),
            " }".repeat(depth)
        ))
    };
    assert!(nested(MAX_DEPTH).is_ok());
    let wrong = nested(MAX_DEPTH + 1).expect_err("too deep").to_string();
    assert!(wrong.contains("nested deeper than 8"), "{wrong}");
    let wide = |count: usize| {
        let rules = vec!["{ query = 'a', value = 1 }"; count].join(", ");
        read(&format!("rule = [{rules}]"))
    };
    assert!(wide(MAX_RULES).is_ok() && wide(MAX_RULES + 1).is_err());
    let values = |count: usize| {
        let values = vec!["1"; count].join(", ");
        read(&format!("rule = {{ query = 'a', value = [{values}] }}"))
    };
    assert!(values(MAX_ALTERNATIVES).is_ok() && values(MAX_ALTERNATIVES + 1).is_err());
    let pattern = |pattern: &str| read(&format!("rule = {{ query = 'a', regex = '{pattern}' }}"));
    assert!(pattern(&"a".repeat(MAX_PATTERN + 1)).is_err());
    assert!(pattern("(a{500}){500}").is_err());
    assert!(pattern(&format!("{}a{}", "(".repeat(20), ")".repeat(20))).is_err());
}

#[test]
fn mistakes_name_their_key() {
    for (text, place) in [
        ("rule = 1", "rule"),
        ("rule = {}", "rule"),
        ("rule = []", "rule"),
        ("rule = [1]", "rule.0"),
        ("rule = { and = 1 }", "rule.and"),
        ("rule = { and = [] }", "rule.and"),
        ("rule = { not = [] }", "rule.not"),
        (
            "rule = { or = [{ ip = '1.2.3.4' }, { ip = 'x' }] }",
            "rule.or.1.ip",
        ),
        ("rule = { ip = [] }", "rule.ip"),
        ("rule = { ip = '1.2.3.4/33' }", "rule.ip"),
        ("rule = { ip = '::1', value = 1 }", "rule.value"),
        ("rule = { header = 'a' }", "rule"),
        (
            "rule = { header = 'a', query = 'b', value = 1 }",
            "rule.query",
        ),
        (
            "rule = { header = 'a', value = 1, regex = 'b' }",
            "rule.regex",
        ),
        ("rule = { header = 'a', regex = '(' }", "rule.regex"),
        ("rule = { header = 'a', regex = '\\p{L}' }", "rule.regex"),
        ("rule = { header = 'a', regex = 1 }", "rule.regex"),
        ("rule = { header = 'a', exists = 1 }", "rule.exists"),
        ("rule = { header = 'a', value = [] }", "rule.value"),
        ("rule = { header = 'a', value = {} }", "rule.value"),
        (
            "rule = { header = 'a', value-file = 'none' }",
            "rule.value-file",
        ),
        ("rule = { json = 'a..b', value = 1 }", "rule.json"),
        ("rule = { heder = 'a', value = 1 }", "rule.heder"),
    ] {
        let line = read(text).expect_err(text).to_string();
        assert!(line.starts_with(&format!("{place}: ")), "{text}: {line}");
        assert!(!line.contains('\n'), "{line}");
    }
    let near = read("rule = { heder = 'a', value = 1 }").expect_err("a slip");
    assert!(near.cause.ends_with("did you mean 'header'?"), "{near}");
}

proptest! {
    #[test]
    fn a_rule_and_its_opposite_disagree(value in "[ab]{0,3}", pattern in "[ab.*]{0,4}") {
        let sent = Sent { body: value.into_bytes(), ..Sent::default() };
        let rule = format!("{{ request = 'body', regex = '{pattern}' }}");
        if read(&format!("rule = {rule}")).is_ok() {
            let plain = sent.judged(&format!("rule = {rule}"));
            let opposite = sent.judged(&format!("rule = {{ not = {rule} }}"));
            prop_assert_eq!(plain.map(|holds| !holds), opposite);
        }
    }
}
