//! Payloads that come from other nodes in pieces.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use bytes::Bytes;
use tokio::time::{Duration, Instant};
use tracing::info;

use crate::engine::report::reply::ReplyTo;
use crate::error::{Error, Kind, Result};
use crate::model::digest::Sha256;
use crate::model::remote::assembly::{Assembly, Piece};
use crate::model::remote::wire::Manifest;
use crate::model::signature::hex;
use crate::store::payload_file::Writing;
use crate::store::room::Share;

/// Maximum number of payloads that come at a time. Further ones are refused, and their submitters
/// try again.
const MAX_UPLOADS: usize = 16;

/// Time without a piece after which a payload gives its place, and its share of the room, to another.
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
    digest: Sha256,
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
            let cause = format!("{MAX_UPLOADS} other payloads come");
            return Err(Error::new(Kind::TryAgain, cause));
        }
        let upload = Upload {
            reply,
            share: share(manifest.length)?,
            file: Writing::create(home)?,
            sha256: [0; 32],
            digest: Sha256::default(),
            pieces: Assembly::default(),
            touched: Instant::now(),
            manifest,
        };
        self.0.insert(upload.manifest.unit.clone(), upload);
        Ok(0)
    }

    /// Returns when a payload has to give its place to another, if no piece comes.
    pub fn wake(&self) -> Option<Instant> {
        let touched = self.0.values().map(|upload| upload.touched);
        touched.min().map(|at| at + IDLE)
    }

    /// Drops payloads that have got no piece for long at `now`. A submitter that goes on sends them
    /// again.
    pub fn on_time(&mut self, now: Instant) {
        self.0.retain(|unit, upload| {
            let is_idle = now.duration_since(upload.touched) >= IDLE;
            if is_idle {
                info!(
                    TAEL_UNIT = unit,
                    "its payload was dropped: no piece came for {IDLE:?}"
                );
            }
            !is_idle
        });
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
        upload.sha256 = upload.digest.clone().finish();
        match hex(&upload.sha256) == upload.manifest.sha256 {
            true => Progress::Whole(Box::new(upload)),
            false => Progress::Refused(Error::data(DIGEST)),
        }
    }
}

/// Refusal of a payload that has changed on its way.
pub const DIGEST: &str = "the SHA-256 of the payload is not that of its manifest";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::room::Room;

    fn manifest(unit: &str, length: u64) -> Manifest {
        Manifest {
            unit: unit.to_owned(),
            kind: "cat".to_owned(),
            params: Vec::new(),
            variables: Vec::new(),
            submitter: "someone@somewhere".to_owned(),
            length,
            sha256: String::new(),
            expires: None,
            signature: None,
        }
    }

    #[test]
    fn a_payload_without_pieces_gives_its_share_back() {
        let home = tempfile::tempdir().expect("tempdir");
        let room = Room::new(1000);
        let used = || room.fill().expect("limit").used;
        let reply = ReplyTo::at("lab/reply");
        let mut uploads = Uploads::default();
        let begin = |uploads: &mut Uploads, unit| {
            let share = |bytes| room.share(bytes).map_err(Error::data);
            uploads.begin(home.path(), manifest(unit, 100), reply.clone(), share)
        };
        assert_eq!(uploads.wake(), None);
        begin(&mut uploads, "a").expect("begin");
        let first = uploads.wake().expect("wake");
        begin(&mut uploads, "b").expect("begin");
        assert_eq!(used(), 200);
        assert_eq!(uploads.wake(), Some(first));
        let piece = Bytes::from_static(b"piece");
        let progress = uploads.take("a", &reply, 0, piece);
        assert!(matches!(progress, Progress::Quiet));
        // Now the other one waits for longer.
        let second = uploads.wake().expect("wake");
        assert!(second >= first);
        uploads.on_time(second - Duration::from_millis(1));
        assert_eq!(uploads.0.len(), 2);
        uploads.on_time(second);
        assert!(!uploads.0.contains_key("b"));
        uploads.on_time(second + IDLE);
        assert_eq!((uploads.wake(), used()), (None, 0));
        let progress = uploads.take("a", &reply, 5, Bytes::new());
        assert!(matches!(progress, Progress::Unknown));
    }
}
