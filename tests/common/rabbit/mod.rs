//! Real RabbitMQ brokers on loopback, of the installed `rabbitmq-server` (Debian's package).
//!
//! A broker takes five seconds to start, so that the tests of one binary share one, each with a virtual
//! host of its own. A test that stops, kills or configures the broker starts its own.
//!
//! The kit asks the management API and the broker's own Erlang: no test of the product depends on the
//! product's AMQP.

mod http;
mod vhost;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

pub use self::http::Api;
pub use self::vhost::Vhost;

use super::ports::free_port;
use super::{Certificates, LOOK, PATIENCE, can_run, wait_until};

/// Folder of the broker's own scripts in Debian. Those in `/usr/sbin` become the user `rabbitmq`.
/// `TAEL_TEST_RABBITMQ` names another one.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

/// Maximum number of attempts to start a broker. Each chooses other ports.
const MAX_STARTS: u32 = 3;

/// Interval between two statistics of the broker, ms; by default five seconds.
const STATISTICS: u32 = 1000;

/// A broker. It ends with the value, and with the process of the test, however that ends.
pub struct Rabbit {
    dir: PathBuf,
    guard: Child,
    /// Standard input of the guard, which ends the broker when it is closed.
    orders: Mutex<Option<ChildStdin>>,
    ports: Ports,
    password: String,
    pub certificates: Option<Certificates>,
}

/// Ports of one broker on loopback.
#[derive(Debug, Clone, Copy)]
struct Ports {
    amqp: u16,
    amqps: u16,
    management: u16,
    cluster: u16,
    epmd: u16,
}

impl Ports {
    fn choose() -> Self {
        Self {
            amqp: free_port(),
            amqps: free_port(),
            management: free_port(),
            cluster: free_port(),
            epmd: free_port(),
        }
    }
}

fn scripts() -> PathBuf {
    std::env::var_os("TAEL_TEST_RABBITMQ").map_or_else(|| SCRIPTS.into(), PathBuf::from)
}

/// Returns whether a broker can be started. In CI it must.
fn installed() -> bool {
    can_run(
        scripts().join("rabbitmq-server").exists(),
        "rabbitmq-server (apt-get install rabbitmq-server)",
        "a queue of RabbitMQ",
    )
}

impl Rabbit {
    /// Returns the broker that all tests of this binary share; `None` if none is installed.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Rabbit> = OnceLock::new();
        installed().then(|| SHARED.get_or_init(|| Self::start("", false)))
    }

    /// Starts a broker for one test; `None` if none is installed.
    pub fn own() -> Option<Self> {
        Self::own_with("", false)
    }

    /// Starts a broker for one test with these lines added to its `rabbitmq.conf`, and with TLS on a
    /// port of its own if so asked; `None` if none is installed.
    pub fn own_with(conf: &str, tls: bool) -> Option<Self> {
        installed().then(|| Self::start(conf, tls))
    }

    fn start(conf: &str, tls: bool) -> Self {
        let mut failure = String::new();
        for _ in 0..MAX_STARTS {
            match Self::try_start(conf, tls) {
                Ok(rabbit) => return rabbit,
                Err(text) => failure = text,
            }
        }
        panic!("RabbitMQ does not start: {failure}");
    }

    fn try_start(conf: &str, tls: bool) -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("tempdir").keep();
        let ports = Ports::choose();
        let password = ulid::Ulid::generate().to_string();
        let certificates = tls.then(|| Certificates::make(&dir));
        let mut text = format!(
            "listeners.tcp.1 = 127.0.0.1:{}\n\
             management.tcp.ip = 127.0.0.1\n\
             management.tcp.port = {}\n\
             default_user = tael\n\
             default_pass = {password}\n\
             disk_free_limit.absolute = 50MB\n\
             collect_statistics_interval = {STATISTICS}\n",
            ports.amqp, ports.management
        );
        if let Some(certificates) = &certificates {
            text += &format!(
                "listeners.ssl.1 = 127.0.0.1:{}\n\
                 ssl_options.cacertfile = {}\n\
                 ssl_options.certfile = {}\n\
                 ssl_options.keyfile = {}\n",
                ports.amqps,
                certificates.path("ca.pem"),
                certificates.path("server.pem"),
                certificates.path("server.key")
            );
        }
        let write = |name: &str, text: String| fs::write(dir.join(name), text).expect(name);
        write("rabbitmq.conf", text + conf);
        write("plugins", "[rabbitmq_management].\n".to_owned());
        let socket = format!("Path = \"{}\".\n", dir.join("desk").display());
        write("desk.erl", socket + include_str!("desk.erl"));
        write("guard.sh", include_str!("guard.sh").to_owned());
        private_file(&dir.join("password"), &password);
        let mut guard = guard(&dir, ports).spawn().expect("sh");
        let orders = Mutex::new(guard.stdin.take());
        let rabbit = Self {
            dir,
            guard,
            orders,
            ports,
            password,
            certificates,
        };
        rabbit.up()?;
        Ok(rabbit)
    }

    /// Starts it, and waits until it can be used.
    fn up(&self) -> Result<(), String> {
        let _ = fs::remove_file(self.dir.join("ended"));
        let mut orders = self.orders();
        let stdin = orders.as_mut().expect("guard");
        stdin.write_all(b"up\n").expect("guard");
        drop(orders);
        let deadline = Instant::now() + PATIENCE;
        while !self.is_up() {
            let log = || fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            if self.has_ended() {
                return Err(format!("it has ended: {}", log()));
            }
            if Instant::now() > deadline {
                return Err(format!("it takes too long: {}", log()));
            }
            std::thread::sleep(LOOK * 5);
        }
        Ok(())
    }

    fn is_up(&self) -> bool {
        let listens = |port| TcpStream::connect(("127.0.0.1", port)).is_ok();
        // Listeners for clients come last, after those of plugins.
        let ports = [self.ports.amqp, self.ports.amqps];
        ports[..1 + usize::from(self.certificates.is_some())]
            .iter()
            .all(|port| listens(*port))
            && self
                .api()
                .ask("GET", "overview", &Value::Null)
                .is_ok_and(|(code, _)| code == 200)
            && self.try_eval("rabbit:is_running().") == Ok(true.into())
    }

    fn has_ended(&self) -> bool {
        self.dir.join("ended").exists()
    }

    fn orders(&self) -> MutexGuard<'_, Option<ChildStdin>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- Where it is ---

    /// Returns its port of AMQP.
    pub fn port(&self) -> u16 {
        self.ports.amqp
    }

    /// Returns its port of AMQP over TLS.
    pub fn tls_port(&self) -> u16 {
        self.ports.amqps
    }

    /// Returns the management API, asked as the administrator.
    pub fn api(&self) -> Api {
        Api {
            port: self.ports.management,
            user: "tael".to_owned(),
            password: self.password.clone(),
        }
    }

    /// Returns the path of a file with the password of the administrator `tael`.
    pub fn password_file(&self) -> String {
        let path = self.dir.join("password");
        path.to_str().expect("path").to_owned()
    }

    /// Returns the password of the administrator `tael`.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Creates a virtual host. Its name has a slash, which URLs must escape.
    #[track_caller]
    pub fn vhost(&self) -> Vhost<'_> {
        Vhost::create(self)
    }

    /// Returns the log of the broker.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("logs/tael@localhost.log")).unwrap_or_default()
    }

    // --- Its life ---

    fn pid(&self) -> Pid {
        let text = fs::read_to_string(self.dir.join("pid")).expect("pid");
        Pid::from_raw(text.trim().parse().expect("pid"))
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("signal");
    }

    /// Kills it with SIGKILL.
    #[track_caller]
    pub fn kill9(&self) {
        self.signal(Signal::SIGKILL);
        wait_until("the broker is dead", || self.has_ended());
    }

    /// Stops it in order, which takes some seconds: clients are told.
    #[track_caller]
    pub fn shut_down(&self) {
        self.signal(Signal::SIGTERM);
        wait_until("the broker has stopped", || self.has_ended());
    }

    /// Starts it again on the same ports, after [`Self::kill9`] or [`Self::shut_down`].
    #[track_caller]
    pub fn restart(&self) {
        let up = self.up();
        assert!(up.is_ok(), "RabbitMQ does not start again: {up:?}");
    }

    /// Freezes it with SIGSTOP.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on after [`Self::freeze`].
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    // --- Its settings ---

    /// Evaluates Erlang expressions in the broker, and returns the last value as JSON. What JSON
    /// cannot say comes as text.
    #[track_caller]
    pub fn eval(&self, expressions: &str) -> Value {
        self.try_eval(expressions)
            .unwrap_or_else(|e| panic!("{expressions}: {e}"))
    }

    fn try_eval(&self, expressions: &str) -> Result<Value, String> {
        let ask = || {
            let mut stream = UnixStream::connect(self.dir.join("desk"))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let size = u32::try_from(expressions.len()).expect("size");
            stream.write_all(&size.to_be_bytes())?;
            stream.write_all(expressions.as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().map_err(|e: std::io::Error| e.to_string())?;
        let text = String::from_utf8_lossy(answer.get(4..).unwrap_or_default());
        match text.split_at_checked(1) {
            Some(("+", value)) => serde_json::from_str(value).map_err(|e| e.to_string()),
            _ => Err(text.into_owned()),
        }
    }

    /// Sets the time within which a consumer must acknowledge, checked every `timeout` / 4 on channels
    /// that are opened from now on.
    pub fn set_consumer_timeout(&self, timeout: Duration) {
        let timeout = timeout.as_millis();
        self.eval(&format!(
            "application:set_env(rabbit, consumer_timeout, {timeout}), \
             application:set_env(rabbit, channel_tick_interval, {}).",
            timeout / 4
        ));
    }

    /// Raises the memory alarm, which blocks publishers, or ends it.
    pub fn memory_alarm(&self, on: bool) {
        let alarm = "{resource_limit, memory, node()}";
        self.eval(&if on {
            format!("rabbit_alarm:set_alarm({{{alarm}, []}}).")
        } else {
            format!("rabbit_alarm:clear_alarm({alarm}).")
        });
    }

    /// Creates a user that may do nothing, with the same password as the administrator.
    #[track_caller]
    fn add_user(&self, name: &str) {
        let body = json!({"password": self.password, "tags": ""});
        self.done("PUT", &format!("users/{name}"), &body);
    }

    /// Sends a request to the management API, which must succeed, and returns its answer.
    #[track_caller]
    pub fn done(&self, method: &str, path: &str, body: &Value) -> Value {
        let (code, answer) = self.api().ask(method, path, body).expect(path);
        assert!(
            (200..300).contains(&code),
            "{method} {path}: {code} {answer}"
        );
        answer
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        drop(self.orders().take());
        let _ = self.guard.wait();
    }
}

/// Returns the command of the guard, which runs the broker.
fn guard(dir: &Path, ports: Ports) -> Command {
    let path = |name: &str| dir.join(name);
    let log = fs::File::create(path("log")).expect("log");
    let mut command = Command::new("sh");
    command
        .arg("guard.sh")
        .arg(scripts().join("rabbitmq-server"))
        .current_dir(dir)
        // An interrupt from the terminal must not end the guard before it has ended the broker.
        .process_group(0)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LANG", "C.UTF-8")
        // The cookie of Erlang lies there.
        .env("HOME", dir)
        .env("RABBITMQ_NODENAME", "tael@localhost")
        .env("RABBITMQ_MNESIA_BASE", path("data"))
        .env("RABBITMQ_LOG_BASE", path("logs"))
        .env("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", path("plugins"))
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_DIST_PORT", ports.cluster.to_string())
        .env("ERL_EPMD_PORT", ports.epmd.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        // The script becomes the broker, instead of waiting for it.
        .env("RUNNING_UNDER_SYSTEMD", "true")
        // One scheduler that does not spin: tests have few processors. By default quorum queues count
        // every five seconds, as statistics do.
        .env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            format!(
                "-start_epmd false -kernel inet_dist_use_interface {{127,0,0,1}} +S 1:1 +sbwt none \
                 -rabbit quorum_tick_interval {STATISTICS} -eval file:eval(\"{}\")",
                path("desk.erl").display()
            ),
        )
        .stdin(Stdio::piped())
        .stdout(log.try_clone().expect("log"))
        .stderr(log);
    command
}

/// Writes a file that only its owner may read.
fn private_file(path: &Path, text: &str) {
    let mut options = fs::OpenOptions::new();
    let file = options.create_new(true).write(true).mode(0o600).open(path);
    file.expect("file")
        .write_all(text.as_bytes())
        .expect("write");
}
