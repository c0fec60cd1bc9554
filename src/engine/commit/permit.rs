//! The permit that a runner waits for before it begins. The ledger thread gives it, possibly while
//! the loop still sends the job.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::runner::{BEGIN, DROP};

/// Permits or forbids a runner to begin the unit that it prepares.
#[derive(Debug, Clone)]
pub struct StartPermit(Arc<Mutex<Request>>);

/// A job that is being sent to a runner, and its permit.
#[derive(Debug)]
struct Request {
    /// Pipe to the runner; `None` if it gets no job.
    pipe: Option<File>,
    sent: bool,
    /// The permit, if it was given before the job was sent.
    early: Option<u8>,
}

impl StartPermit {
    /// Returns the permit for the runner that reads from `pipe`.
    pub fn new(pipe: OwnedFd) -> Self {
        Self(Arc::new(Mutex::new(Request {
            pipe: Some(File::from(pipe)),
            sent: false,
            early: None,
        })))
    }

    /// Returns whether `other` is the same permit: that of the same reservation.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn lock(&self) -> MutexGuard<'_, Request> {
        // No change of it is ever incomplete.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the runner to begin, or not to. A runner that has died is noticed by its replies.
    pub fn give(&self, begin: bool) {
        let word = if begin { BEGIN } else { DROP };
        let mut request = self.lock();
        if !request.sent {
            request.early = Some(word);
        } else if let Some(pipe) = &mut request.pipe {
            let _ = pipe.write_all(&[word]);
        }
    }

    /// Notes that the runner gets no job, and so no permit.
    pub fn forget(&self) {
        self.lock().pipe = None;
    }

    /// Sends the job, followed by the permit if that was given before.
    ///
    /// # Errors
    /// As `write(2)`.
    pub fn send(&self, mut text: Vec<u8>) -> io::Result<()> {
        let mut request = self.lock();
        text.extend(request.early);
        request.sent = true;
        let Some(pipe) = &mut request.pipe else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        // The pool sends no more than the empty pipe of an idle runner takes.
        pipe.write_all(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_permit_that_is_given_before_its_job_follows_it() {
        for early in [true, false] {
            let (mut runner, pipe) = io::pipe().expect("pipe");
            let permit = StartPermit::new(pipe.into());
            if early {
                permit.give(true);
            }
            permit.send(b"job\n".to_vec()).expect("send");
            if !early {
                permit.give(true);
            }
            permit.forget();
            permit.give(false);
            assert!(permit.send(b"job\n".to_vec()).is_err());
            let mut text = Vec::new();
            runner.read_to_end(&mut text).expect("read");
            assert_eq!(text, [b"job\n", &[BEGIN][..]].concat());
        }
    }
}
