//! Where events come from. Whatever the source, an event becomes an [`Offer`], and goes through one
//! door: the client judges it, commits it, and gives the receipt back.

use crate::engine::commit::receipt::Receipt;
use crate::engine::commit::step::{Step, Steps};
use crate::engine::intake::offer::{Offer, Subject};
use crate::engine::intake::silence::Due;
use crate::engine::pipeline::Pipeline;
use crate::engine::report::reply::ReplyTo;
use crate::net::session::SessionReceived;

/// Something that has come, by its source. A new source is a variant here, and one of [`Receipt`].
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a message, the rule, costs no allocation"
)]
pub enum Source {
    /// A message of a subscribed topic.
    Mqtt(SessionReceived),
    /// A request that wants a run.
    Request(Box<Subject>, Option<ReplyTo>, Receipt),
    /// A silence that is long enough.
    Silence(Due),
    /// What a test offers.
    #[cfg(test)]
    Script(Offer),
}

impl Source {
    /// Returns what the source offers; `None` if that is void meanwhile.
    pub fn offer(self, pipeline: &Pipeline, steps: &mut Steps) -> Option<Offer> {
        match self {
            Self::Mqtt(SessionReceived { delivery, ack }) => Some(Offer {
                subject: Subject::Message(delivery),
                reply: None,
                receipt: Receipt::Mqtt(ack),
            }),
            Self::Request(subject, reply, receipt) => Some(Offer {
                subject: *subject,
                reply,
                receipt,
            }),
            Self::Silence(due) => {
                let (subject, heard) = due.subject(pipeline)?;
                // In one transaction with its event: once for each silence.
                steps.push_back(Step::Commit(heard));
                Some(Offer {
                    subject,
                    reply: None,
                    receipt: Receipt::None,
                })
            }
            #[cfg(test)]
            Self::Script(offer) => Some(offer),
        }
    }
}
