//! The files of the gateway's page: nothing of a payload becomes markup, and nothing comes from elsewhere.

use std::fs;

use super::package;

/// The namespace of SVG, the only address in the files.
const NAMESPACE: &str = "http://www.w3.org/2000/svg";

/// Ways to markup, to code that is made of texts, to other hosts, and to what outlives a tab.
const FORBIDDEN: &[&str] = &[
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "setHTMLUnsafe",
    "createContextualFragment",
    "srcdoc",
    "document.write",
    "eval(",
    "Function(",
    "import(",
    "javascript:",
    "@import",
    "http://",
    "https://",
    "\"//",
    "localStorage",
    "document.cookie",
    "sendBeacon",
    "WebSocket",
];

fn file(name: &str) -> String {
    let path = package().join("src/tools/gateway/page").join(name);
    fs::read_to_string(path).expect("a file of the page")
}

#[test]
fn the_page_makes_no_markup_and_asks_no_other_host() {
    for name in ["index.html", "page.css", "page.js", "icon.svg"] {
        let text = file(name).replace(NAMESPACE, "");
        for word in FORBIDDEN {
            assert!(!text.contains(word), "{name} has '{word}'");
        }
    }
}

#[test]
fn addresses_that_the_script_sets_lead_to_the_page_itself() {
    let script = file("page.js");
    let lines: Vec<&str> = script.lines().filter(|l| l.contains("href")).collect();
    assert!(lines.len() > 1, "{lines:?}");
    for line in lines {
        let fixed = ["href: `#/pipelines/$", "href: at("];
        let is_own = fixed.iter().any(|start| line.contains(start));
        // The attributes of a drawing that are kept have no address.
        assert!(is_own, "{line}");
    }
    assert!(script.contains("=> `#/pipelines/$"), "at() is not found");
}

#[test]
fn the_document_has_no_code_and_no_styles_of_its_own() {
    let document = file("index.html");
    for tag in document.split('<').skip(1) {
        let tag = tag.split('>').next().unwrap_or_default();
        assert!(!tag.starts_with("style"), "<{tag}>");
        if tag.starts_with("script") {
            assert!(tag.contains(" src="), "<{tag}>");
        }
        for attribute in tag.split_ascii_whitespace().skip(1) {
            let is_code = attribute.starts_with("on") && attribute.contains('=');
            assert!(!is_code && !attribute.starts_with("style="), "<{tag}>");
        }
    }
}
