//! A virtual host: its queues, messages, users and connections.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::{PATIENCE, Process, World, can_run, wait_until};
use super::Rabbit;
use super::http::{base64, escaped, from_base64};

/// A virtual host of one test. It is deleted with the value.
pub struct Vhost<'a> {
    pub rabbit: &'a Rabbit,
    pub name: String,
}

/// Messages of a queue: those that wait, and those that consumers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub ready: u64,
    pub unacked: u64,
}

/// A message that was taken from a queue.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub body: Vec<u8>,
    pub redelivered: bool,
    /// Properties of AMQP by their names, with `headers` as an object.
    pub properties: Value,
    pub exchange: String,
    pub key: String,
}

impl<'a> Vhost<'a> {
    #[track_caller]
    pub(super) fn create(rabbit: &'a Rabbit) -> Self {
        let name = format!("lab/{}", ulid::Ulid::generate());
        let vhost = Self { rabbit, name };
        rabbit.done("PUT", &vhost.path("vhosts", ""), &Value::Null);
        vhost.permit("tael", [".*"; 3]);
        vhost
    }

    /// Returns `KIND/VHOST/NAME` as a path of the management API.
    fn path(&self, kind: &str, name: &str) -> String {
        let path = format!("{kind}/{}/{}", escaped(&self.name), escaped(name));
        path.trim_end_matches('/').to_owned()
    }

    // --- Who and where ---

    /// Returns the URL of a queue for the administrator, without the password.
    pub fn url(&self, queue: &str) -> String {
        self.url_at(self.rabbit.port(), "tael", queue)
    }

    /// Returns the URL of a queue for `user`, at a port of loopback.
    pub fn url_at(&self, port: u16, user: &str, queue: &str) -> String {
        let (vhost, queue) = (escaped(&self.name), escaped(queue));
        format!("amqp://{user}@127.0.0.1:{port}/{vhost}/{queue}")
    }

    /// Returns the URL of this virtual host with user and password, as other clients take it.
    pub fn open_url(&self) -> String {
        let (port, vhost) = (self.rabbit.port(), escaped(&self.name));
        let password = self.rabbit.password();
        format!("amqp://tael:{password}@127.0.0.1:{port}/{vhost}")
    }

    /// Creates a user with the rights to configure, write and read what these patterns match, and
    /// returns its name. Its password is the administrator's.
    #[track_caller]
    pub fn user(&self, rights: [&str; 3]) -> String {
        let name = ulid::Ulid::generate().to_string();
        self.rabbit.add_user(&name);
        self.permit(&name, rights);
        name
    }

    #[track_caller]
    fn permit(&self, user: &str, [configure, write, read]: [&str; 3]) {
        let rights = json!({"configure": configure, "write": write, "read": read});
        self.rabbit
            .done("PUT", &self.path("permissions", user), &rights);
    }

    // --- Queues ---

    /// Declares a durable queue without arguments, which is a classic one, as OODT does.
    #[track_caller]
    pub fn declare(&self, queue: &str) {
        self.declare_with(queue, &json!({}));
    }

    /// Declares a durable quorum queue.
    #[track_caller]
    pub fn declare_quorum(&self, queue: &str) {
        self.declare_with(queue, &json!({"x-queue-type": "quorum"}));
    }

    /// Declares a durable queue with these arguments.
    #[track_caller]
    pub fn declare_with(&self, queue: &str, arguments: &Value) {
        let body = json!({"durable": true, "auto_delete": false, "arguments": arguments});
        self.rabbit.done("PUT", &self.path("queues", queue), &body);
        // RabbitMQ 3.10 writes the name of a new quorum queue to its disk after half a second. Killed
        // before, it comes back without the messages of the queue, confirmed or not.
        self.rabbit
            .eval("[catch dets:sync(Table) || Table <- dets:all()], ok.");
    }

    /// Declares a durable direct exchange, and binds a queue to it by the queue's name.
    #[track_caller]
    pub fn bind(&self, exchange: &str, queue: &str) {
        let body = json!({"type": "direct", "durable": true});
        let rabbit = self.rabbit;
        rabbit.done("PUT", &self.path("exchanges", exchange), &body);
        let vhost = escaped(&self.name);
        let path = format!(
            "bindings/{vhost}/e/{}/q/{}",
            escaped(exchange),
            escaped(queue)
        );
        rabbit.done("POST", &path, &json!({"routing_key": queue}));
    }

    #[track_caller]
    pub fn delete(&self, queue: &str) {
        self.rabbit
            .done("DELETE", &self.path("queues", queue), &Value::Null);
    }

    /// Removes the messages that wait in a queue.
    #[track_caller]
    pub fn purge(&self, queue: &str) {
        let path = self.path("queues", queue) + "/contents";
        self.rabbit.done("DELETE", &path, &Value::Null);
    }

    /// Returns what the management API says of a queue; `None` if there is none. Counts in it are late.
    #[track_caller]
    pub fn queue(&self, queue: &str) -> Option<Value> {
        let path = self.path("queues", queue);
        let answer = self.rabbit.api().ask("GET", &path, &Value::Null);
        match answer.expect("management") {
            (404, _) => None,
            (200, queue) => Some(queue),
            (code, body) => panic!("{path}: {code} {body}"),
        }
    }

    /// Sets the policy of a queue.
    #[track_caller]
    pub fn policy(&self, queue: &str, definition: &Value) {
        let body = json!({"pattern": format!("^{queue}$"), "definition": definition, "apply-to": "queues"});
        self.rabbit
            .done("PUT", &self.path("policies", queue), &body);
        wait_until("the policy is in force", || {
            self.queue(queue).is_some_and(|q| q["policy"] == *queue)
        });
    }

    /// Returns the messages of a queue as they are now. The queue must be there.
    #[track_caller]
    pub fn counts(&self, queue: &str) -> Counts {
        let (counts, text) = self.try_counts(queue);
        counts.unwrap_or_else(|| panic!("{queue}: {text}"))
    }

    fn try_counts(&self, queue: &str) -> (Option<Counts>, String) {
        // `rabbitmqctl list_queues` shows what a quorum queue has last counted.
        let counts = self.rabbit.try_eval(&format!(
            "{{ok, Q}} = {}, \
             case amqqueue:get_type(Q) of \
                 rabbit_quorum_queue -> \
                     Ask = fun(F) -> {{ok, {{_, N}}, _}} = ra:local_query(amqqueue:get_pid(Q), F), N end, \
                     [Ask(fun rabbit_fifo:query_messages_ready/1), \
                      Ask(fun rabbit_fifo:query_messages_checked_out/1)]; \
                 _ -> \
                     Items = rabbit_amqqueue:info(Q, [messages_ready, messages_unacknowledged]), \
                     [N || {{_, N}} <- Items] \
             end.",
            self.lookup(queue)
        ));
        let numbers = counts.as_ref().ok().and_then(|c| {
            Some(Counts {
                ready: c[0].as_u64()?,
                unacked: c[1].as_u64()?,
            })
        });
        (numbers, format!("{counts:?}"))
    }

    /// Waits until so many messages wait in a queue, and so many are held by consumers.
    #[track_caller]
    pub fn wait_counts(&self, queue: &str, ready: u64, unacked: u64) {
        let wanted = Counts { ready, unacked };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (counts, text) = self.try_counts(queue);
            if counts == Some(wanted) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{queue} has {text} instead of {wanted:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns the Erlang that looks a queue up.
    fn lookup(&self, queue: &str) -> String {
        let (vhost, queue) = (binary(&self.name), binary(queue));
        format!("rabbit_amqqueue:lookup(rabbit_misc:r({vhost}, queue, {queue}))")
    }

    /// Returns the consumers of a queue: tag, prefetch and arguments of each.
    #[track_caller]
    pub fn consumers(&self, queue: &str) -> Vec<Value> {
        let consumers = self.rabbit.eval(&format!(
            "{{ok, Q}} = {}, \
             [#{{tag => element(2, C), prefetch => element(4, C), \
                 arguments => maps:from_list([{{K, V}} || {{K, _, V}} <- element(7, C)])}} \
              || C <- rabbit_amqqueue:consumers(Q)].",
            self.lookup(queue)
        ));
        consumers.as_array().expect("consumers").clone()
    }

    // --- Messages ---

    /// Publishes a persistent message to a queue, which must be there, with properties of AMQP.
    #[track_caller]
    pub fn publish(&self, queue: &str, body: impl AsRef<[u8]>, properties: &Value) {
        let routed = self.publish_to("amq.default", queue, body.as_ref(), properties);
        assert!(routed, "there is no queue {queue}");
    }

    /// Publishes a persistent message to an exchange. Returns whether it has come to a queue.
    #[track_caller]
    pub fn publish_to(&self, exchange: &str, key: &str, body: &[u8], properties: &Value) -> bool {
        let mut all = json!({"delivery_mode": 2});
        let properties = properties.as_object().expect("properties").clone();
        all.as_object_mut().expect("object").extend(properties);
        let message = json!({
            "routing_key": key,
            "properties": all,
            "payload": base64(body),
            "payload_encoding": "base64",
        });
        let path = self.path("exchanges", exchange) + "/publish";
        self.rabbit.done("POST", &path, &message)["routed"] == true
    }

    /// Takes up to `count` messages from a queue and acknowledges them.
    #[track_caller]
    pub fn take(&self, queue: &str, count: u32) -> Vec<Delivery> {
        self.get(queue, count, "ack_requeue_false")
    }

    /// Returns up to `count` messages of a queue, and puts them back: they are redelivered later.
    #[track_caller]
    pub fn peek(&self, queue: &str, count: u32) -> Vec<Delivery> {
        self.get(queue, count, "ack_requeue_true")
    }

    #[track_caller]
    fn get(&self, queue: &str, count: u32, mode: &str) -> Vec<Delivery> {
        let path = self.path("queues", queue) + "/get";
        let body = json!({"count": count, "ackmode": mode, "encoding": "base64"});
        let answer = self.rabbit.done("POST", &path, &body);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let deliveries = answer.as_array().expect("messages").iter();
        deliveries
            .map(|message| Delivery {
                body: from_base64(message["payload"].as_str().expect("payload")),
                redelivered: message["redelivered"] == true,
                properties: message["properties"].clone(),
                exchange: text(&message["exchange"]),
                key: text(&message["routing_key"]),
            })
            .collect()
    }

    // --- Clients ---

    /// Returns the client `who` that takes from the queue at `url`. A message that comes again, and that
    /// it does not know, waits there for 1.5 s.
    pub fn worker_command(
        &self,
        world: &World,
        who: &str,
        url: &str,
        arguments: &[&str],
    ) -> Command {
        let mut command = world.command("tael-client");
        command
            .args(["--who", who, "--root", "lab", "--queue", url])
            .args(["--queue-password-file", &self.rabbit.password_file()])
            .args(arguments)
            .env("TAEL_TEST_QUEUE_GRACE", "1500")
            .env("OUT", world.dir.path());
        command
    }

    /// Starts the client `who`, and returns when it takes from the queue.
    #[track_caller]
    pub fn worker(&self, world: &World, who: &str, queue: &str, arguments: &[&str]) -> Process {
        let command = self.worker_command(world, who, &self.url(queue), arguments);
        let worker = world.online(who, command);
        world.wait_report(who, "/queues/0/online", true);
        worker
    }

    // --- Other programs ---

    /// Returns the command of a script of `tests/interop/queues`, pointed at it; `None` if pika
    /// is not there. In CI it must.
    pub fn script(&self, name: &str) -> Option<Command> {
        let installed = concat!(env!("CARGO_TARGET_TMPDIR"), "/../pika/bin/python");
        let python = if Path::new(installed).exists() {
            installed
        } else {
            "python3"
        };
        let output = Command::new(python).args(["-c", "import pika"]).output();
        let there = output.is_ok_and(|output| output.status.success());
        if !can_run(there, "pika (.ci/rabbitmq)", "a client in Python") {
            return None;
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/queues");
        let mut command = Command::new(python);
        command
            .arg("-u")
            .arg(path.join(name))
            .env("RABBITMQ_USER_URL", self.open_url())
            .stdin(Stdio::null());
        Some(command)
    }

    // --- Connections ---

    /// Returns the connections of clients, as they are now: `user`, `name` that the client gives
    /// itself, `heartbeat` (s), `channels`.
    #[track_caller]
    pub fn connections(&self) -> Vec<Value> {
        let connections = self.rabbit.eval(&format!(
            "{} [#{{user => G(user, C), heartbeat => G(timeout, C), channels => G(channels, C), \
                    name => case lists:keyfind(<<\"connection_name\">>, 1, G(client_properties, C)) of \
                        {{_, _, Name}} -> Name; false -> null end}} || C <- All].",
            self.connected()
        ));
        connections.as_array().expect("connections").clone()
    }

    /// Has the broker close all connections (320 CONNECTION_FORCED), and returns how many there were.
    #[track_caller]
    pub fn close_connections(&self) -> u64 {
        let closed = self.rabbit.eval(&format!(
            "{} length([rabbit_networking:close_connection(G(pid, C), \"closed by a test\") || C <- All]).",
            self.connected()
        ));
        closed.as_u64().expect("number")
    }

    /// Returns the Erlang that binds `All` to the connections, and `G` to a function that reads them.
    fn connected(&self) -> String {
        format!(
            "G = fun proplists:get_value/2, \
             Items = [pid, user, vhost, timeout, channels, client_properties], \
             All = [C || C <- rabbit_networking:connection_info_all(Items), G(vhost, C) =:= {}],",
            binary(&self.name)
        )
    }
}

impl Drop for Vhost<'_> {
    fn drop(&mut self) {
        // The broker may be gone.
        let path = self.path("vhosts", "");
        let _ = self.rabbit.api().ask("DELETE", &path, &Value::Null);
    }
}

/// Returns `text` as a binary in Erlang.
fn binary(text: &str) -> String {
    format!("<<{text:?}/utf8>>")
}
