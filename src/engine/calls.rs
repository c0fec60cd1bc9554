//! Answers what connections of the control socket ask of the client.

use std::num::NonZero;
use std::thread::available_parallelism;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::sync::{oneshot, watch};
use tracing::info;

use crate::engine::chain;
use crate::engine::client::Client;
use crate::engine::commit::receipt::{Receipt, Submitted, Submitter};
use crate::engine::commit::step::Step;
use crate::engine::control::call::{Answer, Call, Ending, Output, Page, Ticket};
use crate::engine::intake::backlog::{Load, TOO_MANY};
use crate::engine::intake::source::Source;
use crate::engine::intake::submission::{Away, Submission};
use crate::engine::report::followers::Stage;
use crate::engine::work::delegates::offers::Offered;
use crate::error::Error;
use crate::model::duration;
use crate::model::receptor::{self, LOCALHOST, Submit, TRY_AGAIN, go};
use crate::model::remote::MAX_HEADER;
use crate::model::text::printable;
use crate::model::topic::check_who;
use crate::model::unit::{End, State, Unit};
use crate::model::work::{
    MAX_NAME, Params, Signed, UNKNOWN_TYPE, Work, WorkType, lane_of_node, split,
};
use crate::os::host::{is_id, memory_mib, new_id};
use crate::store::ledger::{Op, Record, submitted};
use crate::store::unit_dir::reader::stored;

/// Answers a call, or sees to it that it is answered. A reload is for the service.
pub fn answer(client: &mut Client, call: Call) {
    // A connection that has gone needs no answer.
    match call {
        Call::Status(to) => drop(to.send(Ok(status(client)))),
        Call::Reload(to) => drop(to.send(Err("reload: not here".to_owned()))),
        Call::Offer(submit, to) => drop(to.send(offer(client, *submit))),
        Call::Submit(submission, to) => submit(client, submission, to),
        Call::Offered(unit, to) => drop(to.send(offered(client, &unit))),
        Call::List(after, to) => drop(to.send(list(client, after))),
        Call::Unit(unit, to) => {
            let found = record(client, &unit);
            drop(to.send(found.map(|record| unit_status(client, &record))));
        }
        Call::Output(unit, to) => drop(to.send(output(client, &unit))),
        Call::Fetched(unit) => client.commits.fetched(unit),
        Call::Ask {
            node,
            request,
            signed,
            answer,
        } => client.ask_node(node, (request, signed), answer),
        // The loop looks for room when it goes on.
        Call::NoRoom => {}
        Call::Cancel(unit, to) => {
            let ending = cancel(client, &unit);
            drop(to.send(ending));
        }
        Call::Release {
            unit,
            force,
            answer,
        } => release(client, &unit, force, answer),
    }
}

/// Work type of units that another node runs, as Receptor calls it.
const REMOTE: &str = "remote";

fn unreadable(e: Error) -> String {
    format!("{TRY_AGAIN}{e}")
}

/// Returns the state of the node, with the keys that Receptor has.
fn status(client: &Client) -> Value {
    let config = &client.pipeline.config;
    let who = &config.who;
    let here = client.delegates.here();
    let each = |value: fn(&str) -> Value| -> Map<String, Value> {
        let nodes = here.iter();
        nodes
            .map(|node| ((*node).to_owned(), value(node)))
            .collect()
    };
    let costs = each(|_| json!(1));
    let work = config.work.iter();
    let work: Vec<Value> = work
        .map(|kind| {
            let secure = kind.signed == Signed::Required;
            json!({"WorkType": kind.name, "Secure": secure})
        })
        .collect();
    let tags = match config.submit_only {
        true => json!({"type": "Control Service", (receptor::SUBMIT_ONLY): "true"}),
        false => json!({"type": "Control Service"}),
    };
    let advertisement = |node: &str, tags: Value, work: Value| {
        json!({
            "NodeID": node,
            "Service": receptor::SERVICE,
            "Time": Timestamp::now().to_string(),
            "ConnType": 1,
            "Tags": tags,
            "WorkCommands": work,
        })
    };
    let own = advertisement(who, tags, work.into());
    // Which types they have is not known here.
    let control = || json!({"type": "Control Service"});
    let others = here
        .iter()
        .map(|node| advertisement(node, control(), Value::Null));
    let advertisements: Vec<Value> = [own].into_iter().chain(others).collect();
    let connections = here.iter().map(|node| json!({"NodeID": node, "Cost": 1}));
    let connections: Vec<Value> = connections.collect();
    json!({
        "NodeID": who,
        "Version": config.receptor_version,
        "SystemCPUCount": available_parallelism().map_or(1, NonZero::get),
        "SystemMemoryMiB": memory_mib(),
        "Connections": connections,
        "KnownConnectionCosts": {who: costs},
        "RoutingTable": each(|node| json!(node)),
        "Advertisements": advertisements,
    })
}

// --- Submissions ---

/// Decides whether work may be submitted, before its payload is read.
fn offer(client: &mut Client, mut submit: Submit) -> Answer<Ticket> {
    let mut words = split(&submit.params)?;
    words.append(&mut submit.words);
    let params = Params {
        words,
        named: std::mem::take(&mut submit.named),
    };
    if submit.node != client.pipeline.config.who && submit.node != LOCALHOST {
        return offer_away(client, submit, params);
    }
    if submit.ttl.is_some() {
        return Err("ttl option is intended for remote work only".into());
    }
    let config = &client.pipeline.config;
    let kind = config.work.named(&submit.kind);
    let kind = kind.ok_or_else(|| format!("{UNKNOWN_TYPE} {}", printable(&submit.kind, 80)))?;
    let is_signed = submit.sign || submit.signature.is_some();
    // Who may open the socket needs no signature.
    let is_trusted = kind.signed == Signed::Required;
    if let Some(refusal) = kind.refusal(&params, is_signed || is_trusted) {
        return Err(refusal);
    }
    if is_signed {
        return Err("this client has no key to sign with, and none to verify with".into());
    }
    let (id, is_new) = unit_id(submit.id)?;
    // One that was submitted before is answered again.
    let is_known =
        !is_new && submitted::is_submitted(&client.pipeline.reader, &id).map_err(unreadable)?;
    let room = &client.pipeline.room;
    let ticket = Ticket {
        node: None,
        signed: false,
        kind: kind.name.clone(),
        max_stdin: room.cap(kind.max_stdin),
        id,
        is_new,
        is_known,
        params,
    };
    let (lane, queue, full) = (kind.spec.lane.clone(), kind.queue, kind.is_full());
    if !is_known {
        look_for_room(client, &lane, queue, full)?;
    }
    Ok(ticket)
}

/// Decides whether work for another node may be submitted, before its payload is read.
fn offer_away(client: &mut Client, submit: Submit, params: Params) -> Answer<Ticket> {
    check_who(&submit.node)?;
    if submit.kind.is_empty() || submit.kind.len() > MAX_NAME {
        return Err(format!("{UNKNOWN_TYPE} {}", printable(&submit.kind, 80)));
    }
    if submit.signature.is_some() {
        return Err("this client signs the work for other nodes itself: see signwork".into());
    }
    if submit.sign && client.pipeline.config.signer.is_none() {
        return Err("this client has no key to sign with: see [signing]".into());
    }
    if params.size() > MAX_HEADER / 2 {
        let limit = MAX_HEADER / 2;
        return Err(format!(
            "the params have more than {limit} bytes; use the payload"
        ));
    }
    let ttl = submit.ttl.as_deref().map(duration::parse).transpose();
    let ttl = ttl.map_err(|e| format!("bad ttl: {e}"))?;
    if ttl.is_some_and(|ttl| ttl.as_secs() == 0) {
        return Err("bad ttl: it is less than a second".into());
    }
    let expires = ttl.map(|ttl| {
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        Timestamp::now().as_second().saturating_add(ttl)
    });
    let (id, is_new) = unit_id(submit.id)?;
    let is_known =
        !is_new && submitted::is_submitted(&client.pipeline.reader, &id).map_err(unreadable)?;
    if !is_known {
        let lane = lane_of_node(&submit.node);
        look_for_room(client, &lane, usize::MAX, TOO_MANY.to_owned())?;
    }
    Ok(Ticket {
        kind: submit.kind,
        // The node has a limit.
        max_stdin: client.pipeline.room.cap(u64::MAX),
        id,
        is_new,
        is_known,
        params,
        signed: submit.sign,
        node: Some(Away {
            node: submit.node,
            expires,
        }),
    })
}

/// Returns what tells the submitter of `unit` what becomes of its offer to a node; nothing if that was
/// accepted. A second submission of refused work is refused too.
fn offered(client: &mut Client, unit: &str) -> Answer<Option<watch::Receiver<Offered>>> {
    let record = client.pipeline.reader.unit(unit).map_err(unreadable)?;
    let waits = record
        .as_ref()
        .is_some_and(|record| record.state == State::Pending);
    let offer = client.delegates.watch(unit, waits);
    if offer.is_some() {
        return Ok(offer);
    }
    match record.and_then(|record| record.outcome) {
        Some(outcome) if outcome.stopped.is_none() => match outcome.end {
            End::NotStarted(cause) => Err(format!("unit {unit}: {cause}")),
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

/// Returns the id of a new unit, and whether no earlier one can have it.
fn unit_id(chosen: Option<String>) -> Answer<(String, bool)> {
    match chosen {
        Some(id) if is_id(&id) => Ok((id.to_ascii_uppercase(), false)),
        Some(id) => {
            let id = printable(&id, 80);
            Err(format!(
                "work unit ID '{id}' is not a ULID: 26 letters and digits"
            ))
        }
        None => Ok((new_id(), true)),
    }
}

/// Refuses a new unit if it has no room in `lane`, in which `queue` may wait and which is then `full`, or
/// in the client, or on its disk.
fn look_for_room(client: &mut Client, lane: &str, queue: usize, full: String) -> Answer<()> {
    let cause = if !client.work.lanes().has_room(lane, queue) {
        full
    } else if !has_room(client, lane, queue) {
        TOO_MANY.to_owned()
    } else if let Err(full) = client.pipeline.room.share(0) {
        full
    } else {
        return Ok(());
    };
    Err(format!("{TRY_AGAIN}{cause}"))
}

/// Returns whether one more unit may come to `lane`, in which `queue` may wait.
fn has_room(client: &mut Client, lane: &str, queue: usize) -> bool {
    let (pipeline, work) = (&client.pipeline, &client.work);
    let load = || Load::of(work.lanes(), client.commits.waiting());
    work.lanes().has_room(lane, queue) && client.intake.has_room(pipeline, load)
}

fn submit(client: &mut Client, submission: Box<Submission>, to: Submitter) {
    // Others may have come while its payload was read. An id of the submitter's may be known.
    let kind = client.pipeline.config.work.named(&submission.kind);
    let kind = kind.map(|kind: &WorkType| (kind.spec.lane.clone(), kind.queue));
    if let Some((lane, queue)) = kind
        && submission.node.is_none()
        && submission.is_new
        && !has_room(client, &lane, queue)
    {
        // One that has gone needs no answer.
        let _ = to.0.send(Submitted::Full);
        return;
    }
    chain::on_source(
        client,
        Source::Submission(submission, Receipt::Submitted(to)),
    );
}

// --- Units ---

/// Returns a unit of submitted work.
fn record(client: &Client, unit: &str) -> Answer<Record> {
    record_if(client, unit, |unit| unit.work.is_some())
}

/// Returns the record of `unit`, if `may` says that it is one that is asked for.
fn record_if(client: &Client, unit: &str, may: impl Fn(&Unit) -> bool) -> Answer<Record> {
    let reader = &client.pipeline.reader;
    let found = reader.unit(unit).map_err(unreadable)?;
    match found.filter(|record| may(&record.unit)) {
        Some(record) => Ok(record),
        None if submitted::is_submitted(reader, unit).map_err(unreadable)? => {
            Err(receptor::released_unit(unit))
        }
        None => Err(receptor::unknown_unit(unit)),
    }
}

/// Returns the state of a unit, with the keys that Receptor has, and two of our own.
fn unit_status(client: &Client, record: &Record) -> Value {
    let (unit, outcome) = (&record.unit, record.outcome.as_ref());
    let work = unit.work.as_deref();
    let (number, name) = go::state(record.shown_state());
    let dir = client.pipeline.dir(&unit.id);
    let extra = match (record.state, unit.delegation()) {
        (_, Some(delegation)) => json!({
            "RemoteNode": delegation.node,
            "RemoteWorkType": work.map(|work| &work.kind),
            "RemoteParams": {"params": work.map(|work| shell_words::join(&work.params))},
            "RemoteUnitID": unit.id,
            "RemoteStarted": record.started.is_some(),
            "LocalCancelled": dir.is_canceled(),
            "LocalReleased": false,
            "SignWork": work.is_some_and(|work| work.signed),
            "TLSClient": "",
            "Expiration": go::time(delegation.expires),
        }),
        (State::Running, None) => {
            let process = dir.notes().process(&client.pipeline.boot);
            json!({
                "Pid": process.map_or(0, |(pid, _)| pid),
                "Params": work.map(|work| shell_words::join(&work.params)),
            })
        }
        (_, None) => Value::Null,
    };
    json!({
        "State": number,
        "StateName": name,
        "Detail": go::detail(record.state, outcome, record.note.as_deref()),
        "StdoutSize": stored(&dir, outcome),
        "WorkType": match unit.delegation() {
            Some(_) => Some(REMOTE),
            None => work.map(|work| work.kind.as_str()),
        },
        "ExtraData": extra,
        "ExitCode": outcome.and_then(|outcome| outcome.reported().return_code()),
        "Submitter": work.map(|work: &Work| &work.submitter),
    })
}

fn list(client: &Client, after: i64) -> Answer<Page> {
    let records = submitted::page(&client.pipeline.reader, after);
    let records = records.map_err(unreadable)?;
    Ok(Page {
        next: records.last().map(|record| record.seq),
        units: records
            .iter()
            .map(|record| (record.unit.id.clone(), unit_status(client, record)))
            .collect(),
    })
}

fn output(client: &mut Client, unit: &str) -> Answer<Output> {
    let record = record(client, unit)?;
    let stage = match record.state.is_end() {
        true => Stage::Ended,
        false => Stage::Open,
    };
    let dir = client.pipeline.dir(unit);
    if record.state == State::Running {
        // Without the mark, the end of the run wakes its readers.
        let _ = dir.follow();
    }
    Ok(Output {
        dir,
        state: record.state,
        outcome: record.outcome,
        is_told: !client.work.is_adopted(unit),
        stage: client.followers.follow(unit, stage),
    })
}

// --- Ends ---

fn cancel(client: &mut Client, unit: &str) -> Answer<Ending> {
    // The sender of a message of a queue, and who asks, hear of it from the client.
    let may = |unit: &Unit| unit.work.is_some() || unit.origin.is_some() || unit.reply.is_some();
    let record = record_if(client, unit, may)?;
    if record.state.is_end() {
        return Ok(Ending::Already);
    }
    let stage = client.followers.follow(unit, Stage::Open);
    info!(TAEL_UNIT = unit, "canceled on the control socket");
    client
        .work
        .cancel(record.unit.lane(), unit, &mut client.steps);
    client.perform();
    Ok(Ending::Waits(stage))
}

fn release(client: &mut Client, unit: &str, force: bool, to: oneshot::Sender<Answer<Ending>>) {
    let record = match record(client, unit) {
        Ok(record) => record,
        Err(cause) => {
            // What is gone needs no release.
            let gone = matches!(
                submitted::is_submitted(&client.pipeline.reader, unit),
                Ok(true)
            );
            let _ = to.send(if gone {
                Ok(Ending::Already)
            } else {
                Err(cause)
            });
            return;
        }
    };
    let stage = client.followers.follow(unit, Stage::Open);
    let ended = record.state.is_end();
    if !ended {
        client
            .work
            .cancel(record.unit.lane(), unit, &mut client.steps);
    }
    if ended || force {
        client
            .steps
            .push_back(Step::Release(unit.to_owned(), force));
    } else {
        let wanted = Op::WantRelease {
            unit: unit.to_owned(),
        };
        client.steps.push_back(Step::Commit(wanted));
        client.cleanup.release_at_end(unit);
    }
    client.perform();
    let _ = to.send(Ok(Ending::Waits(stage)));
}

/// Continues with units that a person wanted to be released before the last client stopped.
pub fn take_up_releases(client: &mut Client, wanted: Vec<String>) {
    for unit in wanted {
        // What cannot be read now is tried by the next client.
        let Ok(Some(record)) = client.pipeline.reader.unit(&unit) else {
            continue;
        };
        client.cleanup.release_at_end(&unit);
        match record.state.is_end() {
            true => client.cleanup.release_wanted(&unit, &mut client.steps),
            false => client
                .work
                .cancel(record.unit.lane(), &unit, &mut client.steps),
        }
    }
    client.perform();
}
