//! Collects what the nodes of a root tell.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::model::facts::nodes::{MAX_MISSING, Nodes};
use crate::model::topic::Filter;
use crate::net::options::BrokerOptions;
use crate::net::retained::{self, Query, Retained};
use crate::os::logging::say;
use crate::tools::listener;

/// Where nodes tell their facts.
#[derive(Debug, Clone)]
pub struct Source {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// The root.
    pub root: String,
    /// Maximum time for the broker to answer, each time.
    pub timeout: Duration,
}

impl Source {
    /// Returns the retained messages on `topics`, which may have wildcards.
    ///
    /// # Errors
    /// As [`retained::retained`].
    pub(super) async fn messages(&self, topics: Vec<String>) -> Result<Retained> {
        let filters = topics.into_iter().map(Filter::new);
        let query = Query {
            filters: filters.collect::<Result<_, _>>().map_err(Error::usage)?,
            root: self.root.clone(),
            limit: self.timeout,
            patience: self.timeout,
        };
        let found = retained::retained(listener(&self.broker), query).await?;
        if let Some(cause) = &found.cut {
            say(cause);
        }
        Ok(found)
    }

    /// Says that there is no node, and why that may be.
    pub(super) fn say_empty(&self) {
        say(&format!(
            "no node tells facts below {}: is --root right? The access rules of the broker may hide \
             them. RabbitMQ sends no retained messages to wildcards: name the nodes there",
            self.root
        ));
    }

    /// Returns the nodes that tell something on `topics`. If `is_whole`, facts that a presence names
    /// and that have not come are asked for by their own topics: a broker drops messages of QoS 0 in
    /// silence when a reader is slow.
    ///
    /// # Errors
    /// 69 when no broker could be reached within the limit, 77 when it does not authorise us.
    pub(super) async fn nodes(&self, topics: Vec<String>, is_whole: bool) -> Result<Nodes> {
        let mut found = self.messages(topics).await?;
        self.nodes_in(&mut found, is_whole).await
    }

    /// Returns the nodes that tell something on `facts`, whole, and all messages on `others` too.
    ///
    /// # Errors
    /// As [`Source::nodes`].
    pub(super) async fn nodes_and(
        &self,
        facts: Vec<String>,
        others: Vec<String>,
    ) -> Result<(Nodes, Retained)> {
        let topics = facts.into_iter().chain(others).collect();
        let mut found = self.messages(topics).await?;
        let nodes = self.nodes_in(&mut found, true).await?;
        Ok((nodes, found))
    }

    /// Returns the nodes in `found`, which is cut if what is asked for again is.
    async fn nodes_in(&self, found: &mut Retained, is_whole: bool) -> Result<Nodes> {
        let mut nodes = Nodes::default();
        self.add(&mut nodes, found);
        if is_whole {
            let (missing, count) = nodes.missing(&self.root);
            if !missing.is_empty() {
                if count > missing.len() {
                    let cause = format!(
                        "{count} kinds of facts are missing, and {MAX_MISSING} are asked for again"
                    );
                    found.cut.get_or_insert(cause);
                }
                let more = self.messages(missing).await?;
                self.add(&mut nodes, &more);
                found.cut = found.cut.take().or(more.cut);
                let (_, left) = nodes.missing(&self.root);
                if left > 0 {
                    say(&format!(
                        "the broker does not have {left} kinds of facts as their nodes have told them: \
                         they are missing or old"
                    ));
                }
            }
        }
        if let Some(complaint) = nodes.complaint() {
            say(&complaint);
        }
        Ok(nodes)
    }

    fn add(&self, nodes: &mut Nodes, found: &Retained) {
        for delivery in &found.messages {
            let topic = String::from_utf8_lossy(&delivery.topic);
            nodes.add(&self.root, &topic, &delivery.payload);
        }
    }
}
