//! `tael demo`: shows two chained pipelines in two seconds.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::error::{Error, Kind, Result};
use crate::model::message::{Delivery, Qos, property};
use crate::model::message_line::MessageLine;
use crate::model::topic::Filter;
use crate::model::{duration, table};
use crate::net::broker::{Broker, MAX_PACKET, Options as BrokerSettings};
use crate::net::mqtt::Settings;
use crate::net::options::{BrokerOptions, KEEP_ALIVE};
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::process::descriptor_limit;
use crate::os::signals::Stop;
use crate::os::terminal::Terminal;
use crate::os::{host, paths};
use crate::store::private::create_private_dir;
use crate::tools::message::sender;
use crate::tools::printer::Printer;
use crate::tools::unprinted;
use crate::tools::watch::{self, Lines};

/// Maximum time of the demo, which takes two seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// A child that ends with us.
struct Ours(Option<Child>);

impl Ours {
    /// Waits for its end. The broker runs on this thread, which must not block. A wait that is dropped ends the
    /// child, and with it the thread that waits.
    async fn ended(mut self) -> Result<()> {
        let Some(child) = &mut self.0 else {
            return Ok(());
        };
        let pid = Pid::from_raw(child.id().cast_signed());
        // It stays a zombie, and its number is not that of another process when it is ended.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let wait = move || while waitid(Id::Pid(pid), flags) == Err(Errno::EINTR) {};
        let waited = spawn_blocking(wait).await.map_err(io::Error::other);
        match waited.and_then(|()| child.wait()) {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Error::bug(format!(
                "demo: a part of it ended with {status}"
            ))),
            Err(_) => Err(Error::bug("demo: cannot wait for a part of it")),
        }
    }

    /// Stops it, and waits for its end.
    async fn stopped(self) -> Result<()> {
        if let Some(child) = &self.0 {
            // It may have ended already.
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        }
        self.ended().await
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A folder that is removed with us.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Shows the demo.
///
/// # Errors
/// When a part of it fails.
pub fn run() -> Result<ExitCode> {
    let state = paths::state_dir().unwrap_or_else(|_| std::env::temp_dir());
    let scratch = Scratch(state.join(format!("demo-{}", host::new_id())));
    create_private_dir(&scratch.0)?;
    let ended = super::runtime()?.block_on(async {
        let mut stop = Stop::listen(false)?;
        tokio::select! {
            () = stop.requested() => Ok(ExitCode::from(128 + 2)),
            ended = show_within(LIMIT, &scratch.0) => ended.map(|()| ExitCode::SUCCESS),
        }
    });
    drop(scratch);
    ended.map_err(|failure| match failure {
        Failure::Part(error) => error,
        Failure::Output(error) => unprinted(&error),
    })
}

/// Why the demo has failed.
enum Failure {
    /// A part of it has.
    Part(Error),
    /// It cannot print. Without a reader this process ends when the demo is cleared away.
    Output(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Part(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Shows the demo in at most `limit`, and waits until its lines are printed.
async fn show_within(limit: Duration, scratch: &Path) -> Result<(), Failure> {
    // Nothing may read the lines, and the broker runs on this thread.
    let mut printer = Printer::start()?;
    timeout(limit, show(scratch, &mut printer))
        .await
        .map_err(|_| {
            let cause = format!("demo: not finished within {}", duration::text(limit));
            Error::new(Kind::TryAgain, cause)
        })??;
    Ok(printer.end().await?)
}

async fn show(scratch: &Path, printer: &mut Printer) -> Result<(), Failure> {
    let broker = Broker::start(BrokerSettings {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        data: None,
        users: Vec::new(),
        tls: None,
        max_packet: MAX_PACKET,
        descriptors: descriptor_limit().unwrap_or(u64::MAX),
    })
    .await?;
    let port = broker.address().port();
    let broker_line = format!("its own broker listens on 127.0.0.1:{port}");
    printer.print(line("broker", &broker_line))?;
    let mut network = listen(port);
    while !matches!(network.next().await?, Event::Online) {}

    let tael = |arguments: &[&str]| start(scratch, port, arguments);
    tael(&["beacon", "--root", "demo", "--once"])?
        .ended()
        .await?;
    let align = r#"sleep 0.4; echo "aligned $SAMPLE""#;
    let report = r#"sleep 0.3; echo "reported $SAMPLE""#;
    let first = "demo/seq/status";
    let second = "demo/infrastructure/pipelines/align/status";
    let common = ["--envreq", "SAMPLE", "--payload-passthrough", "SAMPLE"];
    let client = |topic, who, command| {
        let mut arguments = vec!["client", "-t", topic, "--who", who, "-c", command];
        arguments.extend(common);
        tael(&arguments)
    };
    let waits = |who, topic| line("client", &format!("{who:<8} waits for {topic}"));
    printer.print(waits("'align'", first))?;
    let align = client(first, "align", align)?;
    printer.print(waits("'report'", second))?;
    let report = client(second, "report", report)?;

    let mut lines = Lines::new(Terminal::of_stdout());
    let mut online = 0;
    while online < 2 {
        let delivery = next(&mut network).await?;
        if delivery.topic.ends_with(b"/presence") {
            online += usize::from(attribute(&delivery, "state").as_deref() == Some("online"));
        } else {
            show_message(&delivery, &mut lines, printer)?;
        }
    }
    let example = format!("tael message -t {first} status=finished sample=S1");
    printer.print(line("message", &example))?;
    let message = ["message", "-t", first, "status=finished", "sample=S1"];
    tael(&message)?.ended().await?;
    loop {
        let delivery = next(&mut network).await?;
        show_message(&delivery, &mut lines, printer)?;
        let done = delivery.properties.user(property::WHO) == Some("report");
        match attribute(&delivery, "status").as_deref() {
            Some("finished") if done => break,
            Some("failed" | "falsestart") => {
                return Err(Error::bug("demo: a pipeline has failed").into());
            }
            _ => {}
        }
    }
    let next = "each pipeline ran once. Next: a first pipeline by hand, in the README.";
    printer.print(line("done", next))?;
    align.stopped().await?;
    report.stopped().await?;
    network.close().await;
    Ok(())
}

fn listen(port: u16) -> Session {
    let settings = Settings {
        max_packet: 1024 * 1024,
        ..sender(&BrokerOptions {
            host: Ipv4Addr::LOCALHOST.to_string(),
            port,
            others: Vec::new(),
            tls: None,
            username: None,
            password: None,
            client_id: format!("tael-{}", host::new_id()),
            keep_alive: KEEP_ALIVE,
        })
    };
    let subscriptions = Subscriptions {
        required: Filter::new("demo/#").into_iter().collect(),
        optional: Vec::new(),
        qos: Qos::AtMostOnce,
    };
    Session::new(settings, subscriptions)
}

fn start(scratch: &Path, port: u16, arguments: &[&str]) -> Result<Ours> {
    let mut command = Command::new("/proc/self/exe");
    // The configuration of the user must not change the demo.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TAEL_") {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .args(["--host", "127.0.0.1", "--port", &port.to_string()])
        .env("TAEL_CONFIG", "/dev/null")
        .env("TAEL_LOG_TARGET", "none")
        .env("STATE_DIRECTORY", scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map(|child| Ours(Some(child)))
        .map_err(|e| Error::cannot_create(format!("demo: start {}: {e}", arguments.join(" "))))
}

async fn next(network: &mut Session) -> Result<Delivery> {
    loop {
        if let Event::Received(received) = network.next().await? {
            return Ok(received.delivery);
        }
    }
}

fn attribute(delivery: &Delivery, key: &str) -> Option<String> {
    let payload: Value = serde_json::from_slice(&delivery.payload).ok()?;
    super::text(&payload, key).map(str::to_owned)
}

/// Shows a message as `tael watch` does. The presences were waited for, and are not shown.
fn show_message(delivery: &Delivery, lines: &mut Lines, printer: &mut Printer) -> io::Result<()> {
    match MessageLine::of(delivery, false) {
        Some(message) if !delivery.topic.ends_with(b"/presence") => {
            printer.print(lines.line(begin("network").trim_end(), &message))
        }
        _ => Ok(()),
    }
}

/// Returns a line of the demo, as wide as the terminal at most.
fn line(part: &str, text: &str) -> String {
    let line = format!("{} {text}", begin(part));
    match Terminal::of_stdout().width {
        Some(width) => table::cut(&line, width),
        None => line,
    }
}

/// Returns the time and the part of the demo that a line is about.
fn begin(part: &str) -> String {
    format!("{}  {part:<8}", watch::clock())
}
