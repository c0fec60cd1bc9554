//! Manual pages, from the same definitions as the options themselves.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Args, Command};
use clap_mangen::Man as Page;

use crate::cli::config::{Layers, QUEUE, TABLES};
use crate::cli::connection::is_shared;
use crate::cli::help::examples_of;
use crate::cli::queue_access;
use crate::cli::trigger::TriggerOptions;
use crate::cli::view;
use crate::cli::work_type::WorkOptions;
use crate::cli::{ENTRIES, Tool, whole};
use crate::error::{Error, Kind, Result};
use crate::model::gateway::route;
use crate::os::paths;

/// A file for `tael.toml(5)`.
const EXAMPLE: &str = include_str!("../../examples/tael.toml");

/// The page whose tables are those of `tael-playbook(5)`.
const PLAYBOOKS: &str = include_str!("../../docs/playbooks.md");

/// Meaning of each exit code, for commands without codes of their own.
const CODES: &[(u8, &str)] = &[
    (0, "Done."),
    (Kind::Usage.exit_code(), "Wrong options."),
    (
        Kind::Data.exit_code(),
        "Wrong data, or a request that the client refuses.",
    ),
    (
        Kind::Unavailable.exit_code(),
        "The broker is not available.",
    ),
    (Kind::Bug.exit_code(), "A bug in Tael."),
    (
        Kind::CannotCreate.exit_code(),
        "State cannot be created or used, or a client of this name runs already.",
    ),
    (
        Kind::TryAgain.exit_code(),
        "No answer in time, or something that a restart mends: try again.",
    ),
    (
        Kind::NotAuthorised.exit_code(),
        "The broker does not authorise us.",
    ),
    (
        Kind::Config.exit_code(),
        "A configuration file, or another file that an option names, is wrong or missing.",
    ),
];

/// The exit codes of monitoring plugins.
const PLUGIN_CODES: &[(u8, &str)] = &[
    (0, "OK."),
    (1, "Warning."),
    (2, "Critical."),
    (3, "Unknown, wrong options included."),
];

/// Options of `tael man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Folder for the pages; it is created if missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Tool for Man {
    const NAME: &'static str = "man";
    const ABOUT: &'static str = "Write the manual pages into a folder";

    fn run(self, _: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        fs::create_dir_all(&self.dir).map_err(|e| {
            Error::cannot_create(format!("create folder {}: {e}", self.dir.display()))
        })?;
        for (name, text) in pages().map_err(|e| Error::bug(format!("write pages: {e}")))? {
            let path = self.dir.join(name);
            fs::write(&path, text)
                .map_err(|e| Error::cannot_create(format!("write {}: {e}", path.display())))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the names of all pages, and their texts.
fn pages() -> io::Result<Vec<(String, String)>> {
    let mut whole = whole();
    // Verbs get the options of their command.
    whole.build();
    let overview = ENTRIES
        .iter()
        .filter_map(|entry| entry.page.examples.first());
    let overview: Vec<&str> = overview.copied().collect();
    let mut pages = vec![("tael.1".to_owned(), page(&whole, "tael", &overview)?)];
    for entry in ENTRIES {
        let Some(command) = whole
            .find_subcommand(entry.name)
            .filter(|c| !c.is_hide_set())
        else {
            continue;
        };
        let examples = entry.page.examples;
        let name = format!("tael-{}", entry.name);
        pages.push((format!("{name}.1"), page(command, &name, examples)?));
        for verb in command.get_subcommands().filter(|c| c.get_name() != "help") {
            let own = examples_of(examples, entry.name, verb);
            let own: Vec<&str> = own.iter().map(String::as_str).collect();
            let name = format!("{name}-{}", verb.get_name());
            pages.push((format!("{name}.1"), page(verb, &name, &own)?));
        }
    }
    pages.push(("tael.toml.5".to_owned(), config_page(&whole)));
    pages.push(("tael-playbook.5".to_owned(), playbook_page()));
    Ok(pages)
}

/// Returns the page of `command`, which is called `name`.
fn page(command: &Command, name: &str, examples: &[&str]) -> io::Result<String> {
    let command = command
        .clone()
        .name(name.to_owned())
        .bin_name(name.replace('-', " "));
    let command = command.display_name(name.to_owned());
    let has_files = command
        .get_arguments()
        .any(|arg| arg.get_long() == Some("config"));
    let variables: Vec<(String, String)> = command
        .get_arguments()
        .filter_map(|arg| {
            let env = arg.get_env()?.to_str()?.to_owned();
            Some((env, format!("The value of --{}.", arg.get_long()?)))
        })
        .collect();
    let man = Page::new(command.clone())
        .title(name)
        .manual("Tael")
        .source(concat!("tael ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    let has_verbs = command.get_subcommands().any(|c| c.get_name() != "help");
    if has_verbs {
        man.render_subcommands_section(&mut text)?;
    }
    let mut roff = Roff(String::from_utf8_lossy(&text).into_owned());
    if !examples.is_empty() {
        roff.section("EXAMPLES");
        roff.verbatim(&examples.join("\n"));
    }
    roff.section("EXIT STATUS");
    let codes = match name {
        "tael-check" => PLUGIN_CODES,
        _ => CODES,
    };
    for (code, meaning) in codes {
        roff.item(&code.to_string(), meaning);
    }
    if ["tael-work", "tael-work-results"].contains(&name) {
        roff.item(
            &format!("{}, or the code of the command", Kind::NoCode.exit_code()),
            "With results: 125 if the run has no code yet, never began, or is unknown. Otherwise \
             the code of its command, or 128 and the number of the signal.",
        );
    }
    if ["tael-queue", "tael-queue-push"].contains(&name) {
        roff.item(
            "1",
            "With push --wait: messages have failed or were canceled.",
        );
        roff.item(
            "130",
            "Interrupted; what was confirmed before is in the queue.",
        );
    }
    if !variables.is_empty() {
        roff.section("ENVIRONMENT");
        roff.text("Flags win over the environment, and the environment wins over files.");
        for (variable, meaning) in &variables {
            roff.item(variable, meaning);
        }
        roff.item("TAEL_PASSWORD", "The password for the broker.");
        if variables
            .iter()
            .any(|(name, _)| name.starts_with("TAEL_QUEUE_"))
        {
            roff.item("TAEL_QUEUE_PASSWORD", "The password for brokers of queues.");
            roff.item(
                "TAEL_QUEUE_BROKER",
                "The broker of queues that are only named, as in [queue].",
            );
        }
        roff.item(
            "TAEL_LOG",
            "The level of log lines: error, warn, info, debug or off.",
        );
    }
    roff.section("FILES");
    if has_files || name == "tael" {
        roff.item(
            "~/.config/tael/tael.toml",
            "Options of the user; see tael.toml(5).",
        );
        roff.item(paths::SYSTEM_CONFIG, "Options for all users of the host.");
    }
    roff.item(
        "~/.local/state/tael/WHO/",
        "State of a client; $STATE_DIRECTORY or $XDG_STATE_HOME/tael replaces the part before WHO.",
    );
    if name == "tael-gateway" {
        roff.section("WEBHOOKS");
        roff.text("Webhooks are [[route]] tables of the configuration file: see tael.toml(5).");
    }
    roff.section("SEE ALSO");
    roff.text("tael(1), tael.toml(5), tael-playbook(5)");
    Ok(roff.0)
}

/// Returns the page of the configuration file.
fn config_page(whole: &Command) -> String {
    let mut roff = Roff::page("tael.toml", 5, "configuration file of tael");
    roff.section("DESCRIPTION");
    roff.text(
        "Options of tael, in TOML. A key is a long option without its dashes: --max-payload is \
         max-payload. Values are strings, numbers, true or false, and lists for options that may be \
         repeated. Flags and variables of the environment win over files. An unknown key stops the \
         command, with exit code 78.",
    );
    roff.section("OPTIONS OF ALL COMMANDS");
    roff.text("These stand at the top of the file, before the first table.");
    let mut shared: Vec<&Arg> = Vec::new();
    for arg in whole.get_subcommands().flat_map(Command::get_arguments) {
        let is_new = !shared
            .iter()
            .any(|known| known.get_long() == arg.get_long());
        if arg.get_long().is_some_and(is_shared) && is_new {
            shared.push(arg);
        }
    }
    shared.iter().for_each(|arg| roff.key(arg));
    roff.section("TABLES");
    roff.text("Options of one command stand below its name in brackets, such as [client].");
    for table in TABLES {
        let Some(command) = whole.find_subcommand(table) else {
            continue;
        };
        let own = command.get_arguments().filter_map(Arg::get_long);
        let own = own.filter(|long| !is_shared(long) && !Layers::is_excluded(long));
        let keys: Vec<&str> = own.collect();
        roff.item(&format!("[{table}]"), &keys.join(", "));
    }
    roff.section("TRIGGERS");
    roff.text(
        "Each [[trigger]] table is a trigger of the client. It has a name, and these keys. A key in \
         [client] is the default of all triggers on the command line only.",
    );
    let triggers = TriggerOptions::augment_args(Command::new("trigger"));
    triggers.get_arguments().for_each(|arg| roff.key(arg));
    roff.section("WORK TYPES");
    roff.text(
        "Each [[work]] table is a kind of work that 'tael work submit TYPE' and receptorctl start. It \
         has a type, and these keys. A file cannot have [work] as well.",
    );
    let work = WorkOptions::augment_args(Command::new("work"));
    work.get_arguments().for_each(|arg| roff.key(arg));
    roff.section("KEYS");
    roff.text("Signatures of work for other nodes.");
    roff.item(
        "key in [signing]",
        "Private key that tael work --node --sign and the client sign with, PEM: RSA or Ed25519.",
    );
    roff.item(
        "keys in [verify]",
        "Public keys whose signatures the client takes, PEM. Several may be in force at once.",
    );
    roff.section("QUEUES");
    roff.text(
        "The [queue] table names the broker of work queues, for queue in a [[trigger]], for --queue and \
         for tael queue.",
    );
    for (key, meaning) in queue_access::KEYS {
        roff.item(&format!("{key} in [{QUEUE}]"), meaning);
    }
    roff.section("VIEWS");
    roff.text("Each [[view]] table is a SELECT for 'tael facts view NAME'.");
    for (key, meaning) in view::KEYS {
        roff.item(&format!("{key} in [[view]]"), meaning);
    }
    roff.section("ROUTES");
    roff.text("Each [[route]] table of 'tael gateway' makes events of requests, such as webhooks.");
    for (key, meaning) in route::KEYS {
        roff.item(&format!("{key} in [[route]]"), meaning);
    }
    roff.section("COMMANDS OF A NODE");
    roff.text("Each [command.NAME] table is a command of tael node.");
    roff.item("run", "Command line for sh.");
    roff.item("status", "Status that is published when it has ended.");
    roff.item(
        "background",
        "true: the node goes on at once, and STOP ends the command.",
    );
    roff.section("EXAMPLES");
    roff.verbatim(EXAMPLE.trim_end());
    roff.section("EXIT STATUS");
    roff.item(
        &Kind::Config.exit_code().to_string(),
        "The file is wrong, or one that --config names is missing.",
    );
    roff.section("FILES");
    roff.item(
        "--config FILE, or $TAEL_CONFIG",
        "Replaces the file of the user.",
    );
    roff.item("~/.config/tael/tael.toml", "File of the user.");
    roff.item(paths::SYSTEM_CONFIG, "Applies below both.");
    roff.section("SEE ALSO");
    roff.text("tael(1), tael-client(1), tael-node(1), tael-gateway(1)");
    roff.0
}

/// Returns the page of playbooks, from the tables of its documentation.
fn playbook_page() -> String {
    let mut roff = Roff::page("tael-playbook", 5, "steps over several nodes for tael play");
    roff.section("DESCRIPTION");
    roff.text(
        "A playbook is a text file. Each line is a step, and steps run one after the other. Empty \
         lines, and lines that begin with #, mean nothing. The whole file is read before the first \
         step.",
    );
    let part = |from: &str| {
        let (_, rest) = PLAYBOOKS.split_once(from).unwrap_or_default();
        rest.split("\n## ").next().unwrap_or_default()
    };
    roff.section("STEPS");
    roff.rows(part("\n## Steps\n"));
    roff.section("COMMANDS OF A NODE");
    roff.rows(part("\n## What a node does\n"));
    roff.section("EXAMPLES");
    let block = PLAYBOOKS.split_once("```text playbook\n");
    let block = block.and_then(|(_, rest)| rest.split("```").next());
    roff.verbatim(block.unwrap_or_default().trim_end());
    roff.section("EXIT STATUS");
    roff.text("That of tael play:");
    roff.item("0", "Every step held.");
    roff.item(
        &Kind::Data.exit_code().to_string(),
        "The playbook has mistakes.",
    );
    roff.item(
        &Kind::Unavailable.exit_code().to_string(),
        "A node is lost, or the broker.",
    );
    roff.item(
        &Kind::TryAgain.exit_code().to_string(),
        "A WAITFOR has timed out.",
    );
    roff.item("any other", "The code of the step that has failed.");
    roff.section("FILES");
    roff.text("A playbook has no fixed place: tael play FILE.");
    roff.section("SEE ALSO");
    roff.text("tael-play(1), tael-node(1), tael.toml(5)");
    roff.0
}

/// A page in the language of man (man(7)).
struct Roff(String);

impl Roff {
    fn page(name: &str, section: u8, about: &str) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let name_text = escaped(name);
        Self(format!(
            ".TH {name_text} {section} \"\" \"tael {version}\" \"Tael\"\n\
             .SH NAME\n{name_text} \\- {}\n",
            escaped(about)
        ))
    }

    fn section(&mut self, title: &str) {
        let _ = writeln!(self.0, ".SH \"{title}\"");
    }

    fn text(&mut self, text: &str) {
        let _ = writeln!(self.0, "{}", escaped(text));
    }

    fn item(&mut self, term: &str, text: &str) {
        let _ = writeln!(self.0, ".TP\n\\fB{}\\fR\n{}", escaped(term), escaped(text));
    }

    fn key(&mut self, arg: &Arg) {
        if let Some(long) = arg.get_long() {
            let help = arg.get_help().map(ToString::to_string);
            self.item(long, &help.unwrap_or_default());
        }
    }

    /// Lines that stay as they are.
    fn verbatim(&mut self, text: &str) {
        self.0 += ".PP\n.nf\n";
        for line in text.lines() {
            self.text(line);
        }
        self.0 += ".fi\n";
    }

    /// The rows of a table in Markdown that has two columns.
    fn rows(&mut self, markdown: &str) {
        let rows = markdown.lines().filter_map(|line| line.strip_prefix("| "));
        for row in rows.filter(|row| row.starts_with('`')) {
            if let Some((term, text)) = row.trim_end_matches(" |").split_once(" | ") {
                self.item(&plain(term), &plain(text));
            }
        }
    }
}

/// Returns Markdown without its marks and the targets of its links.
fn plain(markdown: &str) -> String {
    let mut text = String::new();
    let mut rest = markdown;
    while let Some((before, after)) = rest.split_once("](") {
        let (start, link) = before.rsplit_once('[').unwrap_or((before, ""));
        text += start;
        text += link;
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    text += rest;
    text.replace('`', "").replace("\\|", "|")
}

/// Returns `text` with what roff would interpret escaped.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roff_and_markdown_are_escaped() {
        assert_eq!(escaped(".a\\-b"), "\\&.a\\e\\-b");
        assert_eq!(
            plain("`A [B]` is [there](x.md#y), `c \\| d`"),
            "A [B] is there, c | d"
        );
    }
}
