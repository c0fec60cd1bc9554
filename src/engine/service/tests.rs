//! The loop in this process: a source that the test plays offers events to a client with a real
//! ledger and scripted runners, and no broker.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::stat::Mode;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::*;
use crate::engine::commit::receipt::script::Number;
use crate::engine::control::actions::{Demand, Request};
use crate::engine::intake::offer::{Offer, Subject};
use crate::error::Error;
use crate::model::command::Command;
use crate::model::condition::Condition;
use crate::model::env::Export;
use crate::model::message::{Delivery, Properties, property};
use crate::model::outcome::outcome_text;
use crate::model::policy::{Overlap, Policy, Retries};
use crate::model::signature::Keys;
use crate::model::spec::Spec;
use crate::model::topic::Filter;
use crate::model::trigger::Trigger;
use crate::model::triggers::Triggers;
use crate::model::unit::{End, Outcome, State, Unit};
use crate::model::work::{Work, WorkTypes};
use crate::net::options::{BrokerOptions, QueueAccess};
use crate::os::host::new_id;
use crate::os::signals;
use crate::store::ledger::{EventKey, Op, Reader};

/// Longest wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    dir: tempfile::TempDir,
    /// Scripted runners wait at the other end, and leave when this one is closed.
    gate: File,
    _broker: TcpListener,
    service: Service,
    reload: Reload,
    offers: mpsc::UnboundedSender<Offer>,
    spent: mpsc::UnboundedReceiver<(u32, String)>,
    spend: mpsc::UnboundedSender<(u32, String)>,
}

fn trigger(policy: Policy, retries: Retries, absent: Option<Duration>) -> Trigger {
    Trigger {
        name: "t".into(),
        filters: vec![Filter::new("lab/seq/status").expect("filter")],
        conditions: vec![Condition::parse("status=finished").expect("condition")],
        export: Export::new(None, Vec::new()).expect("export"),
        passthrough: Vec::new(),
        queue: None,
        accept_retained: false,
        reply: None,
        absent,
        policy,
        spec: Arc::new(Spec {
            retries,
            ..Spec::new("t", Command::Direct(vec!["true".into()]))
        }),
    }
}

fn config(trigger: Trigger, port: u16) -> Config {
    Config {
        who: "p".into(),
        root: "lab".into(),
        host: "h".into(),
        reply_to: Vec::new(),
        answers_to: Vec::new(),
        triggers: Triggers::new(vec![trigger]),
        work: WorkTypes::default(),
        verify: Keys::default(),
        signer: None,
        max_payload: 1 << 20,
        max_output: 0,
        keep: Duration::from_secs(3600),
        keep_units: 1000,
        max_state: 0,
        stop_units: false,
        control_socket: None,
        submit_only: false,
        receptor_version: String::new(),
        metrics: None,
        broker: BrokerOptions {
            host: "127.0.0.1".into(),
            port,
            others: Vec::new(),
            tls: None,
            username: None,
            password: None,
            client_id: new_id(),
            keep_alive: Duration::from_secs(60),
        },
        queues: QueueAccess::default(),
        chosen_id: true,
    }
}

/// A message on the trigger's topic, called `id`.
fn message(id: &str, payload: &str) -> Subject {
    Subject::Message(Delivery {
        topic: Bytes::from_static(b"lab/seq/status"),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        retained: false,
        duplicate: false,
        packet: 0,
        properties: Properties {
            user: vec![(property::ID.to_owned(), id.to_owned())],
            ..Properties::default()
        },
    })
}

const FINISHED: &str = r#"{"status":"finished"}"#;

impl Bench {
    async fn new(trigger: Trigger) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let home = Home::acquire(dir.path(), "p").expect("home").expect("free");
        let runners = dir.path().join("p").join(RUNNERS);
        let gate = runners.join("gate");
        nix::unistd::mkfifo(&gate, Mode::S_IRWXU).expect("fifo");
        // Opened for both, so that neither end waits for the other (fifo(7)).
        let gate = File::options().read(true).write(true).open(gate);
        // A broker that never answers.
        let broker = TcpListener::bind(("127.0.0.1", 0)).expect("port");
        let port = broker.local_addr().expect("address").port();
        let config = config(trigger, port);
        let mut service = Service::open(config, home, Notify::from_environment())
            .await
            .expect("open");
        let runner = "src/engine/service/scripted-runner";
        let runner = Path::new(env!("CARGO_MANIFEST_DIR")).join(runner);
        service.client.work.play(runner);
        let (offers, script) = mpsc::unbounded_channel();
        service.client.intake.script = Some(script);
        let (spend, spent) = mpsc::unbounded_channel();
        let reload = Reload {
            requests: signals::reload().expect("signal"),
            read: Box::new(|| Err(Error::config("the test has none"))),
        };
        let bench = Self {
            dir,
            gate: gate.expect("gate"),
            _broker: broker,
            service,
            reload,
            offers,
            spent,
            spend,
        };
        bench.outcome(0);
        bench
    }

    fn runners(&self) -> PathBuf {
        self.dir.path().join("p").join(RUNNERS)
    }

    /// Lets each unit from now on end with `code`.
    fn outcome(&self, code: i32) {
        let outcome = Outcome {
            end: End::Exited(code),
            ..Outcome::interrupted(1)
        };
        let file = self.runners().join("outcome");
        std::fs::write(file, outcome_text(&outcome)).expect("write");
    }

    /// Lets the next unit end, once it has started.
    fn open_gate(&mut self) {
        self.gate.write_all(b"\n").expect("open the gate");
    }

    fn offer(&self, number: u32, at_end: bool, subject: Subject) {
        let receipt = Receipt::Script(Number {
            number,
            at_end,
            spent: self.spend.clone(),
        });
        let offer = Offer {
            subject,
            reply: None,
            receipt,
        };
        self.offers.send(offer).expect("offer");
    }

    /// The run that a request called `id` demands.
    fn request(&self, id: &str, payload: &str) -> Subject {
        let Subject::Message(mut delivery) = message(id, payload) else {
            panic!("a message");
        };
        let client = &self.service.client;
        delivery.topic = Bytes::from(client.pipeline.topics.control());
        let again = client.intake.redelivery.again();
        let mut request = Request::read(&client.pipeline, delivery, again).expect("request");
        let Demand::Run(subject) =
            request.demand(&client.pipeline, &mut Canceled::default(), || true)
        else {
            panic!("a run");
        };
        *subject
    }

    /// The same work in `lane`, each time.
    fn submission(&self, number: u32, lane: &str) -> Offer {
        let id = "01JBV7Y3ZK8Q5W2N4T6R9M1XCD".to_owned();
        let work = Work {
            kind: "t".into(),
            params: Vec::new(),
            submitter: "ann@host".into(),
            signed: false,
            file: None,
            delegation: None,
        };
        let unit = Unit {
            id: id.clone(),
            event: id.clone(),
            spec: Arc::new(Spec::new(lane, Command::Direct(vec!["true".into()]))),
            topic: format!("work/{lane}"),
            reason: work.to_string(),
            hops: 0,
            traceparent: None,
            attempt: 1,
            retry_of: None,
            due: 0,
            variables: Vec::new(),
            passthrough: serde_json::Map::new(),
            payload: Some(Bytes::from_static(b"payload")),
            reply: None,
            origin: None,
            work: Some(Arc::new(work)),
        };
        let key = EventKey {
            id: id.clone(),
            sender: Some(id),
            ..EventKey::default()
        };
        let receipt = Receipt::Script(Number {
            number,
            at_end: false,
            spent: self.spend.clone(),
        });
        Offer {
            subject: Subject::Submitted {
                key,
                unit: Arc::new(unit),
            },
            reply: None,
            receipt,
        }
    }

    /// The runners that have begun units, one for each.
    fn begun(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.runners().join("begun")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Runs the loop until `count` receipts are spent, and returns them.
    async fn receipts(&mut self, count: usize) -> Vec<(u32, String)> {
        let (mut list, spent) = (Vec::new(), &mut self.spent);
        let enough = async {
            while list.len() < count {
                list.push(spent.recv().await.expect("open"));
            }
        };
        let serve = self.service.serve(enough, &mut self.reload);
        let served = timeout(PATIENCE, serve).await;
        served.expect("in time").expect("serve");
        list
    }

    /// The one unit in the ledger that has not ended.
    fn unit(&self) -> String {
        let reader = &self.service.client.pipeline.reader;
        let page = |state| reader.live_page(state, 0).expect("page");
        let live = [State::Running, State::Pending].map(page).concat();
        let [record] = &live[..] else {
            panic!("one unit: {live:?}");
        };
        record.unit.id.clone()
    }

    /// Runs the loop until the ledger is as `wanted`.
    async fn until(&mut self, wanted: impl Fn(&Reader) -> bool) {
        let reader = Reader::open(&self.dir.path().join("p")).expect("reader");
        let there = async {
            while !wanted(&reader) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let serve = self.service.serve(there, &mut self.reload);
        let served = timeout(PATIENCE, serve).await;
        served.expect("in time").expect("serve");
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(test);
}

#[test]
fn a_receipt_comes_back_once_its_event_is_on_disk() {
    run(async {
        let mut bench = Bench::new(trigger(Policy::default(), Retries::default(), None)).await;
        bench.offer(1, false, message("A", FINISHED));
        assert_eq!(bench.receipts(1).await, [(1, "Accepted".to_owned())]);
        let reader = Reader::open(&bench.dir.path().join("p")).expect("reader");
        let totals = reader.totals().expect("totals");
        assert_eq!(totals.pending + totals.running, 1);

        bench.offer(2, false, message("B", "no json"));
        bench.offer(3, false, message("C", r#"{"status":"failed"}"#));
        let refused = |n| (n, "Refused".to_owned());
        // What is ignored leaves nothing in the ledger, and waits for nothing.
        let mut receipts = bench.receipts(2).await;
        receipts.sort();
        assert_eq!(receipts, [refused(2), refused(3)]);
        let counts = bench.service.client.intake.counts;
        assert_eq!((counts.accepted, counts.refused, counts.ignored), (1, 1, 1));
    });
}

#[test]
fn a_redelivery_of_a_running_unit_waits_with_it_for_its_end() {
    run(async {
        let mut bench = Bench::new(trigger(Policy::default(), Retries::default(), None)).await;
        bench.offer(1, true, message("A", FINISHED));
        bench
            .until(|r| r.totals().expect("totals").running == 1)
            .await;
        bench.offer(2, true, message("A", FINISHED));
        bench.offer(3, false, message("A", FINISHED));
        let [(3, duplicate)] = &bench.receipts(1).await[..] else {
            panic!("another receipt was spent first");
        };
        assert!(duplicate.starts_with("Duplicate(Some("), "{duplicate}");
        // The sentinel: every receipt spent before it would have come first.
        bench.offer(4, false, message("B", "no json"));
        assert_eq!(bench.receipts(1).await, [(4, "Refused".to_owned())]);

        bench.open_gate();
        let mut ended = bench.receipts(2).await;
        ended.sort();
        let end = |n| (n, "Ended".to_owned());
        assert_eq!(ended, [end(1), end(2)]);
        let counts = bench.service.client.intake.counts;
        assert_eq!((counts.accepted, counts.duplicates), (1, 2));

        // Its unit has ended already.
        bench.offer(5, true, message("A", FINISHED));
        assert_eq!(bench.receipts(1).await, [end(5)]);
    });
}

#[test]
fn a_receipt_waits_for_the_retries_of_its_unit() {
    run(async {
        let retries = Retries {
            limit: 1,
            ..Retries::default()
        };
        let mut bench = Bench::new(trigger(Policy::default(), retries, None)).await;
        bench.outcome(1);
        bench.offer(1, true, message("A", FINISHED));
        bench.open_gate();
        bench
            .until(|r| {
                let totals = r.totals().expect("totals");
                (totals.failed, totals.running) == (1, 1)
            })
            .await;
        bench.offer(2, false, message("B", "no json"));
        assert_eq!(bench.receipts(1).await, [(2, "Refused".to_owned())]);
        bench.open_gate();
        assert_eq!(bench.receipts(1).await, [(1, "Ended".to_owned())]);
    });
}

#[test]
fn a_unit_that_does_not_run_gives_its_receipt_back() {
    run(async {
        let policy = Policy {
            overlap: Overlap::Skip,
            ..Policy::default()
        };
        let mut bench = Bench::new(trigger(policy, Retries::default(), None)).await;
        bench.offer(1, true, message("A", FINISHED));
        bench
            .until(|r| r.totals().expect("totals").running == 1)
            .await;
        bench.offer(2, true, message("B", FINISHED));
        assert_eq!(bench.receipts(1).await, [(2, "Ended".to_owned())]);
        let reader = Reader::open(&bench.dir.path().join("p")).expect("reader");
        assert_eq!(reader.totals().expect("totals").canceled, 1);
    });
}

#[test]
fn silence_and_requests_come_through_the_door_of_messages() {
    run(async {
        let absent = Some(Duration::from_millis(50));
        let mut bench = Bench::new(trigger(Policy::default(), Retries::default(), absent)).await;
        // Without a broker its silence is unknown.
        bench.service.client.intake.silence.online(true);
        bench
            .until(|r| r.totals().expect("totals").running == 1)
            .await;
        bench.open_gate();
        bench
            .until(|r| r.totals().expect("totals").succeeded == 1)
            .await;
        assert_eq!(bench.service.client.intake.counts.accepted, 1);

        let subject = bench.request("R", r#"{"action":"raise"}"#);
        bench.offer(1, true, subject);
        bench.open_gate();
        assert_eq!(bench.receipts(1).await, [(1, "Ended".to_owned())]);
        assert_eq!(bench.service.client.intake.counts.accepted, 2);
    });
}

#[test]
fn the_second_of_two_retries_of_a_unit_at_once_is_refused() {
    run(async {
        let mut bench = Bench::new(trigger(Policy::default(), Retries::default(), None)).await;
        bench.outcome(1);
        bench.offer(1, true, message("A", FINISHED));
        bench.open_gate();
        assert_eq!(bench.receipts(1).await, [(1, "Ended".to_owned())]);
        // Each is read before the other is in the ledger.
        let retry = r#"{"action":"retry"}"#;
        let both = [bench.request("R", retry), bench.request("S", retry)];
        let insists = bench.request("T", r#"{"action":"retry","again":true}"#);
        for (number, subject) in (2..).zip(both.into_iter().chain([insists])) {
            bench.offer(number, false, subject);
        }
        let mut receipts = bench.receipts(3).await;
        receipts.sort();
        let receipt = |n, text: &str| (n, text.to_owned());
        let wanted = [(2, "Accepted"), (3, "Refused"), (4, "Accepted")];
        assert_eq!(receipts, wanted.map(|(n, text)| receipt(n, text)));
        (0..2).for_each(|_| bench.open_gate());
        // The sentinel comes after all of them.
        bench.offer(5, true, message("B", FINISHED));
        bench.open_gate();
        assert_eq!(bench.receipts(1).await, [receipt(5, "Ended")]);
        let reader = &bench.service.client.pipeline.reader;
        assert_eq!(reader.totals().expect("totals").failed, 4);
    });
}

#[test]
fn a_unit_that_runs_keeps_its_receipt_when_a_drop_comes_too_late() {
    run(async {
        let mut bench = Bench::new(trigger(Policy::default(), Retries::default(), None)).await;
        bench.offer(1, true, message("A", FINISHED));
        bench
            .until(|r| r.totals().expect("totals").running == 1)
            .await;
        let unit = bench.unit();
        let client = &mut bench.service.client;
        client.steps.push_back(Step::Drop(unit.clone(), "too late"));
        client.perform();
        bench.offer(2, false, message("B", "no json"));
        assert_eq!(bench.receipts(1).await, [(2, "Refused".to_owned())]);
        bench.open_gate();
        assert_eq!(bench.receipts(1).await, [(1, "Ended".to_owned())]);
    });
}

#[test]
fn a_drop_of_a_released_unit_gives_its_receipt_back() {
    run(async {
        let mut bench = Bench::new(trigger(Policy::default(), Retries::default(), None)).await;
        bench.service.client.work.pause(true);
        bench.offer(1, true, message("A", FINISHED));
        bench
            .until(|r| r.totals().expect("totals").pending == 1)
            .await;
        let unit = bench.unit();
        let client = &mut bench.service.client;
        let release = Op::Release {
            unit: unit.clone(),
            force: true,
        };
        client.steps.push_back(Step::Commit(release));
        client.work.cancel("t", &unit, &mut client.steps);
        client.perform();
        assert_eq!(bench.receipts(1).await, [(1, "Ended".to_owned())]);
    });
}

#[test]
fn a_redelivery_waits_for_the_retry_that_is_due_later() {
    run(async {
        let retries = Retries {
            limit: 1,
            delay: Duration::from_secs(3600),
            ..Retries::default()
        };
        let mut bench = Bench::new(trigger(Policy::default(), retries, None)).await;
        bench.outcome(1);
        bench.offer(1, true, message("A", FINISHED));
        bench.open_gate();
        bench
            .until(|r| {
                let totals = r.totals().expect("totals");
                (totals.failed, totals.pending) == (1, 1)
            })
            .await;
        bench.offer(2, true, message("A", FINISHED));
        bench.offer(3, false, message("B", "no json"));
        assert_eq!(bench.receipts(1).await, [(3, "Refused".to_owned())]);
        let retry = bench.unit();
        let client = &mut bench.service.client;
        client.work.cancel("t", &retry, &mut client.steps);
        client.perform();
        let mut ended = bench.receipts(2).await;
        ended.sort();
        assert_eq!(ended, [1, 2].map(|n| (n, "Ended".to_owned())));
    });
}

/// A runner that is idle may have told an end that the ledger does not hold yet. A word that did
/// not wait for the ledger would let it use the folder of that unit again.
#[test]
fn a_unit_for_which_no_runner_was_reserved_goes_to_a_new_one() {
    run(async {
        let mut bench = Bench::new(trigger(Policy::default(), Retries::default(), None)).await;
        bench.offer(1, true, message("A", FINISHED));
        bench.open_gate();
        bench.receipts(1).await;
        let begun = bench.runners().join("begun");
        let begun = || std::fs::read_to_string(&begun).unwrap_or_default();
        let client = &mut bench.service.client;
        let reader = &client.pipeline.reader;
        let id = reader.last_ended().expect("read").expect("unit").unit.id;
        let record = reader.unit_with_payload(&id);
        let unit = record.expect("read").expect("unit").unit;
        let (pipeline, steps) = (&client.pipeline, &mut client.steps);
        let ended = client.work.begin(pipeline, Arc::new(unit), None, steps);
        assert!(ended.is_none());
        bench.until(|_| begun().lines().count() == 2).await;
        let both = begun();
        let pids: Vec<&str> = both.lines().collect();
        assert_ne!(pids[0], pids[1]);
    });
}

/// Wherever a runner dies or fails between two units, another one runs the second.
#[test]
fn a_unit_that_its_runner_does_not_begin_goes_to_another_one() {
    for fate in ["unprepared", "prepared", "released", "lost"] {
        run(async {
            let mut bench = Bench::new(trigger(Policy::default(), Retries::default(), None)).await;
            bench.offer(1, true, message("A", FINISHED));
            bench.open_gate();
            assert_eq!(bench.receipts(1).await, [(1, "Ended".to_owned())]);
            std::fs::write(bench.runners().join("fate"), fate).expect("fate");
            bench.offer(2, true, message("B", FINISHED));
            bench.open_gate();
            assert_eq!(bench.receipts(1).await, [(2, "Ended".to_owned())], "{fate}");
            bench.offer(3, true, message("C", FINISHED));
            bench.open_gate();
            assert_eq!(bench.receipts(1).await, [(3, "Ended".to_owned())], "{fate}");
            assert!(!bench.runners().join("fate").exists(), "{fate}");
            assert_eq!(bench.begun().len(), 3, "{fate}");
        });
    }
}

/// A runner that is taken for the second one must not get the job of the first, or its word.
#[test]
fn work_that_comes_again_before_it_is_on_disk_runs_once_and_starts() {
    run(async {
        let policy = Policy {
            jobs: 4,
            ..Policy::default()
        };
        let mut bench = Bench::new(trigger(policy, Retries::default(), None)).await;
        // Some of it under another type.
        for (number, lane) in (1..).zip(["t", "t", "other", "t"]) {
            let offer = bench.submission(number, lane);
            chain::on_source(&mut bench.service.client, Source::Script(offer));
        }
        let mut receipts = bench.receipts(4).await;
        receipts.sort();
        assert_eq!(receipts[0], (1, "Accepted".to_owned()));
        let mut others: Vec<_> = receipts[1..].iter().map(|(_, text)| &text[..5]).collect();
        others.sort_unstable();
        assert_eq!(others, ["Dupli", "Dupli", "Taken"], "{receipts:?}");
        bench.open_gate();
        bench
            .until(|r| r.totals().expect("totals").succeeded == 1)
            .await;
        // The sentinel comes after all of it, and finds a job.
        bench.offer(5, true, message("B", FINISHED));
        bench.open_gate();
        assert_eq!(bench.receipts(1).await, [(5, "Ended".to_owned())]);
        assert_eq!(bench.begun().len(), 2);
    });
}

#[test]
fn a_reload_says_what_needs_a_restart_until_it_is_taken_back() {
    let old = config(trigger(Policy::default(), Retries::default(), None), 1883);
    let new = Config {
        metrics: Some(PathBuf::from("p.prom")),
        ..old.clone()
    };
    let merged = reload::merge(&old, new).expect("merge");
    assert_eq!(merged.metrics, old.metrics, "as the observer has it");
}
