//! Checks of output that came from another node, beside the loop.

use tokio::sync::mpsc;

use crate::model::remote::wire;
use crate::os::slow::SlowReads;
use crate::store::unit_dir::incoming::Incoming;

/// Output that is being checked.
#[derive(Debug)]
pub struct Checks {
    reads: SlowReads,
    sender: mpsc::UnboundedSender<Checked>,
    receiver: mpsc::UnboundedReceiver<Checked>,
}

impl Default for Checks {
    fn default() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            reads: SlowReads::default(),
            sender,
            receiver,
        }
    }
}

/// Output that was checked.
#[derive(Debug)]
pub struct Checked {
    /// The unit.
    pub unit: String,
    /// Its output.
    pub incoming: Box<Incoming>,
    /// Its end, as its node says.
    pub end: Box<wire::End>,
    /// SHA-256 of both streams that are here.
    pub digests: std::io::Result<[[u8; 32]; 2]>,
}

impl Checks {
    /// Finds the digests of the output of `unit`.
    pub fn begin(&self, unit: &str, mut incoming: Box<Incoming>, end: Box<wire::End>) {
        let (unit, checked) = (unit.to_owned(), self.sender.clone());
        self.reads.run(move || {
            let digests = incoming.finish();
            let _ = checked.send(Checked {
                unit,
                incoming,
                end,
                digests,
            });
        });
    }

    /// Returns the next output that was checked. Cancel safe.
    pub async fn next(&mut self) -> Option<Checked> {
        self.receiver.recv().await
    }
}
