//! Output of a unit that another node runs, on its way into the files of the unit.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;

use crate::error::Error;
use crate::model::digest::Sha256;
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::journal::Journal;
use crate::store::unit_dir::stream::{self, Stream, StreamFiles};

/// Both streams, in the order of pairs.
const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// Number of bytes read at once to find their digest.
const CHUNK: usize = 256 * 1024;

/// The output of a unit that another node runs.
#[derive(Debug)]
pub struct Incoming {
    dir: UnitDir,
    files: StreamFiles,
    streams: [Coming; 2],
}

/// A stream that comes.
#[derive(Debug, Clone, Default)]
struct Coming {
    /// Size of its file.
    size: u64,
    /// Whether the file may have more bytes: a write has failed halfway, and they could not be removed.
    is_torn: bool,
    /// Whether bytes are missing in it.
    is_cut: bool,
    /// SHA-256 of the first bytes of the file, and their number.
    digest: (Sha256, u64),
}

impl Coming {
    /// Removes what a write that has failed left in `file`.
    fn mend(&mut self, file: &File) -> io::Result<()> {
        if self.is_torn {
            file.set_len(self.size)?;
            self.is_torn = false;
        }
        Ok(())
    }
}

impl Incoming {
    /// Continues the output in the folder `dir`, which is created if it is missing. Output with a gap
    /// begins again: the length of the gap is not on disk.
    ///
    /// # Errors
    /// As the file system.
    pub fn open(dir: UnitDir) -> io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(dir.path()) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let mut incoming = Self {
            files: StreamFiles::default(),
            streams: [Coming::default(), Coming::default()],
            dir,
        };
        let notes = incoming.dir.notes();
        if STREAMS.iter().any(|stream| notes.cut(*stream).is_some()) {
            incoming.begin_again()?;
            return Ok(incoming);
        }
        for (stream, coming) in STREAMS.into_iter().zip(&mut incoming.streams) {
            coming.size = match std::fs::metadata(incoming.dir.stream(stream)) {
                Ok(meta) => meta.len(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
                Err(e) => return Err(e),
            };
        }
        Ok(incoming)
    }

    /// Sizes of the files of stdout and stderr.
    #[must_use]
    pub const fn sizes(&self) -> [u64; 2] {
        let [stdout, stderr] = &self.streams;
        [stdout.size, stderr.size]
    }

    /// Appends `bytes` to a stream, all of them or none.
    ///
    /// # Errors
    /// As the file system.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let Some(coming) = self.streams.get_mut(stream as usize) else {
            return Ok(());
        };
        let mut file: &File = self.files.open(self.dir.path(), stream)?;
        coming.mend(file)?;
        if let Err(e) = file.write_all(bytes) {
            coming.is_torn = true;
            // The next write tries it again. The first error is the cause.
            let _ = coming.mend(file);
            return Err(e);
        }
        if coming.digest.1 == coming.size {
            coming.digest.0.update(bytes);
            coming.digest.1 += bytes.len() as u64;
        }
        coming.size += bytes.len() as u64;
        Ok(())
    }

    /// Notes that bytes of a stream are missing here. A stream is read with one gap, the first: who asks
    /// for it while it is written may miss more.
    ///
    /// # Errors
    /// As the file system.
    pub fn skip(&mut self, stream: Stream) -> Result<(), Error> {
        let Some(coming) = self.streams.get_mut(stream as usize) else {
            return Ok(());
        };
        if coming.is_cut {
            return Ok(());
        }
        let record = self.dir.record();
        let id = self.dir.id().into_owned();
        let cannot = |e: io::Error| Error::state(&e, format!("write {}: {e}", record.display()));
        let mut journal = Journal::open(&record)?;
        journal.resume(&record, &id).map_err(cannot)?;
        journal.cut(&id, stream, coming.size).map_err(cannot)?;
        drop(journal.release());
        coming.is_cut = true;
        Ok(())
    }

    /// Deletes what is here: the output comes again from its beginning.
    ///
    /// # Errors
    /// As the file system.
    pub fn begin_again(&mut self) -> io::Result<()> {
        self.close();
        self.streams = [Coming::default(), Coming::default()];
        let paths = STREAMS.map(|stream| self.dir.stream(stream));
        for path in paths.into_iter().chain([self.dir.record()]) {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Closes the files, which the next write opens again.
    pub fn close(&mut self) {
        self.files = StreamFiles::default();
    }

    /// Syncs the files, and returns their digests. It reads what this process has not written.
    ///
    /// # Errors
    /// As the file system.
    pub fn finish(&mut self) -> io::Result<[[u8; 32]; 2]> {
        let mut digests = [[0; 32]; 2];
        let streams = STREAMS.into_iter().zip(&mut self.streams).zip(&mut digests);
        for ((stream, coming), digest) in streams {
            if coming.is_torn {
                coming.mend(self.files.open(self.dir.path(), stream)?)?;
            }
            let (mut whole, mut at) = coming.digest.clone();
            match stream::open(&self.dir.stream(stream)) {
                Ok(file) => {
                    file.sync_data()?;
                    let mut chunk = vec![0; CHUNK];
                    while at < coming.size {
                        use std::os::unix::fs::FileExt;
                        let read = file.read_at(&mut chunk, at)?;
                        if read == 0 {
                            break;
                        }
                        whole.update(chunk.get(..read).unwrap_or_default());
                        at += read as u64;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            *digest = whole.finish();
        }
        File::open(self.dir.path())?.sync_all()?;
        self.close();
        Ok(digests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::digest::sha256;
    use crate::store::unit_dir::reader::{Chunk, Ended, output};
    use bytes::Bytes;

    fn dir(state: &tempfile::TempDir) -> UnitDir {
        std::fs::create_dir_all(state.path().join("units")).expect("units");
        UnitDir::new(state.path(), "01JBV7Y3ZK8Q5W2N4T6R9M1XCD")
    }

    #[test]
    fn output_goes_on_where_an_earlier_process_has_stopped() {
        let state = tempfile::tempdir().expect("tempdir");
        let mut first = Incoming::open(dir(&state)).expect("open");
        first.write(Stream::Stdout, b"a").expect("write");
        first.close();
        first.write(Stream::Stdout, b"b").expect("write");
        drop(first);
        let mut second = Incoming::open(dir(&state)).expect("open");
        assert_eq!(second.sizes(), [2, 0]);
        second.write(Stream::Stdout, b"cd").expect("write");
        second.write(Stream::Stderr, b"e").expect("write");
        let digests = second.finish().expect("finish");
        assert_eq!(digests, [sha256(b"abcd"), sha256(b"e")]);
    }

    #[test]
    fn a_write_that_has_failed_halfway_leaves_nothing() {
        let state = tempfile::tempdir().expect("tempdir");
        let mut incoming = Incoming::open(dir(&state)).expect("open");
        incoming.write(Stream::Stdout, b"ab").expect("write");
        let path = dir(&state).stream(Stream::Stdout);
        for (next, whole) in [(&b"cd"[..], &b"abcd"[..]), (b"", b"abcd")] {
            let mut file = File::options().append(true).open(&path).expect("file");
            file.write_all(b"half").expect("half");
            incoming.streams[0].is_torn = true;
            if !next.is_empty() {
                incoming.write(Stream::Stdout, next).expect("write");
            }
            assert_eq!(incoming.finish().expect("finish")[0], sha256(whole));
            assert_eq!(std::fs::read(&path).expect("file"), whole);
        }
    }

    #[test]
    fn a_gap_is_read_as_one_and_begins_again_after_a_restart() {
        let state = tempfile::tempdir().expect("tempdir");
        let mut incoming = Incoming::open(dir(&state)).expect("open");
        incoming.write(Stream::Stdout, b"ab").expect("write");
        incoming.skip(Stream::Stdout).expect("skip");
        incoming.write(Stream::Stdout, b"yz").expect("write");
        assert_eq!(incoming.finish().expect("finish")[0], sha256(b"abyz"));
        let mut reader = output(&dir(&state), Stream::Stdout, 0);
        let mut next = || reader.next(Ended::Yes(Some(5))).expect("read");
        assert_eq!(next(), Chunk::Bytes(Bytes::from_static(b"ab")));
        assert_eq!(next(), Chunk::Gap(Some(5)));
        assert_eq!(next(), Chunk::Bytes(Bytes::from_static(b"yz")));
        assert_eq!(next(), Chunk::End);
        let again = Incoming::open(dir(&state)).expect("open");
        assert_eq!(again.sizes(), [0, 0]);
    }
}
