//! Payloads that come from other nodes in pieces.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use bytes::Bytes;
use ring::digest::{Context, SHA256};
use tokio::time::{Duration, Instant};

use crate::engine::intake::submission::finish;
use crate::engine::report::reply::ReplyTo;
use crate::error::{Error, Kind, Result};
use crate::model::remote::assembly::{Assembly, Piece};
use crate::model::remote::wire::Manifest;
use crate::model::signature::hex;
use crate::store::payload_file::Writing;
use crate::store::room::Share;

/// Maximum number of payloads that come at a time. Further ones are refused, and their submitters
/// try again.
const MAX_UPLOADS: usize = 16;

/// Time without a piece after which a payload gives its place to another.
const IDLE: Duration = Duration::from_secs(60);

/// Payloads of which pieces are missing.
#[derive(Debug, Default)]
pub struct Uploads(HashMap<String, Upload>);

/// A payload of which pieces are missing.
pub struct Upload {
    /// What runs with it.
    pub manifest: Manifest,
    /// Where answers go.
    pub reply: ReplyTo,
    /// Its file.
    pub file: Writing,
    /// Its share of the room in the state folder.
    pub share: Share,
    /// SHA-256 of the payload, once it is whole.
    pub sha256: [u8; 32],
    digest: Context,
    pieces: Assembly,
    touched: Instant,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Upload({}, {:?})", self.manifest.unit, self.pieces)
    }
}

/// What became of a piece.
#[derive(Debug)]
pub enum Progress {
    /// The submitter sends on from this offset, or is asked to.
    Want(u64),
    /// Nothing is answered.
    Quiet,
    /// The payload is whole.
    Whole(Box<Upload>),
    /// It is refused.
    Refused(Error),
    /// There is no such payload: the client was started anew, or the payload has lost its place.
    Unknown,
}

impl Uploads {
    /// Begins a payload in the folder `home`, or continues it. A new one takes its `share` of the room
    /// there. Returns the offset of the next byte.
    ///
    /// # Errors
    /// 65 if another payload comes for the same unit, 75 if too many come or there is no room, 73 if
    /// its file cannot be created.
    pub fn begin(
        &mut self,
        home: &Path,
        manifest: Manifest,
        reply: ReplyTo,
        share: impl FnOnce(u64) -> Result<Share>,
    ) -> Result<u64> {
        if let Some(upload) = self.0.get_mut(&manifest.unit) {
            let same = |manifest: &Manifest| (manifest.signed(), manifest.kind.clone());
            if same(&upload.manifest) != same(&manifest) {
                return Err(Error::data("other work comes under this id"));
            }
            (upload.reply, upload.touched) = (reply, Instant::now());
            return Ok(upload.pieces.offset());
        }
        if self.0.len() >= MAX_UPLOADS {
            self.0.retain(|_, upload| upload.touched.elapsed() < IDLE);
        }
        if self.0.len() >= MAX_UPLOADS {
            let cause = format!("{MAX_UPLOADS} other payloads come");
            return Err(Error::new(Kind::TryAgain, cause));
        }
        let upload = Upload {
            reply,
            share: share(manifest.length)?,
            file: Writing::create(home)?,
            sha256: [0; 32],
            digest: Context::new(&SHA256),
            pieces: Assembly::default(),
            touched: Instant::now(),
            manifest,
        };
        self.0.insert(upload.manifest.unit.clone(), upload);
        Ok(0)
    }

    /// Drops the payload of a unit. Returns where the answers to its submitter go.
    pub fn remove(&mut self, unit: &str) -> Option<ReplyTo> {
        self.0.remove(unit).map(|upload| upload.reply)
    }

    /// Takes a piece from a requester with the address `reply`.
    pub fn take(&mut self, unit: &str, reply: &ReplyTo, offset: u64, bytes: Bytes) -> Progress {
        let Some(upload) = self.0.get_mut(unit).filter(|upload| upload.reply == *reply) else {
            return Progress::Unknown;
        };
        upload.touched = Instant::now();
        let next = match upload.pieces.take(offset, bytes) {
            Piece::Next(bytes) => bytes,
            Piece::Known => return Progress::Quiet,
            Piece::Early => return Progress::Want(upload.pieces.offset()),
        };
        upload.digest.update(&next);
        let length = upload.manifest.length;
        let too_long = upload.pieces.offset() > length;
        let too_long = too_long.then(|| format!("the payload has more than {length} bytes"));
        let wrong = match too_long.map_or_else(|| upload.share.grow(next.len() as u64), Err) {
            Err(cause) => Some(Error::data(cause)),
            Ok(()) => upload.file.write(&next).err().map(|e| {
                let cause = format!("write the payload: {e}");
                Error::state(&e, cause)
            }),
        };
        if let Some(wrong) = wrong {
            self.0.remove(unit);
            return Progress::Refused(wrong);
        }
        if upload.pieces.offset() < length {
            return match upload.pieces.is_ack_due() {
                true => Progress::Want(upload.pieces.offset()),
                false => Progress::Quiet,
            };
        }
        let Some(mut upload) = self.0.remove(unit) else {
            return Progress::Unknown;
        };
        upload.sha256 = finish(upload.digest.clone());
        match hex(&upload.sha256) == upload.manifest.sha256 {
            true => Progress::Whole(Box::new(upload)),
            false => Progress::Refused(Error::data(DIGEST)),
        }
    }
}

/// Refusal of a payload that has changed on its way.
pub const DIGEST: &str = "the SHA-256 of the payload is not that of its manifest";
