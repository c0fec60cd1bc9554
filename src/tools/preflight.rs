//! What `tael client --check` looks for on this host and at the broker. Nothing is started or changed.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use nix::unistd::{AccessFlags, eaccess};
use tokio::time::timeout;
use tracing::warn;

use crate::engine::config::{Config, RECEIVE_MAXIMUM};
use crate::engine::work::job::{read_env_file, search_path};
use crate::error::{Error, Kind, Result};
use crate::model::command::Command;
use crate::model::duration;
use crate::model::message::{Message, Properties, Qos};
use crate::model::near::nearest;
use crate::model::spec::Spec;
use crate::model::topic::{Filter, PipelineTopics, check_who};
use crate::model::trigger::Trigger;
use crate::model::variables::Variables;
use crate::net::attempts::unreachable;
use crate::net::mqtt::{Connection, Event, Failure, Refused, Settings, Subscribe, Token};
use crate::net::options::BrokerOptions;
use crate::os::program;
use crate::os::{folder, host};
use crate::store::private;
use crate::tools::MAX_PACKET;

/// Maximum time for the broker to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// QoS of a client's deliveries.
const QOS: Qos = Qos::AtLeastOnce;

/// Maximum time to leave the broker.
const FAREWELL: Duration = Duration::from_secs(1);

/// Something that a run, or the client, would lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub place: Place,
    /// The option.
    pub key: &'static str,
    /// What is wrong.
    pub cause: String,
    /// Whether it may be meant. What a run would lack on this host is none: no event could run.
    pub is_doubt: bool,
}

/// Part of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The trigger that has this place in the configuration.
    Trigger(usize),
    /// The work type that has this place.
    Work(usize),
    /// The client.
    Client,
}

/// Looks for programs, files and folders that a pipeline with state in `state` needs.
#[must_use]
pub fn look(config: &Config, state: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (place, trigger) in config.triggers.iter().enumerate() {
        let mut found = |key, is_doubt, cause| {
            findings.push(Finding {
                place: Place::Trigger(place),
                key,
                cause,
                is_doubt,
            });
        };
        of_trigger(trigger, &mut found);
    }
    for (place, kind) in config.work.iter().enumerate() {
        let mut found = |key, is_doubt, cause| {
            findings.push(Finding {
                place: Place::Work(place),
                key,
                cause,
                is_doubt,
            });
        };
        of_spec(&kind.spec, &mut found);
    }
    let mut of_client = |key, cause| {
        findings.push(Finding {
            place: Place::Client,
            key,
            cause,
            is_doubt: false,
        });
    };
    if let Some(metrics) = &config.metrics {
        let parent = metrics.parent().filter(|path| !path.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        if let Err(cause) = writable(parent) {
            of_client("metrics", cause);
        }
    }
    if check_who(&config.who).is_ok()
        && let Err(cause) = state_of(state, &config.who)
    {
        of_client("who", cause);
    }
    findings
}

/// Looks for what the runs of `spec` need.
fn of_spec(spec: &Spec, found: &mut impl FnMut(&'static str, bool, String)) {
    let start = folder::find().map_or_else(|| PathBuf::from("."), Path::to_owned);
    let cwd = spec.cwd.as_deref().unwrap_or(&start);
    if let Some(cwd) = &spec.cwd {
        match cwd.metadata() {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => found("cwd", false, format!("{} is not a folder", cwd.display())),
            Err(e) => found(
                "cwd",
                false,
                format!("cannot use folder {}: {e}", cwd.display()),
            ),
        }
    }
    let variables = spec.env_file.as_deref().map(read_env_file);
    let variables = variables.unwrap_or_else(|| Ok(Variables::new()));
    let path = search_path(variables.as_deref().unwrap_or_default());
    if let Err(cause) = variables {
        found("env-file", false, cause);
    }
    of_command(&spec.command, &path, cwd, found);
}

fn of_trigger(trigger: &Trigger, found: &mut impl FnMut(&'static str, bool, String)) {
    of_spec(&trigger.spec, found);
    let required = trigger.export.required_names();
    for name in &trigger.passthrough {
        let upper = name.to_ascii_uppercase();
        let known = required.iter().map(String::as_str);
        if !required.contains(&upper)
            && let Some(near) = nearest(&upper, known)
        {
            let cause = format!("'{name}' is not a required attribute; did you mean '{near}'?");
            found("payload-passthrough", true, cause);
        }
    }
}

fn of_command(
    command: &Command,
    path: &OsStr,
    cwd: &Path,
    found: &mut impl FnMut(&'static str, bool, String),
) {
    if let Command::Shell { shell, line } = command {
        if let Err(cause) = program::look(shell, path, cwd) {
            return found("shell", false, cause);
        }
        if let Err(cause) = program::check_syntax(shell, line) {
            return found("command", false, format!("its shell refuses it: {cause}"));
        }
    }
    if let Err(cause) = program::look_for(command, path, cwd) {
        found("command", false, cause);
    }
}

fn writable(folder: &Path) -> Result<(), String> {
    let cannot = |cause: &dyn std::fmt::Display| {
        format!("cannot write to folder {}: {cause}", folder.display())
    };
    match folder.metadata() {
        Ok(meta) if !meta.is_dir() => return Err(cannot(&"it is not a folder")),
        Ok(_) => {}
        Err(e) => return Err(cannot(&e)),
    }
    eaccess(folder, AccessFlags::W_OK | AccessFlags::X_OK)
        .map_err(|e| cannot(&std::io::Error::from(e)))
}

/// Checks the state folder of a pipeline, or that it can be created.
fn state_of(state: &Path, who: &str) -> Result<(), String> {
    let own = state.join(who);
    if own.exists() {
        return private::check(&own).map_err(|e| e.to_string());
    }
    let parent = own.ancestors().skip(1).find(|path| path.exists());
    parent.map_or(Ok(()), writable)
}

/// Asks each broker of a pipeline whether it accepts the client, its subscriptions and a message below
/// the topics of the pipeline, as a client with an identifier of its own, so that the session of the
/// pipeline is not touched. Returns a line for each thing that it accepts.
pub fn ask_broker(config: &Config, client_id: &str) -> Vec<Result<String>> {
    let settings = Settings {
        broker: BrokerOptions {
            client_id: client_id.to_owned(),
            ..config.broker.clone()
        },
        session_expiry: Duration::ZERO,
        clean_start: true,
        will: None,
        max_packet: MAX_PACKET,
        receive_maximum: RECEIVE_MAXIMUM,
    };
    let mut answers = Vec::new();
    let filters = wanted(config, &mut answers);
    let named = check_who(&config.who).is_ok();
    let trial =
        named.then(|| PipelineTopics::new(&config.root, &config.who).reply(&host::new_id()));
    let asked = super::runtime().map(|runtime| {
        runtime.block_on(async {
            for turn in 0..settings.broker.count() {
                if let Err(e) = ask(&settings, turn, &filters, trial.as_deref(), &mut answers).await
                {
                    answers.push(Err(e));
                }
            }
        });
    });
    if let Err(e) = asked {
        answers.push(Err(e));
    }
    answers
}

/// Returns the filters of a pipeline, each once, in the order of the triggers. Its own topics come
/// last.
fn wanted(config: &Config, answers: &mut Vec<Result<String>>) -> Vec<Filter> {
    let filters = config.triggers.iter().flat_map(|trigger| &trigger.filters);
    let mut wanted: Vec<Filter> = filters.cloned().collect();
    // A name that is wrong was reported.
    if check_who(&config.who).is_ok() {
        let topics = PipelineTopics::new(&config.root, &config.who);
        let work = (!config.work.is_empty()).then(|| topics.work());
        for topic in std::iter::once(topics.control()).chain(work) {
            match Filter::new(topic) {
                Ok(own) => wanted.push(own),
                Err(e) => answers.push(Err(Error::usage(e))),
            }
        }
    }
    let mut seen = HashSet::new();
    wanted.retain(|filter| seen.insert(filter.clone()));
    wanted
}

/// Asks the broker whose `turn` it is; publishes an empty message to the topic `trial`. The error is why it could not be asked.
async fn ask(
    settings: &Settings,
    turn: usize,
    filters: &[Filter],
    trial: Option<&str>,
    answers: &mut Vec<Result<String>>,
) -> Result<()> {
    let address = settings.broker.address_at(turn);
    let lost = |failure| match failure {
        Failure::Fatal(e) => e.context(format_args!("connect to {address}")),
        Failure::TakenOver => unreachable(&address, "another client has taken over the session"),
        Failure::Passing(cause)
        | Failure::Cut(cause)
        | Failure::Packet(cause)
        | Failure::WillRefused(cause) => unreachable(&address, &cause),
    };
    let late = || {
        let cause = format!("no answer within {}", duration::text(ANSWER));
        unreachable(&address, &cause)
    };
    let mut connection = Connection::open(settings, turn, false)?;
    let offer = match timeout(ANSWER, connection.next()).await {
        Ok(Event::Connected(offer)) => offer,
        Ok(Event::Failed(failure)) => return Err(lost(failure)),
        Ok(_) => return Err(lost(Failure::Passing("it sent no answer".into()))),
        Err(_) => return Err(late()),
    };
    answers.push(Ok(format!("{address} accepts the client")));
    for shortfall in offer.shortfalls(Duration::ZERO, QOS, &settings.broker.client_id) {
        warn!("{address} offers less than needed: {shortfall}");
    }
    for (filter, number) in filters.iter().zip(1..) {
        let refused = |e: Error| e.context(format_args!("subscribe to '{filter}' at {address}"));
        if let Some(objection) = offer.objection(filter) {
            answers.push(Err(refused(Error::new(Kind::Unavailable, objection))));
            continue;
        }
        // A member of a shared subscription would get messages of the others.
        let own = Filter::new(filter.unshared()).map_err(Error::usage)?;
        connection.subscribe(Subscribe {
            number,
            filters: vec![own],
            qos: QOS,
            identifier: None,
            retained: false,
        });
        let granted = async {
            loop {
                match connection.next().await {
                    Event::Subscribed(_, results) => return Ok(results.into_iter().next()),
                    Event::Failed(failure) => return Err(lost(failure)),
                    Event::Closed => return Err(lost(Failure::Passing("it hung up".into()))),
                    // Messages for the filters before.
                    _ => {}
                }
            }
        };
        let granted = timeout(ANSWER, granted).await.map_err(|_| late())??;
        answers.push(match granted {
            Some(Ok(qos)) if qos < QOS => Err(refused(Error::new(
                Kind::Unavailable,
                format!(
                    "the broker grants QoS {} only: messages may be lost",
                    qos as u8
                ),
            ))),
            Some(Ok(qos)) => Ok(format!(
                "{address} grants '{filter}' with QoS {}",
                qos as u8
            )),
            Some(Err(e)) => Err(refused(e)),
            None => Err(refused(Error::new(Kind::Unavailable, "it sent no answer"))),
        });
    }
    if let Some(topic) = trial {
        let refused = |e: Error| e.context(format_args!("publish to '{topic}' at {address}"));
        // Our clients ignore an empty message, and nothing listens on the topic.
        let message = Message {
            topic: topic.to_owned(),
            payload: Bytes::new(),
            qos: QOS,
            retain: false,
            properties: Properties::default(),
        };
        connection.publish(message, Token::new());
        let published = async {
            loop {
                match connection.next().await {
                    Event::Published(_, result) => return Ok(result),
                    Event::Failed(failure) => return Err(lost(failure)),
                    Event::Closed => return Err(lost(Failure::Passing("it hung up".into()))),
                    _ => {}
                }
            }
        };
        let published = timeout(ANSWER, published).await.map_err(|_| late())??;
        answers.push(match published {
            Ok(_) => Ok(format!("{address} accepts a message to '{topic}'")),
            Err(Refused(e, _)) => Err(refused(e)),
        });
    }
    connection.disconnect();
    let closed =
        async { while !matches!(connection.next().await, Event::Closed | Event::Failed(_)) {} };
    // The session ends with the connection anyway.
    let _ = timeout(FAREWELL, closed).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    fn of(line: &str, shell: &str) -> Vec<(&'static str, bool, String)> {
        let command = Command::Shell {
            shell: shell.into(),
            line: line.into(),
        };
        let mut findings = Vec::new();
        let mut found = |key, is_doubt, cause| findings.push((key, is_doubt, cause));
        of_command(
            &command,
            OsStr::new("/usr/bin:/bin"),
            Path::new("/"),
            &mut found,
        );
        findings
    }

    #[test]
    fn commands_that_cannot_run_are_found() {
        for right in [
            "true",
            "ls -l",
            "cd /nowhere && ls",
            "X=1 nothing",
            "if true; then ls; fi",
            "\"$PROGRAM\" x",
            "ls \"$SAMPLE\" | wc",
            "for a in b; do echo $a; done",
            "bin/ls",
        ] {
            assert_eq!(of(right, "/bin/sh"), [], "{right}");
        }
        for (wrong, key, cause) in [
            (
                "/no/such/align.sh \"$SAMPLE\"",
                "command",
                "/no/such/align.sh",
            ),
            ("./align.sh", "command", "align.sh"),
            ("echo 'a", "command", "its shell refuses it"),
            ("if true; then", "command", "its shell refuses it"),
            ("/etc/passwd x", "command", "not executable"),
            ("/usr x", "command", "is a folder"),
            ("alignn \"$SAMPLE\"", "command", "no program 'alignn'"),
            ("alignn x", "command", "no program 'alignn'"),
        ] {
            let found = of(wrong, "/bin/sh");
            assert!(
                matches!(&found[..], [(k, false, c)] if *k == key && c.contains(cause)),
                "{wrong}: {found:?}"
            );
        }
        // A shell may have built-ins that the standard does not name.
        assert_eq!(of("pushd /", "/bin/bash"), []);
        assert_eq!(of("import os", "/usr/bin/env"), []);
        assert_eq!(of("x", "/no/shell")[0].0, "shell");
        // Another language has another syntax.
        assert_eq!(of("print('a", "/usr/bin/env"), []);
    }

    #[test]
    fn folders_must_be_writable_or_creatable() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert_eq!(state_of(&dir.path().join("a/b"), "p"), Ok(()));
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("file");
        assert!(
            state_of(&file, "p")
                .expect_err("file")
                .contains("not a folder")
        );
        assert!(writable(&dir.path().join("none")).is_err());
        assert_eq!(writable(dir.path()), Ok(()));
    }

    #[test]
    fn bytes_of_a_path_are_not_text() {
        let path = OsStr::from_bytes(b"/\xff");
        assert!(program::look("x", path, Path::new("/")).is_err());
    }
}
