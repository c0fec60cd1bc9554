//! The order in which a command has written to its streams.
//!
//! The file `order` in the folder of a unit has a line for each switch from one stream to the other:
//!
//! ```text
//! stdout 120    what stdout has before byte 120 comes before what stderr has from here on
//! stderr 17     and the other way round
//! full          further switches were not noted
//! ```
//!
//! A line is written before the bytes that follow it. While a command writes to one stream only, there
//! is no file. The runner reads two pipes: bytes that were written to both between two reads, mostly
//! within 5 ms, come as stdout before stderr.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

use crate::store::unit_dir::stream::{MODE, Stream};

/// Name of the file.
const FILE: &str = "order";

/// Maximum number of switches to note: 64 KiB with offsets of eight digits.
pub(super) const MAX_SWITCHES: u16 = 4096;

/// Maximum size of the file, bytes: a line has a stream and an offset of up to 20 digits.
const MAX_BYTES: u64 = 32 * MAX_SWITCHES as u64;

/// Line after the last switch that was noted.
const FULL: &str = "full";

/// Notes switches, in the hands of the runner.
#[derive(Debug, Default)]
pub(super) struct OrderNotes {
    last: Option<Stream>,
    switches: u16,
    file: Option<File>,
}

impl OrderNotes {
    /// Notes that bytes of `stream` come next, for the unit in `folder`; `other` is the number of bytes
    /// of the other stream so far.
    pub fn came(&mut self, folder: &Path, stream: Stream, other: u64) {
        if let Some(last) = self.last.filter(|last| *last != stream) {
            self.switch(folder, last, other);
        }
        self.last = Some(stream);
    }

    fn switch(&mut self, folder: &Path, from: Stream, seen: u64) {
        let line = match self.switches {
            0..MAX_SWITCHES => format!("{} {seen}\n", from.file()),
            MAX_SWITCHES => format!("{FULL}\n"),
            _ => return,
        };
        self.switches += 1;
        if self.append(folder, &line).is_err() {
            // Without the file, readers know that they do not know the order.
            let _ = fs::remove_file(folder.join(FILE));
            self.switches = MAX_SWITCHES + 1;
        }
    }

    fn append(&mut self, folder: &Path, line: &str) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                options.append(true).create(true);
                options.mode(MODE).custom_flags(O_NOFOLLOW | O_NONBLOCK);
                options.open(folder.join(FILE))?
            }
        };
        file.write_all(line.as_bytes())?;
        self.file = Some(file);
        Ok(())
    }
}

/// Switches, as they were read.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// The stream that was left, and its number of bytes then.
    pub switches: Vec<(Stream, u64)>,
    /// Whether there were more.
    pub is_full: bool,
    /// Whether the file is there.
    pub exists: bool,
    size: u64,
}

impl Order {
    /// Reads the file in `folder` again, if it has grown. A line without its end is not there yet.
    pub fn refresh(&mut self, folder: &Path) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK);
        let file = match options.open(folder.join(FILE)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                *self = Self::default();
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other(format!("{FILE} is not a file")));
        }
        if self.exists && meta.len() == self.size {
            return Ok(());
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        *self = Self {
            exists: true,
            size: bytes.len() as u64,
            ..Self::default()
        };
        for line in text
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'))
        {
            let switch = line.split_once(' ').and_then(|(stream, offset)| {
                let stream = [Stream::Stdout, Stream::Stderr]
                    .into_iter()
                    .find(|known| known.file() == stream)?;
                Some((stream, offset.parse().ok()?))
            });
            match switch {
                Some(switch) if self.switches.len() < usize::from(MAX_SWITCHES) => {
                    self.switches.push(switch)
                }
                // Also what no version of ours has written.
                _ => {
                    self.is_full = true;
                    break;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_the_place_of_the_file_is_bounded() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join(FILE);
        let mut order = Order::default();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        assert!(order.refresh(dir.path()).is_err());
        fs::remove_file(&path).expect("remove");
        std::os::unix::fs::symlink("/dev/zero", &path).expect("link");
        assert!(order.refresh(dir.path()).is_err());
        fs::remove_file(&path).expect("remove");
        let huge = File::create(&path).expect("file");
        huge.set_len(1 << 40).expect("hole");
        order.refresh(dir.path()).expect("read");
        assert!(order.size <= MAX_BYTES && order.switches.is_empty());
    }
}
