//! The task that owns the socket: it reads, writes, and sends heartbeats. No handle can block it: a
//! user who takes no happenings only stops its reading.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::model::duration;
use crate::net::amqp::failure::{Failure, FailureKind};
use crate::net::amqp::handshake::{Opened, Stream};
use crate::net::amqp::shared::Shared;
use crate::net::amqp::state::{MAX_HELD, Status, Stop, closed_by_us};

/// Size of a read, bytes.
const READ: usize = 64 << 10;

/// Size of an output buffer that is kept for the next output, bytes.
const KEPT: usize = 256 << 10;

/// Time limit for the last frame to a broker that closes the connection or breaks the protocol.
const GOODBYE: Duration = Duration::from_secs(1);

/// Number of heartbeats without a sign of the broker after which it is given up (AMQP 0-9-1, section
/// 4.2.7).
const MISSED: u32 = 2;

/// Runs a connection until it ends, and tells its handles why.
pub async fn drive(opened: Opened, host: String, shared: Arc<Shared>) {
    let guard = Guard(Arc::clone(&shared));
    let (reader, writer) = tokio::io::split(opened.stream);
    let now = Instant::now();
    let mut task = Task {
        reader,
        writer,
        host,
        shared: Arc::clone(&shared),
        input: opened.input,
        output: Vec::new(),
        sent: 0,
        unflushed: false,
        heartbeat: opened.heartbeat,
        paused: false,
        heard: now,
        spoken: now,
    };
    let end = task.run().await;
    match end {
        End::Gone => {}
        End::Failed(failure) => shared.fail(&failure),
        End::Stop(Stop::ByUs) => {
            shared.fail(&closed_by_us());
            task.goodbye().await;
        }
        End::Stop(Stop::ByBroker(failure)) => {
            shared.fail(&failure);
            task.goodbye().await;
        }
        End::Stop(Stop::Violation(violation)) => {
            shared.fail(&Failure::violation(&violation));
            shared.lock().put_close(violation.code, &violation.text);
            task.goodbye().await;
        }
    }
    drop(guard);
}

/// Tells the handles when the task ends, also when its runtime drops it.
struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        // The first failure stays.
        let failure = Failure::new(FailureKind::Closed, "the connection has no task any more");
        self.0.fail(&failure);
    }
}

/// Why the loop ends.
enum End {
    /// No handle exists any more, or the connection has failed already.
    Gone,
    Failed(Failure),
    Stop(Stop),
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

struct Task {
    reader: ReadHalf<Stream>,
    writer: WriteHalf<Stream>,
    host: String,
    shared: Arc<Shared>,
    input: BytesMut,
    /// Output that is on its way; the first `sent` bytes are sent.
    output: Vec<u8>,
    sent: usize,
    /// TLS may hold output back.
    unflushed: bool,
    heartbeat: Duration,
    /// Whether the socket is not read, because the user is slow.
    paused: bool,
    /// When the broker gave the last sign of life.
    heard: Instant,
    /// When the broker took something last.
    spoken: Instant,
}

impl Task {
    async fn run(&mut self) -> End {
        // The broker may have said more than the handshake has read.
        if let Err(end) = self.receive() {
            return end;
        }
        loop {
            match self.turn().await {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    /// Waits for one thing to happen, and does what follows.
    async fn turn(&mut self) -> Result<(), End> {
        let status = {
            let mut state = self.shared.lock();
            if !self.is_busy() && !state.is_idle() {
                state.take_output(&mut self.output);
                self.spoken = Instant::now();
            }
            state.status()
        };
        if status.ended {
            return Err(End::Gone);
        }
        self.note_pause(status.paused);
        if status.blocked && self.is_busy() {
            self.spoken = Instant::now();
        }
        let due = self.due(status);
        if self.input.capacity() - self.input.len() < READ / 2 {
            self.input.reserve(READ);
        }
        let busy = self.is_busy();
        let rest = self.output.get(self.sent..).unwrap_or_default();
        tokio::select! {
            read = self.reader.read_buf(&mut self.input), if !status.paused => {
                self.read(read)
            }
            sent = send(&mut self.writer, rest), if busy => match sent {
                Ok(count) => {
                    self.note_sent(count);
                    Ok(())
                }
                Err(e) => Err(self.last_words(&e).await),
            },
            () = self.shared.wake.notified() => Ok(()),
            () = sleep_until(due) => self.tick(status).await,
        }
    }

    /// Notes whether the socket is read; while it is not, the broker cannot be heard.
    fn note_pause(&mut self, paused: bool) {
        if paused {
            self.heard = Instant::now();
        }
        if self.paused == paused {
            return;
        }
        self.paused = paused;
        match paused {
            true => warn!(
                "{} MiB of messages from {} wait to be taken: it is not read until then; lower the \
                 prefetch if that comes back",
                MAX_HELD >> 20,
                self.host
            ),
            false => info!("messages from {} are read again", self.host),
        }
    }

    const fn is_busy(&self) -> bool {
        self.unflushed || self.sent < self.output.len()
    }

    /// Returns when [`Self::tick`] has something to do.
    fn due(&self, status: Status) -> Instant {
        let silence = self.heartbeat * MISSED;
        let mut due = match self.is_busy() {
            false => self.spoken + self.heartbeat / 2,
            true => self.spoken + silence,
        };
        if !status.paused {
            due = due.min(self.heard + silence);
        }
        due
    }

    /// Sends a heartbeat, or gives the broker up.
    async fn tick(&mut self, status: Status) -> Result<(), End> {
        let now = Instant::now();
        let silence = self.heartbeat * MISSED;
        if !status.paused && now >= self.heard + silence {
            // This process may have been stopped, and the broker may have spoken meanwhile.
            let Some(read) = self.read_now().await else {
                let text = format!("the broker is silent for {}", duration::text(silence));
                return Err(End::Failed(Failure::new(FailureKind::Unreachable, text)));
            };
            return self.read(read);
        }
        if self.is_busy() {
            if !status.blocked && now >= self.spoken + silence {
                let text = format!("the broker takes nothing for {}", duration::text(silence));
                return Err(End::Failed(Failure::new(FailureKind::Unreachable, text)));
            }
        } else if now >= self.spoken + self.heartbeat / 2 {
            self.shared.lock().put_heartbeat();
        }
        Ok(())
    }

    /// Reads what is there, without waiting.
    async fn read_now(&mut self) -> Option<io::Result<usize>> {
        self.input.reserve(READ);
        // The runtime lets a busy task see nothing for one turn, which is no silence.
        let read = unconstrained(self.reader.read_buf(&mut self.input));
        tokio::select! {
            biased;
            read = read => Some(read),
            () = std::future::ready(()) => None,
        }
    }

    /// Takes what was read.
    fn read(&mut self, read: io::Result<usize>) -> Result<(), End> {
        match read {
            Ok(1..) => {
                self.heard = Instant::now();
                self.receive()
            }
            Ok(0) => {
                let text = "the broker has dropped the connection";
                Err(End::Failed(Failure::new(FailureKind::Unreachable, text)))
            }
            Err(e) => Err(End::Failed(Failure::io(&e, &self.host))),
        }
    }

    /// Takes the frames that have come.
    fn receive(&mut self) -> Result<(), End> {
        let done = self.shared.lock().receive(&mut self.input);
        // A publisher may wait on a channel that is closed now.
        self.shared.room.notify_waiters();
        self.shared.news.notify_waiters();
        done.map_err(End::from)
    }

    /// Notes that `count` bytes were sent; 0 means that all are flushed.
    fn note_sent(&mut self, count: usize) {
        self.spoken = Instant::now();
        self.sent += count;
        self.unflushed = count > 0;
        if self.shared.lock().note_sent(count) {
            self.shared.room.notify_waiters();
        }
        if !self.is_busy() {
            self.output.clear();
            self.output.shrink_to(KEPT);
            self.sent = 0;
        }
    }

    /// Returns the end after a write has failed. The broker may have said why before.
    async fn last_words(&mut self, error: &io::Error) -> End {
        while let Some(Ok(1..)) = self.read_now().await {
            if let Err(end) = self.receive() {
                return end;
            }
        }
        End::Failed(Failure::io(error, &self.host))
    }

    /// Sends the last frames, within a limit, while a handle exists.
    async fn goodbye(&mut self) {
        let mut last = self.output.split_off(self.sent.min(self.output.len()));
        self.shared.lock().take_output(&mut self.output);
        last.append(&mut self.output);
        let all = async {
            self.writer.write_all(&last).await?;
            self.writer.shutdown().await
        };
        let abandoned = async {
            while !self.shared.lock().is_abandoned() {
                self.shared.wake.notified().await;
            }
        };
        tokio::select! {
            // The connection is closed, whether the broker takes this or not.
            _ = timeout(GOODBYE, all) => {}
            () = abandoned => {}
        }
    }
}

/// Sends some of `output`, or flushes if all is sent. Returns the number of bytes that were sent.
async fn send(writer: &mut WriteHalf<Stream>, output: &[u8]) -> io::Result<usize> {
    if output.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    match writer.write(output).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        count => Ok(count),
    }
}
