//! Drawings of networks whose names are those of senders.

use proptest::prelude::*;
use quick_xml::events::Event;
use quick_xml::reader::Reader;
use serde_json::json;
use tael::model::drawing::svg;
use tael::model::network::Network;

/// Elements and attributes that a drawing may have.
const ELEMENTS: &[&str] = &["svg", "title", "g", "rect", "text", "path", "polygon"];
const ATTRIBUTES: &[&str] = &[
    "xmlns",
    "class",
    "role",
    "viewBox",
    "width",
    "height",
    "font-family",
    "font-size",
    "data-who",
    "data-from",
    "data-to",
    "x",
    "y",
    "rx",
    "fill",
    "stroke",
    "stroke-dasharray",
    "text-anchor",
    "d",
    "points",
];

/// Reads `drawing` as a browser would, and returns the values of its `data-who`.
fn read(drawing: &str) -> Vec<String> {
    let mut reader = Reader::from_str(drawing);
    reader.config_mut().check_end_names = true;
    let mut names = Vec::new();
    let mut depth = 0;
    loop {
        let event = reader.read_event().expect("well-formed XML");
        let start = match &event {
            Event::Start(start) => {
                depth += 1;
                start
            }
            Event::Empty(start) => start,
            Event::End(_) => {
                depth -= 1;
                continue;
            }
            Event::Text(_) | Event::GeneralRef(_) => continue,
            Event::Eof => break,
            other => panic!("{other:?} in {drawing}"),
        };
        let name = start.name().as_ref().to_owned();
        assert!(ELEMENTS.contains(&name.as_str()), "{name} in {drawing}");
        for attribute in start.attributes() {
            let attribute = attribute.expect("attribute");
            let key = attribute.key.as_ref().to_owned();
            assert!(ATTRIBUTES.contains(&key.as_str()), "{key} in {drawing}");
            if key == "data-who" {
                names.push(
                    quick_xml::escape::unescape(&attribute.value)
                        .expect("escapes")
                        .into_owned(),
                );
            }
        }
    }
    assert_eq!(depth, 0);
    let allowed =
        |c: char| matches!(c, '\n' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    assert!(drawing.chars().all(allowed), "{drawing:?}");
    names
}

/// Returns the network of these pipelines; each starts at the end of the one before, and at a topic.
fn network(names: &[String], topic: &str, state: &str) -> Network {
    let mut network = Network::default();
    for (n, who) in names.iter().enumerate() {
        let before = names.get(n.wrapping_sub(1)).map_or("x", String::as_str);
        let presence = json!({"state": state, "triggers": [
            {"name": "a", "topics": [format!("lab/infrastructure/pipelines/{before}/status")]},
            {"name": "b", "topics": [topic], "absent": 5.0},
        ]});
        let own = format!("lab/infrastructure/pipelines/{who}/presence");
        network.add("lab", &own, presence.as_object().expect("object"));
    }
    network
}

proptest! {
    #[test]
    fn hostile_names_stay_text(
        names in proptest::collection::vec("[^/+#\0]{1,40}", 0..8),
        topic in any::<String>(),
        state in any::<String>(),
    ) {
        read(&svg(&network(&names, &topic, &state).graph("lab")).0);
    }
}

#[test]
fn a_drawing_names_its_pipelines_as_they_are() {
    let hostile = [
        "a\"><script>alert(1)</script>",
        "b' onload='x",
        "c]]>&amp;<!--",
        "plain",
    ];
    let mut names = hostile.map(str::to_owned).to_vec();
    names.retain(|name| !name.contains('/'));
    names.push("d\u{202e}e".to_owned());
    names.sort();
    let (drawing, cut) = svg(&network(&names, "lab/<b>/#", "online").graph("lab"));
    assert_eq!(read(&drawing), names);
    assert_eq!(cut, None);
    assert!(
        !drawing.contains("e\u{202e}") && drawing.contains("silent"),
        "{drawing}"
    );
}

#[test]
fn a_thousand_pipelines_are_drawn_and_more_are_said() {
    let names = |count: usize| (0..count).map(|n| format!("p{n:05}")).collect::<Vec<_>>();
    let (drawing, cut) = svg(&network(&names(1_000), "lab/x", "online").graph("lab"));
    assert_eq!(read(&drawing).len(), 1_000);
    assert_eq!(cut, None);
    let (drawing, cut) = svg(&network(&names(3_000), "lab/x", "online").graph("lab"));
    assert_eq!(read(&drawing).len(), 2_000);
    assert!(cut.expect("said").contains("left out"));
}
