//! Brokers: the embedded one, or mosquitto.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ports::free_port;
use super::{Certificates, binary, wait_until};

/// Set-up of a broker.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Sessions and messages survive a restart.
    pub persistent: bool,
    /// Only `ann` may connect, with this password.
    pub password: Option<String>,
    /// TLS, with required client certificates.
    pub tls: bool,
    /// Access rules, as mosquitto reads them: the broker is mosquitto then.
    pub rules: Option<&'static str>,
    /// Maximum size of a packet, bytes: the broker is mosquitto then.
    pub max_packet: Option<u32>,
}

pub struct Broker {
    dir: PathBuf,
    setup: Setup,
    port: u16,
    child: Option<Child>,
    pub certificates: Option<Certificates>,
}

/// Returns whether the suite runs against mosquitto.
pub fn is_mosquitto() -> bool {
    match std::env::var("TAEL_TEST_BROKER").as_deref() {
        Ok("mosquitto") => true,
        Ok("embedded") | Err(_) => false,
        Ok(other) => panic!("TAEL_TEST_BROKER={other}: embedded or mosquitto"),
    }
}

/// Appends the name of this test to the file that `TAEL_TEST_BROKER_USED` names. `.ci/run` runs these
/// tests again, against mosquitto. The thread of a test has the name of the test.
fn note_use() {
    let Some(path) = std::env::var_os("TAEL_TEST_BROKER_USED") else {
        return;
    };
    let thread = std::thread::current();
    let name = thread.name().filter(|name| *name != "main");
    let name = name.expect("a broker starts in a test's own thread, with RUST_TEST_THREADS > 1");
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .expect("TAEL_TEST_BROKER_USED");
    // One write for each line: lines of other tests do not mix with it.
    file.write_all(format!("{name}\n").as_bytes())
        .expect("TAEL_TEST_BROKER_USED");
}

impl Broker {
    pub fn start(dir: &Path, setup: Setup) -> Self {
        let mut broker = Self {
            dir: dir.join("broker"),
            certificates: setup.tls.then(|| Certificates::make(dir)),
            setup,
            port: 0,
            child: None,
        };
        note_use();
        fs::create_dir_all(&broker.dir).expect("broker dir");
        // A program that is not a test may take a port.
        for _ in 0..20 {
            broker.port = free_port();
            if broker.up() {
                return broker;
            }
        }
        panic!(
            "no broker: {}",
            fs::read_to_string(broker.dir.join("log")).unwrap_or_default()
        );
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the shared options for this broker.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let mut list = vec![
            ("TAEL_HOST", "127.0.0.1".to_owned()),
            ("TAEL_PORT", self.port.to_string()),
        ];
        if let Some(password) = &self.setup.password {
            list.push(("TAEL_USERNAME", "ann".into()));
            list.push(("TAEL_PASSWORD", password.clone()));
        }
        if let Some(certificates) = &self.certificates {
            list[0].1 = "localhost".into();
            list.push(("TAEL_CAFILE", certificates.path("ca.pem")));
            list.push(("TAEL_CERT", certificates.path("client.pem")));
            list.push(("TAEL_KEY", certificates.path("client.key")));
        }
        list
    }

    /// Restarts it on the same port.
    pub fn restart(&mut self) {
        wait_until("the broker is up again", || self.up());
    }

    fn is_mosquitto(&self) -> bool {
        is_mosquitto() || self.setup.rules.is_some() || self.setup.max_packet.is_some()
    }

    /// Gives mosquitto other access rules.
    pub fn rule(&self, rules: &str) {
        fs::write(self.dir.join("rules"), rules).expect("rules");
        self.signal(Signal::SIGHUP);
    }

    fn up(&mut self) -> bool {
        if self.is_mosquitto() {
            self.mosquitto()
        } else {
            self.embedded()
        }
    }

    fn embedded(&mut self) -> bool {
        let mut command = Command::new(binary("tael"));
        command
            .args([
                "broker",
                "--print-url",
                // As much as mosquitto takes, which is more than any test sends.
                "--max-packet",
                "16777216",
                "--listen",
                &format!("127.0.0.1:{}", self.port),
            ])
            .env("TAEL_CONFIG", "/dev/null")
            .env("TAEL_LOG_TARGET", "stderr")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(self.log());
        if self.setup.persistent {
            command.arg("--data").arg(self.dir.join("data"));
        }
        if let Some(password) = &self.setup.password {
            let users = self.dir.join("users");
            fs::write(&users, format!("ann:{password}\n")).expect("users");
            command.arg("--users").arg(users);
        }
        if let Some(certificates) = &self.certificates {
            command.args(["--cafile", &certificates.path("ca.pem")]);
            command.args(["--cert", &certificates.path("server.pem")]);
            command.args(["--key", &certificates.path("server.key")]);
        }
        let mut child = command.spawn().expect("tael broker");
        let mut url = String::new();
        let stdout = child.stdout.take().expect("stdout");
        BufReader::new(stdout).read_line(&mut url).expect("url");
        let port = url
            .trim()
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        if let Some(port) = port {
            self.port = port;
            self.child = Some(child);
        } else {
            let _ = child.kill();
            let _ = child.wait();
        }
        port.is_some()
    }

    fn mosquitto(&mut self) -> bool {
        let mut text = format!(
            "listener {} 127.0.0.1\nmax_queued_messages 100000\nmax_inflight_messages 100\n",
            self.port
        );
        if let Some(size) = self.setup.max_packet {
            text += &format!("max_packet_size {size}\n");
        }
        if self.setup.persistent {
            let data = self.dir.join("data");
            fs::create_dir_all(&data).expect("data");
            text += &format!(
                "persistence true\npersistence_location {}/\n",
                data.display()
            );
            // It saves after every change, as docs/broker.md recommends for small brokers.
            text += "autosave_on_changes true\nautosave_interval 1\n";
        }
        if let Some(password) = &self.setup.password {
            let users = self.dir.join("users");
            let made = Command::new("mosquitto_passwd")
                .args(["-b", "-c"])
                .arg(&users)
                .args(["ann", password])
                .status();
            assert!(made.expect("mosquitto_passwd").success());
            text += &format!("allow_anonymous false\npassword_file {}\n", users.display());
        } else {
            text += "allow_anonymous true\n";
        }
        if let Some(certificates) = &self.certificates {
            text += &format!(
                "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
                certificates.path("ca.pem"),
                certificates.path("server.pem"),
                certificates.path("server.key")
            );
        }
        if let Some(rules) = self.setup.rules {
            let file = self.dir.join("rules");
            fs::write(&file, rules).expect("rules");
            text += &format!("acl_file {}\n", file.display());
        }
        if nix::unistd::Uid::effective().is_root() {
            // Otherwise it drops the right to read its own files.
            text += "user root\n";
        }
        let config = self.dir.join("mosquitto.conf");
        fs::write(&config, text).expect("config");
        let mut child = Command::new("mosquitto")
            .arg("-c")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(self.log())
            .stderr(self.log())
            .spawn()
            .expect("mosquitto: is it installed?");
        let mut up = false;
        wait_until("mosquitto is up or gone", || {
            up = TcpStream::connect(("127.0.0.1", self.port)).is_ok();
            up || child.try_wait().expect("wait").is_some()
        });
        // Another process may listen there instead.
        up = up && child.try_wait().expect("wait").is_none();
        if up {
            self.child = Some(child);
        }
        up
    }

    fn log(&self) -> Stdio {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"));
        Stdio::from(log.expect("log"))
    }

    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("broker runs");
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("signal");
    }

    /// Stops it with SIGTERM.
    pub fn stop(&mut self) {
        // mosquitto forgets one that comes between its first connections and its loop.
        wait_until("the broker has stopped", || {
            self.signal(Signal::SIGTERM);
            let child = self.child.as_mut().expect("broker runs");
            child.try_wait().expect("wait").is_some()
        });
        self.child = None;
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child
            .take()
            .expect("broker runs")
            .wait()
            .expect("wait");
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
