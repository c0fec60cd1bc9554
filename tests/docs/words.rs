//! The words that Tael uses: forms that have to be decoded are banned from everything that people
//! read, which is pages, help, log and error lines, comments, examples and unit files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{binary, ran};
use crate::page::root;

/// Banned forms, and what to write instead. A form stands for whole words, in upper or lower case.
const BANNED: &[(&str, &str)] = &[
    ("cancelled", "canceled"),
    ("cancelling", "canceling"),
    ("whoever", "name the actor"),
    ("whatever", "all, every, any"),
    ("whichever", "each, for every"),
    ("nobody", "no client, no process, no user"),
    ("trying on", "trying again"),
    ("somebody", "a user, another process"),
    ("anybody", "any user, every client"),
    ("everybody", "every user, all clients"),
    ("is to be", "must be, will be"),
    ("are to be", "must be, will be"),
    ("was to be", "should have been"),
    ("were to be", "should have been"),
    ("so long", "as long as, for this time"),
    ("so often", "this many times"),
    ("in place of", "instead of"),
    ("but for", "except"),
    ("or else", "otherwise"),
    ("; else", "otherwise"),
    (", else", "otherwise"),
    ("that is none", "that is not one"),
    ("tells of", "reports"),
    ("gets on", "makes progress"),
    ("perhaps", "leave it out"),
    ("should it", "if it"),
    ("without a word", "without a message, without a goodbye"),
    ("turned away", "refused"),
    ("turns us away", "refuses us"),
    ("turned us away", "refused us"),
    ("under way", "in flight, running"),
    ("let go of", "release"),
    ("lets go of", "releases"),
    ("for want of", "because … is missing"),
    ("if need be", "if necessary"),
    ("come to pass", "happen"),
    ("since the epoch", "since 1970"),
    ("tries on", "tries again"),
    ("looked after", "supervised"),
    ("looks after", "supervises"),
];

/// Forms that a file must have, because another program has chosen them.
const FOREIGN: &[(&str, &str)] = &[
    // What Receptor answers on its control socket.
    ("src/engine/control/socket/session.rs:", "cancelled"),
    ("src/engine/control/socket/bridge.rs:", "cancelled"),
    // The secret of an example of GitHub.
    ("src/model/gateway/signature/tests.rs:", "everybody"),
];

/// Folders and files whose text is checked as a whole.
const TEXTS: &[&str] = &[
    "README.md",
    "CHANGELOG.md",
    "docs",
    "examples",
    "systemd",
    "packaging/deb",
];

/// A piece of text, with its place.
struct Piece {
    place: String,
    text: String,
}

/// All files at or below `path`.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).expect("folder");
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    found.sort();
    found.iter().flat_map(|path| files(path)).collect()
}

/// The paragraphs of a page or a file of settings; `#` begins comments there.
fn paragraphs(name: &str, text: &str) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut open = false;
    for (line, n) in text.lines().zip(1..) {
        let line = line.trim().trim_start_matches('#').trim();
        match (line.is_empty(), open, pieces.last_mut()) {
            (true, ..) => open = false,
            (false, true, Some(piece)) => piece.text += &format!(" {line}"),
            (false, ..) => {
                open = true;
                pieces.push(Piece {
                    place: format!("{name}:{n}"),
                    text: line.to_owned(),
                });
            }
        }
    }
    pieces
}

/// The comments and the texts in quotes of a Rust file. Comments on lines that follow each other are
/// one piece.
fn prose(name: &str, code: &str) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut add = |n: usize, text: String| {
        pieces.push(Piece {
            place: format!("{name}:{n}"),
            text,
        });
    };
    let (mut comment, mut first) = (String::new(), 0);
    let mut string: Option<(String, usize)> = None;
    for (line, n) in code.lines().zip(1..) {
        let own = line.trim_start();
        if string.is_none() && own.starts_with("//") {
            if comment.is_empty() {
                first = n;
            }
            comment += own.trim_start_matches(['/', '!']);
            comment.push(' ');
            continue;
        }
        if !comment.is_empty() {
            add(first, std::mem::take(&mut comment));
        }
        let mut chars = line.chars().peekable();
        if let Some((text, _)) = &mut string {
            // A backslash at the end of a line skips the blanks of the next.
            text.push(' ');
        }
        while let Some(c) = chars.next() {
            match (&mut string, c) {
                (Some(_), '\\') => drop(chars.next()),
                (Some(_), '"') => {
                    if let Some((text, at)) = string.take() {
                        add(at, text);
                    }
                }
                (Some((text, _)), c) => text.push(c),
                (None, '"') => string = Some((String::new(), n)),
                // The character of a quote.
                (None, '\'') if chars.peek() == Some(&'"') => drop(chars.next()),
                (None, '/') if chars.peek() == Some(&'/') => {
                    add(n, chars.by_ref().collect());
                }
                (None, _) => {}
            }
        }
    }
    if !comment.is_empty() {
        add(first, comment);
    }
    pieces
}

/// Words in lower case with one blank between them, so that a form may stand over two lines.
fn words(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    format!(" {} ", words.join(" ").to_lowercase())
}

/// Whether `text`, from [`words`], has `form` as whole words.
fn has(text: &str, form: &str) -> bool {
    text.match_indices(form).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + form.len()..].chars().next();
        let apart = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        let punctuated = form.starts_with([';', ',']);
        (punctuated || apart(before)) && apart(after)
    })
}

#[test]
fn words_are_the_ones_of_the_field() {
    let mut pieces = Vec::new();
    let read = |path: &Path| {
        let name = path
            .strip_prefix(root())
            .expect("below")
            .display()
            .to_string();
        (name, fs::read_to_string(path).expect("text"))
    };
    for path in TEXTS.iter().flat_map(|text| files(&root().join(text))) {
        let (name, text) = read(&path);
        pieces.extend(paragraphs(&name, &text));
    }
    for path in files(&root().join("src")) {
        let (name, code) = read(&path);
        pieces.extend(prose(&name, &code));
    }
    assert!(pieces.len() > 4000, "{} pieces", pieces.len());
    let mut complaints = Vec::new();
    for piece in &pieces {
        let text = words(&piece.text);
        for (form, instead) in BANNED.iter().filter(|(form, _)| has(&text, form)) {
            let is_foreign =
                |(file, foreign): &(&str, &str)| piece.place.starts_with(file) && foreign == form;
            if FOREIGN.iter().any(is_foreign) {
                continue;
            }
            complaints.push(format!("{}: '{form}': {instead}", piece.place));
        }
    }
    let count = complaints.len();
    assert!(
        complaints.is_empty(),
        "{count} forms:\n{}",
        complaints.join("\n")
    );
}

#[test]
fn help_uses_the_words_of_the_field() {
    let help = |arguments: &[&str]| ran(Command::new(binary("tael")).args(arguments)).1;
    let overview = help(&["--help"]);
    let listed = overview.split_once("Commands:\n").expect("commands").1;
    let commands = listed.lines().take_while(|line| !line.is_empty());
    let commands = commands.filter_map(|line| line.split_whitespace().next());
    let mut texts = vec![words(&overview)];
    for command in commands.filter(|command| *command != "help") {
        texts.push(words(&help(&[command, "--help"])));
    }
    assert!(texts.len() > 10);
    for text in texts {
        let found = BANNED.iter().find(|(form, _)| has(&text, form));
        assert!(found.is_none(), "{found:?}: {text}");
    }
}

#[test]
fn forms_are_found_in_comments_and_texts_only() {
    let code =
        "/// Somebody\n/// is to\n/// be.\nfn nobody() { say(\"so \\\"long\"); } // perhaps\n";
    let found = |form: &str| {
        let pieces = prose("a.rs", code);
        pieces.iter().any(|piece| has(&words(&piece.text), form))
    };
    for form in ["somebody", "is to be", "perhaps"] {
        assert!(found(form), "{form}");
    }
    assert!(!found("nobody") && !found("else"));
    assert!(has(&words("this; else that"), "; else") && !has(&words("something else"), ", else"));
}
