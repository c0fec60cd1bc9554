//! `tael events`: shows which messages came, what became of them, and why.
//!
//! The ledger has the accepted and the refused ones. A running client has the rest in memory, and
//! tells it on a socket in its state folder.

mod hear;

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, timeout_at};

use crate::engine::pipeline::PAUSED;
use crate::error::Result;
use crate::model::moment;
use crate::model::note::{Fate, Line, Note};
use crate::model::table::{Colour, Column, Layout};
use crate::model::text::printable;
use crate::model::trigger::ONLY_TRIGGER;
use crate::model::unit::{State, short_id};
use crate::os::logging::say;
use crate::os::signals::Stop;
use crate::os::terminal::Terminal;
use crate::store::ledger::Reader;
use crate::store::ledger::received::{Received, Which, received};
use crate::tools::work::{Scope, pipelines};
use hear::{Heard, LOOK_AGAIN, ask};

/// Maximum number of messages to show at once; they are merged in memory.
pub const MAX_LINES: usize = 10_000;

/// Maximum time for running clients to tell what they know.
const ANSWER: Duration = Duration::from_secs(5);

/// Maximum number of lines from clients that wait to be printed. Clients count what more comes.
const MAX_WAITING: usize = 256;

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// The pipelines.
    pub scope: Scope,
    /// Number of messages to show, the newest ones.
    pub lines: usize,
    /// Maximum age of the messages to show.
    pub since: Option<Duration>,
    /// The results to show; empty for all.
    pub fates: Vec<Fate>,
    /// The trigger; by default all. With one, messages that another trigger takes are shown too.
    pub trigger: Option<String>,
    /// Whether to go on with what comes.
    pub follow: bool,
    /// Whether to print one JSON object a line.
    pub json: bool,
}

/// Prints the messages.
///
/// # Errors
/// 65 when there is no such pipeline, 73 when its state cannot be read.
pub fn run(options: &Options) -> Result<ExitCode> {
    let pipelines = pipelines(&options.scope)?;
    if pipelines.is_empty() {
        say(&format!(
            "no pipeline has state in {}",
            options.scope.state.display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    super::runtime()?.block_on(events(options, pipelines))
}

/// A message to show.
#[derive(Debug, Clone)]
struct Shown {
    who: usize,
    note: Note,
    unit: Option<(State, Option<String>)>,
}

async fn events(options: &Options, pipelines: Vec<(String, PathBuf)>) -> Result<ExitCode> {
    let mut stop = Stop::listen(false)?;
    let (sender, mut heard) = mpsc::channel(MAX_WAITING);
    for (who, (_, folder)) in pipelines.iter().enumerate() {
        let ask = ask(who, folder.clone(), options.follow, sender.clone());
        tokio::spawn(ask);
    }
    let mut view = View::new(options, pipelines);
    // Without it, the end of all tasks is the end of what is heard.
    let sender = options.follow.then_some(sender);
    view.first(&mut heard).await?;
    if let Some(sender) = sender {
        view.follow(sender, &mut heard, stop.requested()).await?;
    }
    Ok(view.code)
}

/// Identifies a record of the ledger among what clients tell.
type Key = (usize, Fate, String, String);

/// The records that were shown last, so that none is shown twice: a client reports an event that
/// may be in the ledger already.
#[derive(Debug, Default)]
struct Known {
    keys: HashSet<Key>,
    order: VecDeque<Key>,
}

impl Known {
    /// Returns whether the record is new.
    fn add(&mut self, key: Key) -> bool {
        if !self.keys.insert(key.clone()) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > 2 * MAX_LINES
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
        true
    }
}

struct View<'a> {
    options: &'a Options,
    pipelines: Vec<(String, PathBuf)>,
    /// Number of the last record of each ledger that was read.
    last: Vec<i64>,
    known: Known,
    layout: Option<Layout>,
    terminal: Terminal,
    code: ExitCode,
}

impl<'a> View<'a> {
    fn new(options: &'a Options, pipelines: Vec<(String, PathBuf)>) -> Self {
        Self {
            options,
            last: vec![0; pipelines.len()],
            pipelines,
            known: Known::default(),
            layout: None,
            terminal: Terminal::of_stdout(),
            code: ExitCode::SUCCESS,
        }
    }

    /// Shows what there is.
    async fn first(&mut self, heard: &mut mpsc::Receiver<(usize, Heard)>) -> Result<()> {
        let deadline = Instant::now() + ANSWER;
        let mut waiting: HashSet<usize> = (0..self.pipelines.len()).collect();
        let (mut notes, mut later) = (Vec::new(), Vec::new());
        let (mut absent, mut forgotten) = (Vec::new(), 0);
        while !waiting.is_empty() {
            let Ok(Some((who, heard))) = timeout_at(deadline, heard.recv()).await else {
                break;
            };
            match heard {
                Heard::Line(Line::Note(note)) if waiting.contains(&who) => notes.push((who, note)),
                Heard::Line(Line::Live { forgotten: count }) => {
                    waiting.remove(&who);
                    forgotten += count;
                }
                Heard::Absent => {
                    waiting.remove(&who);
                    absent.push(who);
                }
                Heard::Line(Line::Full) => {
                    waiting.remove(&who);
                    later.push((who, Heard::Line(Line::Full)));
                }
                heard => later.push((who, heard)),
            }
        }
        absent.extend(waiting);
        let mut rows: Vec<Shown> = Vec::new();
        for who in 0..self.pipelines.len() {
            rows.extend(self.records(who));
        }
        let of_client = notes.into_iter().map(|(who, note)| Shown {
            who,
            note,
            unit: None,
        });
        rows.extend(of_client.filter(|row| self.is_wanted(&row.note)));
        rows.sort_by_key(|row| row.note.at);
        let first = rows.len().saturating_sub(self.options.lines);
        let rows = rows.split_off(first);
        self.show(&rows)?;
        if rows.is_empty() {
            say("no message is known that fits");
        }
        self.tell_of(&absent, forgotten);
        for (who, heard) in later {
            self.live(who, heard)?;
        }
        Ok(())
    }

    /// Shows what comes, until `stop` is ready.
    async fn follow(
        &mut self,
        sender: mpsc::Sender<(usize, Heard)>,
        heard: &mut mpsc::Receiver<(usize, Heard)>,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        let mut stop = pin!(stop);
        let mut look = interval(LOOK_AGAIN);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                Some((who, heard)) = heard.recv() => self.live(who, heard)?,
                _ = look.tick() => self.find(&sender),
            }
        }
    }

    /// Follows pipelines that are new.
    fn find(&mut self, sender: &mpsc::Sender<(usize, Heard)>) {
        // One that cannot be read now is found later.
        for found in pipelines(&self.options.scope).unwrap_or_default() {
            if !self.pipelines.contains(&found) {
                let who = self.pipelines.len();
                tokio::spawn(ask(who, found.1.clone(), true, sender.clone()));
                self.pipelines.push(found);
                self.last.push(0);
            }
        }
    }

    /// Says what is not shown.
    fn tell_of(&self, absent: &[usize], forgotten: u64) {
        let rest = [Fate::Duplicate, Fate::Ignored];
        if !rest.iter().any(|fate| self.wants(*fate)) {
            return;
        }
        let names = absent.iter().filter_map(|who| self.pipelines.get(*who));
        let names: Vec<String> = names.map(|(who, _)| format!("'{who}'")).collect();
        if !names.is_empty() {
            say(&format!(
                "no client of {} runs: only a running client knows ignored messages and duplicates",
                names.join(", ")
            ));
        }
        if forgotten > 0 {
            say(&format!(
                "{forgotten} older messages were ignored or came again: a client keeps the last ones \
                 only"
            ));
        }
    }

    fn wants(&self, fate: Fate) -> bool {
        self.options.fates.is_empty() || self.options.fates.contains(&fate)
    }

    fn since(&self) -> i64 {
        let now = Timestamp::now().as_millisecond();
        let age = self.options.since.map(|age| age.as_millis());
        age.map_or(0, |age| {
            now.saturating_sub(i64::try_from(age).unwrap_or(i64::MAX))
        })
    }

    fn is_wanted(&self, note: &Note) -> bool {
        let trigger = match &self.options.trigger {
            // A note about all triggers is about this one too.
            Some(trigger) => note.trigger.is_empty() || note.trigger == *trigger,
            None => !note.aside,
        };
        trigger && self.wants(note.fate) && note.at >= self.since()
    }

    /// Returns the records of the pipeline `who` that were not read before.
    fn records(&mut self, who: usize) -> Vec<Shown> {
        let (Some((name, folder)), Some(last)) = (self.pipelines.get(who), self.last.get(who))
        else {
            return Vec::new();
        };
        let fate = match [Fate::Accepted, Fate::Refused].map(|fate| self.wants(fate)) {
            [false, false] => return Vec::new(),
            [true, true] => None,
            [accepted, _] => Some(if accepted {
                Fate::Accepted
            } else {
                Fate::Refused
            }),
        };
        let which = Which {
            after: *last,
            since: self.since(),
            trigger: self.options.trigger.as_deref(),
            fate,
            limit: self.options.lines,
        };
        let read = Reader::open(folder).and_then(|reader| received(&reader, which));
        let records = match read {
            Ok(records) => records,
            Err(e) => {
                // One that cannot be read does not hide the others.
                self.code = ExitCode::from(e.exit_code());
                say(&e.context(format_args!("pipeline '{name}'")).to_string());
                return Vec::new();
            }
        };
        if let (Some(last), Some(newest)) = (self.last.get_mut(who), records.first()) {
            *last = newest.seq;
        }
        let fresh = records.into_iter().rev().filter_map(|record| {
            let Received { note, unit, .. } = record;
            let key = key(who, &note);
            self.known.add(key).then_some(Shown { who, note, unit })
        });
        fresh.collect()
    }

    /// Shows what a client says now.
    fn live(&mut self, who: usize, heard: Heard) -> Result<()> {
        let name = self.pipelines.get(who).map_or("", |(who, _)| who);
        match heard {
            Heard::Line(Line::Note(note)) => {
                let in_ledger = matches!(note.fate, Fate::Accepted | Fate::Refused);
                if self.is_wanted(&note) && (!in_ledger || self.known.add(key(who, &note))) {
                    let unit = None;
                    self.show(&[Shown { who, note, unit }])?;
                }
            }
            // What it accepted before it could be heard is in the ledger.
            Heard::Line(Line::Live { .. }) => {
                let rows = self.records(who);
                self.show(&rows)?;
            }
            Heard::Line(Line::Lost { count }) => say(&format!(
                "{count} messages of '{name}' are not shown here: they came too fast"
            )),
            Heard::Line(Line::Full) => say(&format!(
                "the client of '{name}' has too many readers: end another 'tael events'"
            )),
            Heard::Line(Line::Unknown) => {}
            Heard::Absent => say(&format!(
                "the client of '{name}' does not run; waiting for it"
            )),
        }
        Ok(())
    }

    fn show(&mut self, rows: &[Shown]) -> Result<()> {
        if self.options.json {
            let print = |row: &Shown| super::print_json(&self.report(row));
            return rows.iter().try_for_each(print);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let cells: Vec<[String; 5]> = rows.iter().map(|row| self.cells(row)).collect();
        if self.layout.is_none() {
            // What comes later may have another result.
            let longest = ["", Fate::Duplicate.name(), "", "", ""];
            let longest = self.options.follow.then_some(longest);
            let texts = cells.iter().map(|row| row.each_ref().map(String::as_str));
            let layout = Layout::fit(COLUMNS, texts.chain(longest), self.terminal.width);
            super::print(&layout.heading())?;
            self.layout = Some(layout);
        }
        let Some(layout) = &self.layout else {
            return Ok(());
        };
        for (row, cells) in rows.iter().zip(&cells) {
            let colour = self.terminal.colour.then(|| colour(row)).flatten();
            let colours = [None, colour, None, None, None];
            let cells = cells.iter().map(String::as_str).zip(colours);
            super::print(&layout.line(cells))?;
        }
        Ok(())
    }

    fn who(&self, row: &Shown) -> &str {
        self.pipelines.get(row.who).map_or("", |(who, _)| who)
    }

    fn report(&self, row: &Shown) -> Value {
        let note = &row.note;
        #[allow(clippy::cast_precision_loss)] // milliseconds since 1970 stay below 2^53
        let time = note.at as f64 / 1000.0;
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        json!({
            "time": time,
            "pipeline": self.who(row),
            "trigger": given(&note.trigger),
            "result": note.fate.name(),
            "why": given(&note.why),
            "topic": note.topic,
            "event": given(&note.event),
            "unit": note.unit,
            "state": row.unit.as_ref().map(|(state, _)| state.name()),
            "note": row.unit.as_ref().and_then(|(_, note)| note.as_ref()),
            "taken": note.aside || note.fate == Fate::Accepted,
        })
    }

    fn cells(&self, row: &Shown) -> [String; 5] {
        let note = &row.note;
        let now = Zoned::now();
        let at = Timestamp::from_millisecond(note.at).unwrap_or_default();
        let at = at.to_zoned(TimeZone::system());
        let at = match self.terminal.is_terminal() {
            true => moment::near(&at, &now),
            false => moment::word(&at),
        };
        let who = match &*note.trigger {
            "" | ONLY_TRIGGER => self.who(row).to_owned(),
            trigger => format!("{}/{trigger}", self.who(row)),
        };
        [
            at,
            note.fate.name().to_owned(),
            printable(&who, MAX_CELL),
            printable(&note.topic, MAX_CELL),
            printable(&self.why(row), MAX_CELL),
        ]
    }

    /// Returns what became of a message, and why.
    fn why(&self, row: &Shown) -> String {
        let note = &row.note;
        let Some(unit) = &note.unit else {
            return note.why.clone();
        };
        let short = short_id(unit);
        if !note.why.is_empty() {
            return note.why.replace(unit, short);
        }
        match &row.unit {
            None => format!("unit {short}"),
            Some((State::Pending, _)) if self.is_paused(row) => {
                format!("unit {short} waits: the pipeline is paused")
            }
            Some((State::Pending, _)) => format!("unit {short} waits"),
            Some((state, None)) => format!("unit {short} {state}"),
            Some((state, Some(note))) => format!("unit {short} {state}: {note}"),
        }
    }

    fn is_paused(&self, row: &Shown) -> bool {
        let folder = self.pipelines.get(row.who).map(|(_, folder)| folder);
        folder.is_some_and(|folder| folder.join(PAUSED).exists())
    }
}

/// Maximum length of a cell, characters.
const MAX_CELL: usize = 500;

const COLUMNS: &[Column] = &[
    Column::whole("TIME"),
    Column::whole("RESULT"),
    Column::text("PIPELINE", 8, 24),
    Column::text("TOPIC", 10, 32),
    // What people look for: the topic is cut first.
    Column::text("WHY", 44, usize::MAX),
];

fn key(who: usize, note: &Note) -> Key {
    (who, note.fate, note.event.clone(), note.trigger.clone())
}

fn colour(row: &Shown) -> Option<Colour> {
    match (row.note.fate, &row.unit) {
        (Fate::Accepted, Some((State::Failed, _))) | (Fate::Refused, _) => Some(Colour::Red),
        (Fate::Accepted, Some((state, _))) => Colour::of_state(state.name()),
        (Fate::Accepted, None) => Some(Colour::Green),
        (Fate::Duplicate | Fate::Ignored, _) => Some(Colour::Faint),
    }
}
