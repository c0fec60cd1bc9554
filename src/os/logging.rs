//! Where log lines go: journald for a daemon, short lines on stderr for people.

use std::fmt::{self, Write as _};
use std::io::{IsTerminal, Write as _};

use jiff::Zoned;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::error::{Error, Result};
use crate::model::text::printable;

/// Characters of one line on stderr. Senders choose much of what is logged.
const MAX_LINE: usize = 2000;

/// Where log lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Target {
    /// stderr on a terminal; else journald if it listens; else warnings to stderr.
    #[default]
    Auto,
    /// `systemd-journald`, in its native protocol.
    Journald,
    /// stderr.
    Stderr,
    /// Nowhere.
    None,
}

impl Target {
    /// Parses the option's value.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "journald" => Ok(Self::Journald),
            "stderr" => Ok(Self::Stderr),
            "none" => Ok(Self::None),
            _ => Err(format!(
                "'{text}' is no log target: auto, journald, stderr or none"
            )),
        }
    }
}

/// Starts logging for this process; `level` overrides the target's own: info for a `daemon`
/// that somebody watches, else warn on stderr. `who` is the pipeline that all entries in the
/// journal belong to.
///
/// # Errors
/// When journald was asked for and does not listen, or the level is unknown.
pub fn init(target: Target, level: Option<&str>, daemon: bool, who: Option<&str>) -> Result<()> {
    let level = level
        .map(|text| {
            text.parse::<LevelFilter>().map_err(|_| {
                Error::usage(format!(
                    "'{text}' is no log level: error, warn, info, debug or off"
                ))
            })
        })
        .transpose()?;
    let terminal = std::io::stderr().is_terminal();
    // A host has one journal for all of its pipelines.
    let pipeline = who.map(|who| ("TAEL_WHO", who));
    let journald = || {
        // As `syslog(3)` has them; the layer's own are one higher from info on.
        let priorities = PriorityMappings {
            info: Priority::Informational,
            debug: Priority::Debug,
            ..PriorityMappings::new()
        };
        tracing_journald::layer().map(|layer| {
            layer
                .with_field_prefix(None)
                .with_priority_mappings(priorities)
                .with_custom_fields(pipeline)
        })
    };
    let quiet = if daemon && (terminal || target == Target::Stderr) {
        LevelFilter::INFO
    } else {
        LevelFilter::WARN
    };
    let set = |done: Result<(), tracing::subscriber::SetGlobalDefaultError>| {
        done.map_err(|e| Error::bug(format!("start logging: {e}")))
    };
    let registry = tracing_subscriber::registry();
    match target {
        Target::None => Ok(()),
        Target::Journald | Target::Auto if target == Target::Journald || !terminal => {
            match journald() {
                Ok(layer) => {
                    let layer = layer.with_filter(OurOwn(level.unwrap_or(LevelFilter::INFO)));
                    set(tracing::subscriber::set_global_default(
                        registry.with(layer),
                    ))
                }
                Err(e) if target == Target::Journald => Err(Error::cannot_create(format!(
                    "log to journald: {e}; try --log stderr"
                ))),
                Err(_) => set(tracing::subscriber::set_global_default(
                    registry.with(Lines.with_filter(OurOwn(level.unwrap_or(quiet)))),
                )),
            }
        }
        _ => set(tracing::subscriber::set_global_default(
            registry.with(Lines.with_filter(OurOwn(level.unwrap_or(quiet)))),
        )),
    }
}

/// Lets through what Tael itself says, up to a level; libraries only when they warn at debug.
struct OurOwn(LevelFilter);

impl<S> tracing_subscriber::layer::Filter<S> for OurOwn {
    fn enabled(&self, meta: &tracing::Metadata<'_>, _: &Context<'_, S>) -> bool {
        *meta.level() <= self.0
            && (meta.target().starts_with("tael")
                || (self.0 >= LevelFilter::DEBUG && *meta.level() <= Level::WARN))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0)
    }
}

/// `12:34:56 warning: message (name=value)` on stderr.
struct Lines;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let level = match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            Level::INFO => "",
            Level::DEBUG | Level::TRACE => "debug: ",
        };
        let fields = if line.fields.is_empty() {
            String::new()
        } else {
            format!(" ({})", line.fields)
        };
        // People watch a terminal now; a file is read some day.
        let form = if std::io::stderr().is_terminal() {
            "%H:%M:%S"
        } else {
            "%Y-%m-%d %H:%M:%S"
        };
        let now = Zoned::now().strftime(form).to_string();
        // Nobody is left to tell when stderr is closed.
        let _ = writeln!(
            std::io::stderr().lock(),
            "{now} {level}{}",
            printable(&format!("{}{fields}", line.message), MAX_LINE)
        );
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            let space = if self.fields.is_empty() { "" } else { " " };
            let name = field.name().trim_start_matches("TAEL_").to_lowercase();
            let _ = write!(self.fields, "{space}{name}={value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}
