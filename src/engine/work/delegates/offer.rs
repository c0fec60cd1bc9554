//! The offer of work to another node: its manifest, and its payload in pieces.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::engine::pipeline::{Pipeline, now_ms};
use crate::engine::work::delegates::payload::Payload;
use crate::error::Error;
use crate::model::remote::WINDOW;
use crate::model::remote::wire::{Manifest, Request};
use crate::model::work::Work;

/// A request, and what follows its header.
pub type Message = (Request, Bytes);

/// Work that the node has not accepted.
#[derive(Debug)]
pub struct Offer {
    work: Arc<Work>,
    payload: Option<Payload>,
    /// Whether the next offset is the answer to a manifest; then the payload goes on from there.
    pub is_fresh: bool,
    /// Number of times that it was sent, and a node may have got it.
    pub sends: u32,
    pub sent: u64,
    acked: u64,
}

impl Offer {
    /// Returns the offer of `work`.
    pub const fn of(work: Arc<Work>) -> Self {
        Self {
            work,
            payload: None,
            is_fresh: true,
            sends: 0,
            sent: 0,
            acked: 0,
        }
    }

    /// Returns from when on the node must not accept it any more, seconds since 1970.
    fn expires(&self) -> Option<i64> {
        self.work.delegation.as_ref()?.expires
    }

    /// Returns whether the node must not accept it any more.
    pub fn is_late(&self) -> bool {
        self.expires().is_some_and(|at| at <= now_ms() / 1000)
    }

    /// Returns when its time is up, if no node can have heard of it.
    pub fn ends_unheard(&self) -> Option<Instant> {
        let expires = self.expires().filter(|_| self.sends == 0)?;
        let left = expires.saturating_mul(1000).saturating_sub(now_ms());
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        Instant::now().checked_add(left)
    }

    /// Gives back what reading the payload needs, until it is read again.
    pub fn rest(&mut self) {
        self.payload = None;
    }

    /// Notes that the node has the payload up to `offset`.
    pub fn wants(&mut self, offset: u64) {
        if std::mem::take(&mut self.is_fresh) {
            (self.sent, self.acked) = (offset, offset);
        }
        self.acked = self.acked.max(offset);
    }

    /// Returns the manifest if it is due, otherwise the next piece of the payload.
    ///
    /// # Errors
    /// As [`Payload`].
    pub fn next(
        &mut self,
        pipeline: &Pipeline,
        unit: &str,
        is_due: bool,
    ) -> Result<Option<Message>, Error> {
        let Some(delegation) = &self.work.delegation else {
            return Err(Error::data("offer it: no node is named"));
        };
        let payload = match self.payload.take() {
            Some(payload) => payload,
            None => Payload::open(pipeline, unit, &self.work)?,
        };
        let payload = self.payload.insert(payload);
        if is_due {
            let manifest = Manifest::of(unit, &self.work, delegation);
            let body = match manifest.is_inline() && manifest.length > 0 {
                true => payload.piece(0)?,
                false => Bytes::new(),
            };
            return Ok(Some((Request::Submit(manifest), body)));
        }
        let may_go = self.sent < delegation.length && self.sent < self.acked.saturating_add(WINDOW);
        if self.is_fresh || !may_go {
            return Ok(None);
        }
        let request = Request::Payload {
            unit: unit.to_owned(),
            offset: self.sent,
        };
        Ok(Some((request, payload.piece(self.sent)?)))
    }
}
