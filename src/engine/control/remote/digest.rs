//! SHA-256 of output, as it is sent.

use std::io;

use crate::model::digest::Sha256;
use crate::model::remote::wire::Dropped;
use crate::model::signature::hex;
use crate::model::unit::Outcome;
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::reader::{Chunk, Ended, output};
use crate::store::unit_dir::stream::Stream;

/// SHA-256 of a stream up to an offset.
#[derive(Debug, Clone, Default)]
pub struct Digest {
    sha256: Sha256,
    /// The offset. What was dropped counts in it.
    at: u64,
}

impl Digest {
    /// Takes what was read at `offset`. What it has is passed over, and so is what does not follow
    /// it: [`finish`] reads that.
    pub fn take(&mut self, offset: u64, chunk: &Chunk) {
        // The file has other bytes now.
        if *chunk == Chunk::Truncated {
            *self = Self::default();
        }
        let Some(known) = self.at.checked_sub(offset) else {
            return;
        };
        match chunk {
            Chunk::Bytes(bytes) => {
                let known = usize::try_from(known).unwrap_or(usize::MAX);
                if let Some(new) = bytes.get(known..) {
                    self.sha256.update(new);
                    self.at += new.len() as u64;
                }
            }
            Chunk::Gap(Some(bytes)) => self.at = self.at.max(offset.saturating_add(*bytes)),
            Chunk::Gap(None) | Chunk::Truncated | Chunk::Pending | Chunk::End => {}
        }
    }

    /// Reads the rest of a stream that has `ended`. Readers that were slow, and ones that come late,
    /// lack bytes that others have: the digest is about what is kept, which is the same for all. If
    /// something may have been dropped, all of that is read. Processes that outlive the command may
    /// write more than was `sent`.
    fn finish(self, dir: &UnitDir, stream: Stream, ended: Ended, sent: u64) -> io::Result<Kept> {
        let mut digest = match ended {
            Ended::Yes(Some(0)) => self,
            Ended::Yes(_) | Ended::No => Self::default(),
        };
        let mut reader = output(dir, stream, digest.at);
        let mut dropped = None;
        loop {
            let offset = reader.offset();
            let mut chunk = reader.next(ended)?;
            match &mut chunk {
                Chunk::Bytes(_) if offset >= sent => break,
                Chunk::Bytes(bytes) => {
                    let room = usize::try_from(sent - offset).unwrap_or(usize::MAX);
                    bytes.truncate(room);
                }
                Chunk::Gap(bytes) => {
                    let bytes = *bytes;
                    dropped = Some(Dropped { offset, bytes });
                }
                Chunk::Truncated | Chunk::Pending | Chunk::End => break,
            }
            digest.take(offset, &chunk);
        }
        Ok(Kept {
            length: digest.at,
            sha256: hex(&digest.sha256.finish()),
            dropped,
        })
    }
}

/// What is kept of a stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept {
    /// Length of the stream, bytes, with what was dropped.
    pub length: u64,
    /// SHA-256 of what is kept.
    pub sha256: String,
    /// What was dropped.
    pub dropped: Option<Dropped>,
}

/// Returns what is kept of stdout and stderr of a unit that has ended, up to the offsets that were
/// `sent`. What `digests` have is not read again if nothing was dropped.
///
/// # Errors
/// As the file system.
pub fn finish(
    digests: [Digest; 2],
    dir: &UnitDir,
    outcome: Option<&Outcome>,
    sent: [u64; 2],
) -> io::Result<[Kept; 2]> {
    let of = |digest: Digest, stream, sent| {
        let ended = Ended::with(outcome, stream);
        digest.finish(dir, stream, ended, sent)
    };
    let ([out, err], [out_sent, err_sent]) = (digests, sent);
    Ok([
        of(out, Stream::Stdout, out_sent)?,
        of(err, Stream::Stderr, err_sent)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::digest::sha256;
    use bytes::Bytes;
    use std::fs;

    const WHOLE: &[u8] = b"what a command has written";

    /// Returns a unit with this stdout, and its state folder.
    fn unit() -> (UnitDir, tempfile::TempDir) {
        let state = tempfile::tempdir().expect("tempdir");
        let dir = UnitDir::new(state.path(), "01JBV7Y3ZK8Q5W2N4T6R9M1XCD");
        fs::create_dir_all(dir.path()).expect("folder");
        fs::write(dir.stream(Stream::Stdout), WHOLE).expect("stdout");
        (dir, state)
    }

    fn bytes(from: usize, to: usize) -> Chunk {
        Chunk::Bytes(Bytes::from_static(&WHOLE[from..to]))
    }

    fn end(digest: Digest, dir: &UnitDir) -> Kept {
        digest
            .finish(dir, Stream::Stdout, Ended::Yes(Some(0)), u64::MAX)
            .expect("finish")
    }

    fn whole() -> Kept {
        Kept {
            length: WHOLE.len() as u64,
            sha256: hex(&sha256(WHOLE)),
            dropped: None,
        }
    }

    #[test]
    fn what_is_sent_again_or_never_is_hashed_once() {
        let (dir, _state) = unit();
        let mut digest = Digest::default();
        for (from, to) in [(0, 5), (3, 5), (0, 7), (12, 15), (7, 10), (10, 12)] {
            digest.take(from as u64, &bytes(from, to));
        }
        assert_eq!(digest.at, 12);
        assert_eq!(end(digest, &dir), whole());
        assert_eq!(end(Digest::default(), &dir), whole());
    }

    #[test]
    fn what_was_sent_is_not_read_again() {
        let (dir, _state) = unit();
        let mut digest = Digest::default();
        digest.take(0, &bytes(0, WHOLE.len()));
        fs::write(dir.stream(Stream::Stdout), vec![0; WHOLE.len()]).expect("stdout");
        assert_eq!(end(digest, &dir), whole());
    }

    #[test]
    fn what_is_kept_is_hashed_whatever_was_sent_before() {
        let (dir, _state) = unit();
        let bytes = 10;
        // The file has both ends, with a hole in between.
        let journal = format!("hole-stdout {} 4 12\n", "01JBV7Y3ZK8Q5W2N4T6R9M1XCD");
        fs::write(dir.record(), journal).expect("journal");
        assert_eq!(WHOLE.len(), 4 + bytes + 12);
        let kept = [&WHOLE[..4], &WHOLE[14..]].concat();
        let expected = Kept {
            length: WHOLE.len() as u64,
            sha256: hex(&sha256(&kept)),
            dropped: Some(Dropped {
                offset: 4,
                bytes: Some(bytes as u64),
            }),
        };
        let mut sent = Digest::default();
        sent.take(0, &self::bytes(0, 20));
        for digest in [sent, Digest::default()] {
            let ended = Ended::Yes(Some(bytes as u64));
            let kept = digest.finish(&dir, Stream::Stdout, ended, 26);
            assert_eq!(kept.expect("finish"), expected);
        }
    }

    #[test]
    fn what_comes_after_the_end_is_not_hashed() {
        let (dir, _state) = unit();
        let mut all = Digest::default();
        all.take(0, &bytes(0, 7));
        for digest in [all, Digest::default()] {
            let kept = digest.finish(&dir, Stream::Stdout, Ended::Yes(Some(0)), 7);
            let expected = Kept {
                length: 7,
                sha256: hex(&sha256(&WHOLE[..7])),
                dropped: None,
            };
            assert_eq!(kept.expect("finish"), expected);
        }
    }

    #[test]
    fn a_file_that_was_truncated_is_hashed_anew() {
        let (dir, _state) = unit();
        let mut digest = Digest::default();
        digest.take(0, &bytes(3, 9));
        digest.take(6, &Chunk::Truncated);
        assert_eq!(end(digest, &dir), whole());
    }
}
