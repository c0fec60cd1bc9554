//! SHA-256 of output, as it is sent.

use std::fmt;
use std::io;

use ring::digest::{Context, SHA256};

use crate::model::signature::hex;
use crate::model::unit::Outcome;
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::reader::{Chunk, Ended, output};
use crate::store::unit_dir::stream::Stream;

/// SHA-256 of a stream up to an offset.
#[derive(Clone)]
pub struct Digest {
    context: Context,
    /// The offset. What was dropped counts in it.
    at: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self {
            context: Context::new(&SHA256),
            at: 0,
        }
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.at)
    }
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
                    self.context.update(new);
                    self.at += new.len() as u64;
                }
            }
            Chunk::Gap(Some(bytes)) => self.at = self.at.max(offset.saturating_add(*bytes)),
            Chunk::Gap(None) | Chunk::Truncated | Chunk::Pending | Chunk::End => {}
        }
    }

    /// Reads the rest of a stream that has `ended`. Returns its length and its SHA-256.
    fn finish(mut self, dir: &UnitDir, stream: Stream, ended: Ended) -> io::Result<(u64, String)> {
        let mut reader = output(dir, stream, self.at);
        loop {
            let offset = reader.offset();
            match reader.next(ended)? {
                chunk @ (Chunk::Bytes(_) | Chunk::Gap(Some(_))) => self.take(offset, &chunk),
                Chunk::Gap(None) | Chunk::Truncated | Chunk::Pending | Chunk::End => break,
            }
        }
        Ok((self.at, hex(self.context.finish().as_ref())))
    }
}

/// Returns lengths and digests of stdout and stderr of a unit that has ended. What `digests` have
/// is not read again.
///
/// # Errors
/// As the file system.
pub fn finish(
    digests: [Digest; 2],
    dir: &UnitDir,
    outcome: Option<&Outcome>,
) -> io::Result<([u64; 2], [String; 2])> {
    let of = |digest: Digest, stream| digest.finish(dir, stream, Ended::with(outcome, stream));
    let [stdout, stderr] = digests;
    let (stdout, stderr) = (of(stdout, Stream::Stdout)?, of(stderr, Stream::Stderr)?);
    Ok(([stdout.0, stderr.0], [stdout.1, stderr.1]))
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn end(digest: Digest, dir: &UnitDir) -> (u64, String) {
        digest
            .finish(dir, Stream::Stdout, Ended::Yes(Some(0)))
            .expect("finish")
    }

    fn whole() -> (u64, String) {
        let digest = ring::digest::digest(&SHA256, WHOLE);
        (WHOLE.len() as u64, hex(digest.as_ref()))
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
    fn gaps_count_in_the_length_only() {
        let (dir, _state) = unit();
        let mut digest = Digest::default();
        digest.take(0, &bytes(0, 4));
        for _ in 0..2 {
            digest.take(4, &Chunk::Gap(Some(10)));
        }
        digest.take(14, &bytes(14, WHOLE.len()));
        let kept = [&WHOLE[..4], &WHOLE[14..]].concat();
        let expected = hex(ring::digest::digest(&SHA256, &kept).as_ref());
        assert_eq!(end(digest, &dir), (WHOLE.len() as u64, expected));
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
