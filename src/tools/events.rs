//! `tael events`: shows which messages came, what became of them, and why.
//!
//! The ledger has the accepted and the refused ones. A running client has the rest in memory, and
//! tells it on a socket in its state folder.

mod hear;
mod row;
mod runs;

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, timeout_at};

use crate::engine::pipeline::PAUSED;
use crate::error::Result;
use crate::model::note::{Fate, Line, Note};
use crate::model::table::{Colour, Layout};
use crate::os::logging::say;
use crate::os::signals::{self, Stop};
use crate::os::terminal::Terminal;
use crate::store::ledger::Reader;
use crate::store::ledger::received::{Which, newest, received};
use crate::tools::work::{Scope, pipelines};
use hear::{Heard, LOOK_AGAIN, ask};
use row::{COLUMNS, MAX_WHY_LINES, Row, WIDTH};
use runs::{MAX_RUNS, Runs};

/// Maximum number of messages to show at once; they are merged in memory.
pub const MAX_LINES: usize = 10_000;

/// Maximum time for running clients to tell what they know.
const ANSWER: Duration = Duration::from_secs(5);

/// Maximum number of lines from clients that wait to be printed. Clients count what more comes.
const MAX_WAITING: usize = 256;

/// Maximum time of our end after a signal.
const FAREWELL: Duration = Duration::from_secs(5);

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// The pipelines.
    pub scope: Scope,
    /// Number of messages to show first, the newest ones; 0 for none.
    pub lines: usize,
    /// Maximum age of the messages to show.
    pub since: Option<Duration>,
    /// The results to show; empty for all.
    pub fates: Vec<Fate>,
    /// The trigger; by default all. With one, messages that another trigger takes are shown too.
    pub trigger: Option<String>,
    /// Whether to go on with what comes, and with the ends of the runs that were shown.
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
    // Nothing may read what is printed.
    signals::give_up_after(FAREWELL)?;
    super::runtime()?.block_on(events(options, pipelines))
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
    /// Runs whose ends are awaited.
    runs: Runs,
    /// Whether the headings are printed.
    headed: bool,
    /// The columns on a terminal, found with the first rows.
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
            runs: Runs::default(),
            headed: false,
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
        let mut rows: Vec<Row> = Vec::new();
        for who in 0..self.pipelines.len() {
            match self.options.lines {
                0 => self.skip_records(who),
                lines => rows.extend(self.records(who, lines)),
            }
        }
        let of_client = notes.into_iter().map(|(who, note)| Row::told(who, note));
        rows.extend(of_client.filter(|row| self.is_wanted(&row.note)));
        rows.sort_by_key(|row| row.note.at);
        let first = rows.len().saturating_sub(self.options.lines);
        let rows = rows.split_off(first);
        self.show(&rows)?;
        if rows.is_empty() && self.options.lines > 0 {
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
                _ = look.tick() => {
                    self.find(&sender);
                    self.show_ends()?;
                }
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

    /// Shows the ends of runs that were shown before.
    fn show_ends(&mut self) -> Result<()> {
        let ended = self.runs.ended(&self.pipelines).into_iter();
        let rows = ended.map(|(run, now)| Row::end(run.who, run.note, now));
        self.show(&rows.collect::<Vec<_>>())
    }

    /// Leaves out the records of the pipeline `who` so far.
    fn skip_records(&mut self, who: usize) {
        let folder = self.pipelines.get(who).map(|(_, folder)| folder);
        let newest = folder.map(|folder| Reader::open(folder).and_then(|reader| newest(&reader)));
        // One that cannot be read is reported when it must be shown.
        if let (Some(Ok(newest)), Some(last)) = (newest, self.last.get_mut(who)) {
            *last = newest;
        }
    }

    /// Returns the newest records of the pipeline `who` that were not read before, `limit` at most.
    fn records(&mut self, who: usize, limit: usize) -> Vec<Row> {
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
            limit,
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
            let row = Row::recorded(who, record);
            self.known.add(key(who, &row.note)).then_some(row)
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
                    self.show(&[Row::told(who, note)])?;
                }
            }
            // What it accepted before it could be heard is in the ledger.
            Heard::Line(Line::Live { .. }) => {
                let rows = self.records(who, MAX_LINES);
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

    fn show(&mut self, rows: &[Row]) -> Result<()> {
        if self.options.follow {
            for row in rows.iter().filter(|row| row.is_open()) {
                if self.runs.add(row.who, &row.note) {
                    say(&format!(
                        "more than {MAX_RUNS} runs go on: the ends of the oldest are not shown"
                    ));
                }
            }
        }
        if self.options.json {
            let print = |row: &Row| super::print_json(&row.json(self.who(row)));
            return rows.iter().try_for_each(print);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let cells = rows.iter().map(|row| {
            let is_paused = || self.is_paused(row);
            row.cells(self.who(row), is_paused, self.terminal)
        });
        let cells: Vec<[String; WIDTH]> = cells.collect();
        if !std::mem::replace(&mut self.headed, true) {
            let heads = COLUMNS.map(|column| column.head);
            self.layout = self.terminal.width.map(|width| {
                // What comes later may have another result.
                let longest = ["", Fate::Duplicate.name(), "", "", ""];
                let texts = cells.iter().map(|row| row.each_ref().map(String::as_str));
                Layout::fit(&COLUMNS, texts.chain([longest]), Some(width))
            });
            self.print(heads, None)?;
        }
        for (row, cells) in rows.iter().zip(&cells) {
            let colour = row.colour().filter(|_| self.terminal.colour);
            self.print(cells.each_ref().map(String::as_str), colour)?;
        }
        Ok(())
    }

    /// Prints a row: in columns on a terminal, otherwise without blanks that a later row would need.
    fn print(&self, cells: [&str; WIDTH], colour: Option<Colour>) -> Result<()> {
        let colours = [None, colour, None, None, None];
        super::print(&match &self.layout {
            Some(layout) => layout.wrapped(cells.into_iter().zip(colours), MAX_WHY_LINES),
            None => cells.join("  ").trim_end().to_owned(),
        })
    }

    fn who(&self, row: &Row) -> &str {
        self.pipelines.get(row.who).map_or("", |(who, _)| who)
    }

    fn is_paused(&self, row: &Row) -> bool {
        let folder = self.pipelines.get(row.who).map(|(_, folder)| folder);
        folder.is_some_and(|folder| folder.join(PAUSED).exists())
    }
}

fn key(who: usize, note: &Note) -> Key {
    (who, note.fate, note.event.clone(), note.trigger.clone())
}
