//! The command line of `tael facts`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args, Command, FromArgMatches, Id, Subcommand};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root, rank};
use crate::cli::help::Page;
use crate::cli::mistakes::Mistakes;
use crate::cli::values::one_of;
use crate::cli::view;
use crate::error::{Error, Result};
use crate::model::duration;
use crate::model::facts::bounds::Rules;
use crate::model::facts::kind::{Kind, check_node};
use crate::model::facts::presence;
use crate::model::facts::round::Node;
use crate::model::roots::Content;
use crate::os::facts::Host;
use crate::os::host;
use crate::tools::facts::folder;
use crate::tools::facts::forget;
use crate::tools::facts::gather::Sources;
use crate::tools::facts::publish::{self, Options};
use crate::tools::facts::rounds::Place;
use crate::tools::facts::show::{self, Source};
use crate::tools::facts::view::{self as facts_view, Form};

/// Range of `--interval`.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(presence::MAX_INTERVAL.unsigned_abs());

/// Number of intervals after which the broker may forget facts at the earliest: readers call a node
/// stale then.
const MIN_KEEP: u32 = 3;

/// Options about the facts of this node.
const OWN: &[&str] = &["node", "interval", "dir", "share", "hide", "allow", "keep"];

/// Options of `tael facts`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct Facts {
    #[command(subcommand)]
    verb: Verbs,
    /// Name of this node [default: the host name]
    #[arg(long, value_name = "NAME", global = true)]
    node: Option<String>,
    /// Time between two looks at the facts
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "5m", global = true)]
    interval: Duration,
    /// Folder of own facts, such as that of Ansible or facter; repeatable [default: /etc/tael/facts.d]
    #[arg(long, value_name = "DIR", global = true, action = clap::ArgAction::Append)]
    dir: Vec<PathBuf>,
    /// Kinds of facts to share: common, static, dynamic, state; repeatable [default: all]
    #[arg(long, value_parser = one_of(Kind::parse, Kind::NAMES), value_name = "KIND", value_delimiter = ',', global = true, action = clap::ArgAction::Append)]
    share: Vec<Kind>,
    /// Facts to leave out, with what is below them, such as 'static.interfaces.*'; repeatable
    #[arg(long, value_name = "GLOB", global = true, action = clap::ArgAction::Append)]
    hide: Vec<String>,
    /// Facts to tell although their names look secret; repeatable
    #[arg(long, value_name = "GLOB", global = true, action = clap::ArgAction::Append)]
    allow: Vec<String>,
    /// Time after which the broker forgets the facts of a node that tells no more
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "30d", global = true)]
    keep: Duration,
    /// Maximum time until the broker has answered, or acknowledged the facts of --once
    #[arg(long, value_parser = duration::parse_wait, value_name = "DURATION", default_value = "10s", global = true)]
    timeout: Duration,
    #[command(flatten)]
    broker: Broker,
}

#[derive(Debug, Subcommand)]
enum Verbs {
    /// Tell the facts of this node, and keep them told
    Publish {
        /// Tell them once, and exit
        #[arg(long)]
        once: bool,
        /// Print what would be told, and exit; connects to nothing
        #[arg(long)]
        dry_run: bool,
        /// Print the outcome of each round as JSON
        #[arg(long)]
        json: bool,
        /// Exit with 0, in silence, when the facts of this node are told already
        #[arg(long, conflicts_with_all = ["once", "dry_run"])]
        if_not_running: bool,
    },
    /// Select from nodes, facts and pipelines, as from tables
    View(ViewOptions),
    /// List the nodes of a root; with names, list their facts
    Show {
        /// Names of nodes [default: a list of all]
        #[arg(value_name = "NODE")]
        nodes: Vec<String>,
        /// Show nodes only whose facts are not fresh
        #[arg(long)]
        stale: bool,
        /// Print a JSON array, one object a node
        #[arg(long)]
        json: bool,
    },
    /// Forget nodes that are gone for good: clear their retained messages
    Forget {
        /// Names of the nodes
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
        /// Forget also a node whose facts are fresh; it comes back when it tells them again
        #[arg(long)]
        force: bool,
    },
}

/// Options of `tael facts view`.
#[derive(Debug, Args)]
struct ViewOptions {
    /// Name of a [[view]] in tael.toml, or a SELECT over the tables node, fact and pipeline
    #[arg(value_name = "NAME|SELECT", allow_hyphen_values = true)]
    view: String,
    /// Value for the SELECT: KEY=VALUE is :KEY there; repeatable
    #[arg(long, value_name = "KEY=VALUE", action = clap::ArgAction::Append)]
    set: Vec<String>,
    /// Publish the rows of a named view, retained, if they have changed
    #[arg(long, conflicts_with_all = ["json", "csv", "raw"])]
    publish: bool,
    /// Print a JSON array, one object a row
    #[arg(long, conflicts_with_all = ["csv", "raw"])]
    json: bool,
    /// Print lines of values, separated by commas
    #[arg(long, conflicts_with = "raw")]
    csv: bool,
    /// Print the values of the first column as they are
    #[arg(long)]
    raw: bool,
}

/// The options of the broker, which every verb takes.
#[derive(Debug)]
struct Broker {
    root: Root,
    connection: Connection,
}

impl FromArgMatches for Broker {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            root: Root::from_arg_matches(matches)?,
            connection: Connection::from_arg_matches(matches)?,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Broker {
    fn augment_args(command: Command) -> Command {
        let earlier: Vec<Id> = command
            .get_arguments()
            .map(|a| a.get_id().clone())
            .collect();
        let command = Connection::augment_args(Root::augment_args(command));
        command.mut_args(|arg| match earlier.contains(arg.get_id()) {
            true => arg,
            false => arg.global(true),
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl Tool for Facts {
    const NAME: &'static str = "facts";
    const ABOUT: &'static str = "Tell what this node is, and show what others are";

    const HELP: Page = Page {
        first: &["node", "dir", "share", "broker", "root"],
        groups: &[("Facts of this node (publish)", OWN)],
        examples: &[
            "tael facts publish --root lab --dry-run",
            "tael facts publish --root lab --once --interval 5m",
            "tael facts show --root lab --stale",
            "tael facts show --root lab seq1",
            "tael facts view --root lab full --json",
            "tael facts forget --root lab seq9",
            "tael facts view --root lab 'SELECT name, age FROM node WHERE NOT fresh'",
        ],
    };

    const OF_VERB: (&str, &[&str]) = ("publish", OWN);

    fn is_daemon(matches: &ArgMatches) -> bool {
        let publish = matches.subcommand_matches("publish");
        publish.is_some_and(|publish| !publish.get_flag("once") && !publish.get_flag("dry_run"))
    }

    fn run(mut self, matches: &ArgMatches, layers: &Layers) -> Result<ExitCode> {
        let verb = std::mem::replace(&mut self.verb, Verbs::none());
        if !matches!(verb, Verbs::Publish { .. }) {
            refuse_own(matches)?;
        }
        match verb {
            Verbs::Publish {
                once,
                dry_run,
                json,
                if_not_running,
            } => {
                let node = self.node()?;
                let rules = Rules {
                    hide: self.hide,
                    allow: self.allow,
                };
                rules.check().map_err(Error::usage)?;
                // Scripts run in another folder.
                for dir in &mut self.dir {
                    let whole = std::path::absolute(&*dir);
                    *dir = whole.map_err(|e| {
                        Error::config(format!("read facts in {}: {e}", dir.display()))
                    })?;
                }
                folder::check(&self.dir)?;
                let sources = Sources {
                    folders: self.dir,
                    share: node.share.clone(),
                    rules,
                };
                if dry_run {
                    return publish::dry_run(&node, &sources);
                }
                let broker = self
                    .broker
                    .connection
                    .resolve(matches, connection::random_id())?;
                publish::run(&Options {
                    place: Place {
                        broker,
                        root: self.broker.root.resolve()?,
                        node,
                    },
                    sources,
                    once: once.then_some(self.timeout),
                    json,
                    if_not_running,
                })
            }
            Verbs::View(options) => {
                let mut mistakes = Mistakes::default();
                let Some(found) = view::find(layers, &options.view, &mut mistakes)? else {
                    return mistakes.report();
                };
                if options.publish && found.name.is_none() {
                    return Err(Error::usage(
                        "--publish takes the name of a [[view]], not a SELECT",
                    ));
                }
                let form = match (options.json, options.csv, options.raw) {
                    (true, _, _) => Form::Json,
                    (_, true, _) => Form::Csv,
                    (_, _, true) => Form::Raw,
                    _ => Form::Table,
                };
                facts_view::run(&facts_view::Options {
                    source: self.source(matches, &Content::NodesOrPipelines)?,
                    name: found.name,
                    sql: found.sql,
                    nodes: found.nodes,
                    set: view::pairs(options.set)?,
                    form,
                    publish: options.publish,
                })
            }
            Verbs::Show { nodes, stale, json } => {
                for node in &nodes {
                    check_node(node).map_err(Error::usage)?;
                }
                show::run(&show::Options {
                    source: self.source(matches, &Content::Nodes(nodes.clone()))?,
                    nodes,
                    stale,
                    json,
                })
            }
            Verbs::Forget { nodes, force } => {
                for node in &nodes {
                    check_node(node).map_err(Error::usage)?;
                }
                forget::run(&forget::Options {
                    source: self.source(matches, &Content::Nodes(nodes.clone()))?,
                    nodes,
                    force,
                })
            }
        }
    }
}

/// Refuses options about the facts of this node, where others are shown.
///
/// # Errors
/// 64 for the first.
fn refuse_own(matches: &ArgMatches) -> Result<()> {
    let matches = matches.subcommand().map_or(matches, |(_, below)| below);
    let given = OWN.iter().find(|id| rank(matches, id) == 2);
    given.map_or(Ok(()), |id| {
        Err(Error::usage(format!(
            "--{id} is about the facts that this node publishes; tael facts show NODE shows those of others"
        )))
    })
}

impl Verbs {
    /// Returns what stands for a verb that was taken.
    const fn none() -> Self {
        Self::Show {
            nodes: Vec::new(),
            stale: false,
            json: false,
        }
    }
}

impl Facts {
    /// Returns where nodes tell their facts: by default below the root that has `content`.
    fn source(self, matches: &ArgMatches, content: &Content) -> Result<Source> {
        let Broker { root, connection } = self.broker;
        let broker = connection.resolve(matches, connection::random_id())?;
        Ok(Source {
            root: root.find(&broker, content, self.timeout)?,
            broker,
            timeout: self.timeout,
        })
    }

    /// Returns this node.
    fn node(&self) -> Result<Node> {
        let name = self.node.clone().unwrap_or_else(host::hostname);
        check_node(&name).map_err(|e| Error::usage(e).about("node"))?;
        if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&self.interval) {
            let cause = "the interval is out of range: 1s to 30d";
            return Err(Error::usage(cause).about("interval"));
        }
        let interval = u32::try_from(self.interval.as_secs()).unwrap_or(u32::MAX);
        let least = interval.saturating_mul(MIN_KEEP);
        let keep = u32::try_from(self.keep.as_secs()).unwrap_or(u32::MAX);
        if keep < least {
            let least = duration::text(Duration::from_secs(least.into()));
            let cause = format!("--keep is too short: {MIN_KEEP} intervals at least, here {least}");
            return Err(Error::usage(cause).about("keep"));
        }
        let mut share = self.share.clone();
        share.sort_unstable();
        share.dedup();
        if share.is_empty() {
            share.extend(Kind::ALL);
        }
        Ok(Node {
            name,
            host: host::hostname(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            machine: Host::default().machine(),
            interval: interval.into(),
            keep,
            share,
        })
    }
}
