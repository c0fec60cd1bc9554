//! The parsers for input of senders and operators. Each function takes arbitrary bytes, and panics
//! when a promise about them does not hold. `fuzz/` feeds them from libFuzzer, and
//! `tests/it/fuzz.rs` on every run of the tests.

use std::path::Path;

use bytes::Bytes;
use tael::cli::client::mistakes_in;
use tael::model::filter_index::FilterIndex;
use tael::model::gateway::request::{Headers, Incoming};
use tael::model::gateway::routes::Routes;
use tael::model::gateway::xmlrpc;
use tael::model::message::{Delivery, Properties};
use tael::model::playbook::Playbook;
use tael::model::receptor::{self, Request};
use tael::model::remote::{MAX_PIECE, wire};
use tael::model::signature::{self, Keys, Signer, Verifier};
use tael::model::topic::{self, Filter};
use tael::model::work::split;
use tael::model::{control, env_file, event, json};
use tael::net::amqp::frame::{Frame, Kind, Output};
use tael::net::amqp::method::Method;
use tael::net::amqp::properties::Head;
use tael::net::amqp::wire::Reader;

/// Maximum size of a payload, bytes. Inputs can exceed it.
const MAX_PAYLOAD: usize = 4096;

/// Splits `data` at its first line feed.
fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    let mut parts = data.splitn(2, |b| *b == b'\n');
    (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    )
}

/// Parses an event: a topic in the first line, and its payload in the rest.
pub fn event(data: &[u8]) {
    let (topic, payload) = halves(data);
    let delivery = Delivery {
        topic: Bytes::copy_from_slice(topic),
        payload: Bytes::copy_from_slice(payload),
        retained: false,
        duplicate: false,
        packet: 1,
        properties: Properties::default(),
    };
    let parsed = match event::parse(&delivery, MAX_PAYLOAD) {
        Ok(parsed) => parsed,
        Err(refusal) => {
            assert!(!refusal.to_string().is_empty() && !refusal.code().is_empty());
            return;
        }
    };
    assert!(payload.len() <= MAX_PAYLOAD);
    for (name, value) in &parsed.attributes {
        let text = json::to_text(value);
        // Bytes that form a character come back as that character, which has the same bytes.
        let again = json::parse(text.as_bytes()).map(|again| json::to_text(&again));
        assert_eq!(again.as_ref(), Ok(&text), "{name}");
        // The variables of a command.
        let _ = event::attribute_text(value);
        let _ = event::attribute_value(value);
    }
}

/// Parses two filters and a topic, each on a line.
pub fn topic(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.splitn(3, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (first, second, name) = (line(), line(), line());
    let _ = (topic::check_who(first), topic::check_root(second));
    let filters: Vec<Filter> = [first, second]
        .into_iter()
        .filter_map(|text| Filter::new(text).ok())
        .collect();
    if topic::check_name(name).is_err() {
        return;
    }
    let mut index = FilterIndex::default();
    for (place, filter) in filters.iter().enumerate() {
        index.insert(filter.unshared(), place);
    }
    let all = filters.iter().enumerate();
    let matching = all.filter(|(_, filter)| filter.matches(name));
    let matching: Vec<usize> = matching.map(|(place, _)| place).collect();
    assert_eq!(index.matching(name), matching, "{filters:?} {name:?}");
    if let [wide, narrow] = &filters[..] {
        let implied = !wide.covers(narrow) || !narrow.matches(name) || wide.matches(name);
        assert!(implied, "'{wide}' covers '{narrow}', without '{name}'");
    }
    let kept = topic::minimal(&filters);
    for filter in &filters {
        let covered = kept.iter().any(|kept| kept.covers(filter));
        assert!(covered, "'{filter}' is lost");
    }
}

/// Parses a playbook.
pub fn playbook(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().count();
    match Playbook::parse(&text, false) {
        Ok(strict) => {
            let steps = strict.steps.iter().chain(&strict.on_failure);
            assert!(
                steps
                    .into_iter()
                    .all(|step| (1..=lines).contains(&step.line))
            );
            assert_eq!(Playbook::parse(&text, true).as_ref(), Ok(&strict));
            let _ = (strict.nodes(), strict.pipelines());
        }
        Err(wrong) => {
            assert!(
                (1..=lines).contains(&wrong.line) && wrong.column > 0,
                "{wrong}"
            );
            let _ = Playbook::parse(&text, true);
        }
    }
}

/// Parses a configuration file of a client.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let path = Path::new("tael.toml");
    let mistakes = mistakes_in(path, &text);
    assert!(mistakes.iter().all(|mistake| !mistake.is_empty()));
    assert_eq!(mistakes_in(path, &text), mistakes);
}

/// Parses the payload of a request.
pub fn control(data: &[u8]) {
    let (envelope, action) = control::parse(data, MAX_PAYLOAD);
    let Ok(action) = action else { return };
    let payload = action.payload(&envelope);
    let (again, same) = control::parse(payload.as_bytes(), usize::MAX);
    assert_eq!(again.present, envelope.present, "{payload}");
    // As in `event`, the bytes are compared, and not their form in strings.
    let same = same.map(|same| same.payload(&again));
    assert_eq!(same, Ok(payload));
}

/// Parses a message of work between nodes, as a request and as an answer.
pub fn remote(data: &[u8]) {
    let message = Bytes::copy_from_slice(data);
    if let Ok((request, body)) = wire::read_request(&message) {
        assert!(body.len() <= MAX_PIECE && request.unit().len() == 26);
        let again = wire::read_request(&wire::write(&request, &body));
        assert_eq!(again, Ok((request, body)));
    }
    if let Ok((answer, body)) = wire::read_answer(&message) {
        let again = wire::read_answer(&wire::write(&answer, &body));
        assert_eq!(again, Ok((answer, body)));
    }
}

/// Parses a token, a public key and a private key.
pub fn signature(data: &[u8]) {
    let _ = (Verifier::from_pem(data), Signer::from_pem(data));
    // Nobody has signed it for that request.
    assert!(cancel_by(data).is_err());
}

/// Returns whether a token allows a request to cancel.
pub fn cancel_by(token: &[u8]) -> Result<signature::Claims, signature::Refusal> {
    let request = signature::Request {
        op: signature::Operation::Cancel,
        unit: String::new(),
        aud: String::new(),
        reply: String::new(),
        work: None,
    };
    let key = include_bytes!("../../fixtures/keys/ed25519.pub.pem");
    let keys = Keys(Verifier::from_pem(key).into_iter().collect());
    keys.verify(&String::from_utf8_lossy(token), &request, 1_800_000_000)
}

/// Maximum size of a frame, bytes: the smallest that peers may agree on.
const MAX_FRAME: usize = 4096;

/// Parses what an AMQP broker sends: frames, methods and headers with their tables. Returns the number
/// of frames, if all bytes are frames without a flaw.
pub fn amqp(data: &[u8]) -> usize {
    let (mut rest, mut count, mut flawed) = (data, 0, false);
    while let Ok(Some((frame, size))) = Frame::read(rest, MAX_FRAME) {
        // A frame is the same with all that may follow, and is not there before its last byte.
        let (whole, after) = rest.split_at(size);
        assert_eq!(Frame::read(whole, MAX_FRAME), Ok(Some((frame, size))));
        assert_eq!(Frame::read(&whole[..size - 1], MAX_FRAME), Ok(None));
        rest = after;
        count += 1;
        match frame.kind {
            Kind::Method => {
                let mut from = Reader::new(frame.payload);
                let Ok(method) = Method::read(&mut from) else {
                    flawed = true;
                    continue;
                };
                flawed |= from.into_flaw().is_some();
                let mut bytes = Vec::new();
                method.put(&mut bytes).expect("it was read");
                let mut from = Reader::new(&bytes);
                let again = Method::read(&mut from).expect("it was written");
                // Numbers that are not equal to themselves have the same bytes.
                let mut same = Vec::new();
                again.put(&mut same).expect("it was read");
                assert_eq!(bytes, same);
            }
            Kind::Header => {
                let Ok(head) = Head::read(frame.payload) else {
                    flawed = true;
                    continue;
                };
                flawed |= head.flaw.is_some();
                let mut bytes = Vec::new();
                // All that comes can be sent on, as a dead letter.
                let publish = Method::BasicQosOk {};
                let mut out = Output {
                    bytes: &mut bytes,
                    max: usize::MAX,
                };
                out.content(1, &publish, &head.properties, b"")
                    .expect("it was read");
            }
            Kind::Body | Kind::Heartbeat => {}
        }
    }
    match flawed || !rest.is_empty() {
        true => 0,
        false => count,
    }
}

/// Parses a call of XML-RPC.
pub fn xmlrpc(data: &[u8]) {
    match xmlrpc::call(data) {
        Ok(call) => {
            assert!(!call.method.is_empty() && call.params.len() < xmlrpc::MAX_ELEMENTS);
            for param in &call.params {
                // A reader of JSON gets the same values.
                let json = param.to_json();
                let text = json::to_text(&json);
                let again = json::parse(text.as_bytes()).map(|again| json::to_text(&again));
                assert_eq!(again.as_ref(), Ok(&text));
                assert!(xmlrpc::response(param).is_ascii());
            }
        }
        Err(flaw) => {
            let line = flaw.to_string();
            assert!(!line.is_empty() && !line.contains(['\n', '\r']), "{line}");
            assert!(xmlrpc::fault(flaw.code(), &line).is_ascii());
        }
    }
}

/// Reads the routes of a gateway, and judges two requests by each: one has the text as its body.
/// Returns the number of routes.
pub fn route(data: &[u8]) -> usize {
    let text = String::from_utf8_lossy(data);
    let Ok(table) = text.parse::<toml::Table>() else {
        return 0;
    };
    let tables = table.get("route").and_then(toml::Value::as_array);
    let file = &mut |path: &Path| match path.to_str() {
        Some("secret" | "old" | "token") => Ok(b"whsec_AAAA".to_vec()),
        _ => Err("there is no such file".to_owned()),
    };
    let routes = match Routes::read(tables.map_or(&[], Vec::as_slice), file, &|_| Ok(())) {
        Ok(routes) => routes,
        Err(wrongs) => {
            assert!(!wrongs.is_empty());
            for (_, wrong) in wrongs {
                let line = wrong.to_string();
                assert!(!line.is_empty() && !line.contains('\n'), "{line}");
            }
            return 0;
        }
    };
    let headers: Headers = [("x-github-event", "push"), ("x-signature", "sha512=00")]
        .into_iter()
        .collect();
    let document = br#"{"ref":"refs/heads/main","commits":[{"id":1}],"a":[0]}"#;
    for (route, body) in routes.all().iter().flat_map(|r| [(r, data), (r, document)]) {
        let request = Incoming {
            method: "POST",
            path: &route.path,
            query: "who=a&x=%41",
            headers: &headers,
            peer: "192.0.2.1".parse().ok(),
            body,
        };
        match route.judge(&request, 0, MAX_PAYLOAD) {
            Ok(accepted) => {
                let size = json::to_text(&serde_json::Value::Object(accepted.attributes)).len();
                assert!(size <= MAX_PAYLOAD && !route.has_sender());
                assert!(accepted.id.as_deref().is_none_or(event::is_id));
            }
            Err(refused) => {
                let line = refused.to_string();
                assert!(!line.is_empty() && (400..500).contains(&refused.status()));
            }
        }
    }
    routes.all().len()
}

/// Parses a file of variables.
pub fn env_file(data: &[u8]) {
    let Ok(variables) = env_file::parse(data) else {
        return;
    };
    let mut printed = Vec::new();
    for (name, value) in &variables {
        assert!(!name.is_empty() && !name.contains(['=', '\0']), "{name:?}");
        assert!(!value.as_bytes().contains(&0), "{name}: {value:?}");
        printed.extend([name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat());
    }
    // In the form of `env -0`.
    assert_eq!(env_file::parse(&printed), Ok(variables));
}

/// Parses a line of the control socket.
pub fn receptor(data: &[u8]) {
    let (line, _) = halves(data);
    match receptor::parse(line) {
        Ok(Some(Request::Submit(submit))) => {
            assert!(!submit.node.is_empty() && !submit.kind.is_empty());
            if let Ok(words) = split(&submit.params) {
                // Nothing but quoting is undone.
                assert_eq!(split(&shell_words::join(&words)), Ok(words));
            }
        }
        Ok(_) => {}
        Err(cause) => {
            let answer = receptor::error(&cause);
            let text = answer.strip_prefix("ERROR: ").expect("an error");
            // A requester reads one line.
            assert!(text.ends_with('\n') && text.matches(['\n', '\r']).count() == 1);
        }
    }
}
