//! The targets of `fuzz/`, fed with their seeds, changed seeds and arbitrary bytes. `.ci/fuzz` looks
//! longer, where the toolchain has a fuzzer.

#[path = "fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

/// Number of inputs of a target beside its seeds.
const INPUTS: u32 = 2000;

/// Maximum size of an input of arbitrary bytes.
const MAX_BYTES: usize = 300;

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fuzz");
    let entries = fs::read_dir(folder.join(target)).expect("seeds");
    let seeds = entries.map(|entry| fs::read(entry.expect("entry").path()).expect("seed"));
    seeds.collect()
}

/// Returns a seed with some bytes replaced, a piece removed, and a piece of another seed inserted.
fn changed(seeds: &[Vec<u8>]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let byte = (any::<Index>(), any::<u8>());
    let bytes = prop::collection::vec(byte, 0..4);
    let piece = (select(seeds.to_vec()), any::<[Index; 2]>());
    let out = any::<[Index; 2]>();
    (select(seeds.to_vec()), bytes, out, piece).prop_map(|(mut seed, bytes, out, (from, piece))| {
        for (place, byte) in bytes {
            if !seed.is_empty() {
                let place = place.index(seed.len());
                seed[place] = byte;
            }
        }
        seed.splice(between(&out, &seed), from[between(&piece, &from)].to_vec());
        seed
    })
}

/// Returns a range of `bytes`.
fn between(ends: &[Index; 2], bytes: &[u8]) -> std::ops::Range<usize> {
    let [a, b] = ends.each_ref().map(|end| end.index(bytes.len() + 1));
    a.min(b)..a.max(b)
}

fn feed<T>(name: &str, target: fn(&[u8]) -> T) {
    let seeds = seeds(name);
    for seed in &seeds {
        target(seed);
    }
    let any_bytes = prop::collection::vec(any::<u8>(), 0..MAX_BYTES);
    let inputs = prop_oneof![4 => changed(&seeds), 1 => any_bytes];
    let config = Config {
        failure_persistence: None,
        ..Config::with_cases(INPUTS)
    };
    let fed = TestRunner::new(config).run(&inputs, |input| {
        target(&input);
        Ok(())
    });
    if let Err(failure) = fed {
        panic!("{name}: {failure}");
    }
}

/// Defines a test for each target.
macro_rules! targets {
    ($($test:ident: $target:ident),+ $(,)?) => {$(
        #[test]
        fn $test() {
            feed(stringify!($target), targets::$target);
        }
    )+};
}

targets! {
    no_payload_breaks_the_parser_of_events: event,
    no_text_breaks_the_parser_of_filters: topic,
    no_text_breaks_the_parser_of_playbooks: playbook,
    no_text_breaks_the_parser_of_configurations: config,
    no_payload_breaks_the_parser_of_requests: control,
    no_file_breaks_the_parser_of_variables: env_file,
    no_line_breaks_the_parser_of_the_control_socket: receptor,
    no_message_breaks_the_parsers_of_work_between_nodes: remote,
    no_text_breaks_the_parsers_of_keys_and_tokens: signature,
    no_bytes_of_a_broker_break_the_parser_of_frames: amqp,
    no_call_breaks_the_parser_of_xml_rpc: xmlrpc,
    no_text_breaks_the_parser_of_routes: route,
}

/// Otherwise the targets would see refused inputs only.
#[test]
fn the_seeds_are_understood() {
    let seed = |path: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fuzz");
        fs::read(folder.join(path)).expect("seed")
    };
    let text = |path: &str| String::from_utf8(seed(path)).expect("UTF-8");
    for path in ["config/example", "config/triggers"] {
        let mistakes = tael::cli::client::mistakes_in(Path::new(path), &text(path));
        assert!(mistakes.is_empty(), "{mistakes:?}");
    }
    let wrong = tael::cli::client::mistakes_in(Path::new("x"), &text("config/wrong"));
    assert!(wrong.len() > 3, "{wrong:?}");
    tael::model::playbook::Playbook::parse(&text("playbook/sample"), false).expect("sample");
    tael::model::playbook::Playbook::parse(&text("playbook/all"), true).expect("all");
    for path in ["raise", "retry", "cancel", "pause", "status"] {
        let (_, action) = tael::model::control::parse(&seed(&format!("control/{path}")), 1000);
        assert_eq!(action.expect("action").name(), path);
    }
    tael::model::env_file::parse(&seed("env_file/lines")).expect("lines");
    for path in [
        "version", "submit", "results", "words", "connect", "release",
    ] {
        let request = tael::model::receptor::parse(&seed(&format!("receptor/{path}")));
        assert!(matches!(request, Ok(Some(_))), "{path}: {request:?}");
    }
    for path in ["submit", "payload", "results", "cancel", "ack"] {
        let message = bytes::Bytes::from(seed(&format!("remote/{path}")));
        tael::model::remote::wire::read_request(&message).expect(path);
    }
    for path in ["output", "end", "done", "gap", "refused"] {
        let message = bytes::Bytes::from(seed(&format!("remote/{path}")));
        tael::model::remote::wire::read_answer(&message).expect(path);
    }
    for path in [
        "start", "login", "return", "get", "deliver", "cancel", "closed",
    ] {
        assert!(targets::amqp(&seed(&format!("amqp/{path}"))) > 0, "{path}");
    }
    for path in ["python", "python-latin-1", "apache", "extensions", "none"] {
        tael::model::gateway::xmlrpc::call(&seed(&format!("xmlrpc/{path}"))).expect(path);
    }
    assert_eq!(targets::route(&seed("route/all")), 3);
    assert_eq!(targets::route(&seed("route/body")), 1);
    for path in ["signature/key", "signature/rsa"] {
        tael::model::signature::Verifier::from_pem(&seed(path)).expect(path);
    }
    tael::model::signature::Signer::from_pem(&seed("signature/private")).expect("private");
    // Its signature is right, and its claims are read.
    let refusal = targets::cancel_by(&seed("signature/token")).expect_err("it is a submission");
    assert_eq!(refusal, tael::model::signature::Refusal::Other("operation"));
    let event = seed("event/python");
    let payload = event.splitn(2, |b| *b == b'\n').nth(1).expect("payload");
    tael::model::event::attributes(payload, 1000).expect("event");
}
