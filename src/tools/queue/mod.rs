//! `tael queue`: puts messages on queues of RabbitMQ, waits until they are done, and shows what is left.

pub mod bodies;
pub mod check;
pub mod dead;
mod dead_letter;
pub mod drain;
mod outbox;
mod progress;
pub mod push;
mod pusher;
mod replies;
pub mod status;
mod tally;
pub mod target;
mod waiting;
