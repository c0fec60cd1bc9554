//! The options of `tael work` for work on other nodes.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::Resettable;
use clap::{ArgMatches, Args, Command, FromArgMatches, Id};

use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root};
use crate::cli::mistakes::Mistakes;
use crate::cli::signing;
use crate::error::{Error, Result};
use crate::model::roots::Content;
use crate::model::text::printable;
use crate::model::topic::{self, PipelineTopics};
use crate::os::host;
use crate::tools::work::node::Node;

/// Options of the verbs that other nodes are asked for.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Other nodes")]
pub struct NodeOptions {
    /// Client to ask over the broker. --broker, --root and all other options for the broker apply, except
    /// to a submission without --direct
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Sign the request with the key of [signing]
    #[arg(long, requires = "node")]
    sign: bool,
    /// Sign the request with this private key, PEM: RSA or Ed25519
    #[arg(long, value_name = "FILE", requires = "node")]
    signing_key: Option<PathBuf>,
    /// Take the end of a unit only if a key of [verify] has signed it; with 'results' and 'submit -f'
    #[arg(long, requires = "node")]
    verify: bool,
}

/// The options of the broker, without their short forms, which verbs have too. Help pages leave them
/// out: they would be most of it.
#[derive(Debug)]
pub struct Broker {
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
        command.mut_args(|arg| {
            if earlier.contains(arg.get_id()) {
                return arg;
            }
            // submit has --id for its unit.
            let arg = match arg.get_id() == "id" {
                true => arg.long("client-id"),
                false => arg,
            };
            arg.short(Resettable::Reset).global(true).hide(true)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl NodeOptions {
    /// Returns whether a node is named.
    pub const fn is_given(&self) -> bool {
        self.node.is_some()
    }

    /// Returns the node that a client of this host asks, if one is named, and whether it signs.
    ///
    /// # Errors
    /// 64 for options of those who ask themselves.
    pub fn kept(self) -> Result<Option<(String, bool)>> {
        let Some(node) = self.node else {
            return Ok(None);
        };
        topic::check_who(&node).map_err(Error::usage)?;
        if self.signing_key.is_some() {
            return Err(Error::usage(
                "--signing-key goes with --direct: otherwise the client signs with the key of its \
                 [signing], see --sign",
            ));
        }
        match self.verify {
            true => Err(Error::usage("--verify goes with --direct")),
            false => Ok(Some((node, self.sign))),
        }
    }

    /// Returns the node to ask, if one is named.
    ///
    /// # Errors
    /// 64 for wrong options, 69 and 77 when the broker does not answer, 78 for a key that cannot be
    /// used.
    pub fn node(
        self,
        broker: Broker,
        matches: &ArgMatches,
        layers: &Layers,
        timeout: Duration,
    ) -> Result<Option<Node>> {
        let Some(name) = self.node else {
            return Ok(None);
        };
        topic::check_who(&name).map_err(Error::usage)?;
        let signer = match self.sign || self.signing_key.is_some() {
            true => Some(signing::signer(layers, self.signing_key)?),
            false => None,
        };
        let verify = match self.verify {
            true => {
                let mut mistakes = Mistakes::default();
                let keys = signing::verify(layers, &mut mistakes);
                let keys = mistakes.or_first(Some(keys))?;
                if keys.0.is_empty() {
                    return Err(Error::config(
                        "--verify: there is no key to verify with: name some as keys below [verify]",
                    ));
                }
                Some(keys)
            }
            false => None,
        };
        let Broker { root, connection } = broker;
        let broker = connection.resolve(matches, connection::random_id())?;
        let root = root.find(&broker, &Content::Pipeline(name.clone()), timeout)?;
        Ok(Some(Node {
            broker,
            topics: PipelineTopics::new(&root, &name),
            name,
            signer,
            verify,
            timeout,
        }))
    }
}

/// Checks the id of a unit on another node.
///
/// # Errors
/// 64 if it is no whole id.
pub fn whole_id(unit: Option<String>) -> Result<String> {
    match unit {
        Some(unit) if host::is_id(&unit) => Ok(unit.to_ascii_uppercase()),
        Some(unit) => Err(Error::usage(format!(
            "'{}' is no whole id of a unit: with --node, write all 26 characters",
            printable(&unit, 80)
        ))),
        None => Err(Error::usage("with --node, name the unit by its whole id")),
    }
}
