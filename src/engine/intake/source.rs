//! Sources of events. From every source, an event becomes an [`Offer`] and goes through one door:
//! the client judges it, commits it, and settles the receipt.

use crate::engine::commit::receipt::{QueueAck, Receipt};
use crate::engine::commit::step::{Step, Steps};
use crate::engine::intake::offer::{Offer, Subject};
use crate::engine::intake::queued::Queued;
use crate::engine::intake::silence::Due;
use crate::engine::intake::submission::Submission;
use crate::engine::pipeline::Pipeline;
use crate::engine::report::reply::ReplyTo;
use crate::model::message::Delivery;

/// An event from a source. A new source is a variant here, and one of [`Receipt`].
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a message, the rule, costs no allocation"
)]
pub enum Source {
    /// A message of a subscribed topic.
    Message(Delivery, Receipt),
    /// A request for a run.
    Request(Box<Subject>, Option<ReplyTo>, Receipt),
    /// Submitted work.
    Submission(Box<Submission>, Receipt),
    /// A message of a queue.
    Queued(Box<Queued>, QueueAck),
    /// A silence that is long enough.
    Silence(Due),
    /// An offer of a test.
    #[cfg(test)]
    Script(Offer),
}

impl Source {
    /// Returns the offer of the source; `None` if it is void meanwhile.
    pub fn offer(self, pipeline: &Pipeline, steps: &mut Steps) -> Option<Offer> {
        match self {
            Self::Message(delivery, receipt) => Some(Offer {
                subject: Subject::Message(delivery),
                reply: None,
                receipt,
            }),
            Self::Request(subject, reply, receipt) => Some(Offer {
                subject: *subject,
                reply,
                receipt,
            }),
            Self::Submission(submission, receipt) => {
                let Some(subject) = submission.subject(&pipeline.config) else {
                    steps.push_back(Step::Refuse(receipt));
                    return None;
                };
                Some(Offer {
                    subject,
                    reply: None,
                    receipt,
                })
            }
            Self::Queued(message, ack) => Some(Offer {
                subject: Subject::Queued(message),
                reply: None,
                receipt: Receipt::Queue(ack),
            }),
            Self::Silence(due) => {
                let (subject, heard) = due.subject(pipeline)?;
                // One transaction with its event makes it once for each silence.
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
