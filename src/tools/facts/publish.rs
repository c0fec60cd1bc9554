//! `tael facts publish`: tells the facts of this node, as a promise that is checked.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{info, warn};

use crate::error::{Error, Kind as ErrorKind, Result};
use crate::model::duration;
use crate::model::facts::kind::Kind;
use crate::model::facts::presence::{State, failed};
use crate::model::facts::round::{Gathered, Node, Plan, payload};
use crate::model::facts::tree::digest;
use crate::model::json;
use crate::model::text::{escaped_json, printable};
use crate::os::host_lock::HostLock;
use crate::os::notify::Notify;
use crate::os::signals::{Stop, give_up_with};
use crate::os::terminal::Terminal;
use crate::tools::facts::gather::{Logged, Sources};
use crate::tools::facts::rounds::{Place, Rounds, Turn};
use crate::tools::printer::Printer;
use crate::tools::unprinted;

/// Time between two looks of a daemon at the facts of kind `state`.
const STATE_LOOK: Duration = Duration::from_secs(30);

/// Maximum time after a signal: of a daemon to say so, and of scripts to end.
const GOODBYE: Duration = Duration::from_secs(2);

/// Maximum time of the last scripts and reads of a daemon that ends.
const LAST_SCRIPTS: Duration = Duration::from_secs(5);

/// Whether a command that tells facts once was stopped: then it ends its scripts.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Exit code after a signal, as in a shell: 128 and SIGTERM.
const TERMINATED: u8 = 143;

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node, and where it tells its facts.
    pub place: Place,
    /// What is gathered.
    pub sources: Sources,
    /// Maximum time to tell the facts once and exit; `None` for a daemon.
    pub once: Option<Duration>,
    /// Whether to print the outcome of each round as JSON.
    pub json: bool,
    /// Whether a daemon of the same node on this host is a success.
    pub if_not_running: bool,
}

/// Tells the facts once, or at every interval until it is stopped.
///
/// # Errors
/// 65 when some facts could not be told, and 69, 73 when another machine has the name of the node or a
/// daemon on this host tells its facts, 75 when the broker does not acknowledge in time, 77; for a daemon
/// final failures only.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.json {
        crate::tools::check_stdout()?;
    }
    // It says that the node is online, as a daemon does, and may run beside one.
    let _lock = match options.once {
        Some(_) => None,
        None => match lock(&options.place) {
            Ok(lock) => Some(lock),
            Err(e) if options.if_not_running && e.kind() == ErrorKind::CannotCreate => {
                return Ok(ExitCode::SUCCESS);
            }
            Err(e) => return Err(e),
        },
    };
    let runtime = crate::tools::runtime()?;
    match options.once {
        Some(limit) => {
            // The facts are gathered before the time of the broker begins.
            let Some(gathered) = gather_once(&options.sources)? else {
                return Ok(ExitCode::from(TERMINATED));
            };
            runtime.block_on(once(options, &gathered, limit))
        }
        None => {
            let ended = runtime.block_on(daemon(options));
            // Scripts are ended. A disk that does not answer must not hold up the end.
            runtime.shutdown_timeout(LAST_SCRIPTS);
            ended.map(|()| ExitCode::SUCCESS)
        }
    }
}

/// Takes the name of the node on this host: when one of two daemons ends, it says that the node is
/// offline.
fn lock(place: &Place) -> Result<HostLock> {
    let (address, root, node) = (place.broker.address(), &place.root, &place.node.name);
    HostLock::acquire(&["facts", &address, root, node]).map_err(|holder| {
        let cause = format!(
            "tell facts: those of {node} are told below {root} already: {holder}; end it first, or add \
             --if-not-running; another --node is another node"
        );
        Error::new(holder.kind(), cause)
    })
}

/// Returns the facts of all kinds; `None` after a signal, which has ended the scripts.
fn gather_once(sources: &Sources) -> Result<Option<Gathered>> {
    give_up_with(|| STOPPED.store(true, Ordering::Relaxed), GOODBYE)?;
    let gathered = sources.gather(&Kind::ALL, &mut Logged::default(), &STOPPED);
    Ok((!STOPPED.load(Ordering::Relaxed)).then_some(gathered))
}

/// Prints exactly what would be told, a message a line, and connects to nothing.
///
/// # Errors
/// 65 when some facts could not be told.
pub fn dry_run(node: &Node, sources: &Sources) -> Result<ExitCode> {
    let Some(gathered) = gather_once(sources)? else {
        return Ok(ExitCode::from(TERMINATED));
    };
    let now = Timestamp::now().as_second();
    let mut presence = node.presence(State::Online, now);
    presence.failed.clone_from(&gathered.failed);
    for (kind, facts) in &gathered.kinds {
        presence.kinds.insert(*kind, digest(facts));
        crate::tools::print_json(&payload(&node.name, *kind, now, facts))?;
    }
    crate::tools::print_json(&presence.payload())?;
    outcome(&gathered)
}

/// Returns the exit code for what was gathered and told.
fn outcome(gathered: &Gathered) -> Result<ExitCode> {
    if gathered.failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let names = failed(&gathered.failed).join(", ");
    Err(Error::data(format!(
        "tell facts: some are left out, the others are told: {}",
        printable(&names, 400)
    )))
}

async fn once(options: &Options, gathered: &Gathered, limit: Duration) -> Result<ExitCode> {
    let mut rounds = Rounds::new(options.place.clone(), false)?;
    let deadline = Instant::now() + limit;
    let mut repaired = Vec::new();
    // A connection that is lost meanwhile begins the round again: what the broker has got is not
    // told twice.
    let mut plan = loop {
        read(&mut rounds, deadline, limit).await?;
        let plan = plan(options, &rounds, gathered)?;
        repaired.extend(&plan.repaired);
        rounds.publish(&plan, true);
        if told(&mut rounds, deadline, limit).await? {
            break plan;
        }
    };
    rounds.refused()?;
    rounds.close().await;
    repaired.sort_unstable();
    repaired.dedup();
    plan.repaired = repaired;
    report(options, &plan);
    if options.json {
        crate::tools::print_json(&plan.json())?;
    } else if Terminal::of_stdout().is_terminal() {
        // As `tael message --if-changed` does.
        crate::tools::print(if plan.repaired.is_empty() {
            "kept"
        } else {
            "repaired"
        })?;
    }
    outcome(gathered)
}

/// Waits until everything that the broker holds has come.
async fn read(rounds: &mut Rounds, deadline: Instant, limit: Duration) -> Result<()> {
    while !rounds.is_read() {
        let until = rounds.quiet().unwrap_or(deadline).min(deadline);
        match timeout_at(until, rounds.next()).await {
            Ok(turn) => {
                turn?;
            }
            Err(_) if until < deadline => {
                rounds.end_of_retained();
            }
            Err(_) => return Err(rounds.late(limit)),
        }
    }
    Ok(())
}

/// Waits until everything is acknowledged; `false` if the connection is lost before.
async fn told(rounds: &mut Rounds, deadline: Instant, limit: Duration) -> Result<bool> {
    while !rounds.is_done() {
        match timeout_at(deadline, rounds.next()).await {
            Ok(turn) => {
                if turn? == Turn::Gone {
                    return Ok(false);
                }
            }
            Err(_) => return Err(rounds.late(limit)),
        }
    }
    Ok(true)
}

/// Returns what to publish.
///
/// # Errors
/// 73 when another machine has the name of the node.
fn plan(options: &Options, rounds: &Rounds, gathered: &Gathered) -> Result<Plan> {
    let node = &options.place.node;
    let now = Timestamp::now().as_second();
    match node.rival(rounds.held(), now) {
        Some(rival) => Err(Error::cannot_create(format!(
            "tell facts: another machine tells those of {}: host {}, {} ago; name this one by --node, \
             or give it a machine id of its own (systemd-machine-id-setup)",
            node.name,
            printable(&rival.host, 80),
            duration::brief(Duration::from_secs(
                now.saturating_sub(rival.ts).max(0).unsigned_abs()
            )),
        ))),
        None => Ok(node.plan(rounds.held(), gathered, now)),
    }
}

/// Says what a round has done.
fn report(options: &Options, plan: &Plan) {
    let names: Vec<&str> = plan.repaired.iter().map(|kind| kind.name()).collect();
    match names.is_empty() {
        true => info!("facts of {}: kept", options.place.node.name),
        false => info!(
            "facts of {}: repaired: {}",
            options.place.node.name,
            names.join(", ")
        ),
    }
}

/// What a daemon gathers in the background.
struct Gathering {
    task: JoinHandle<Gathered>,
    /// Whether it is about all kinds, at the interval.
    is_whole: bool,
}

async fn daemon(options: &Options) -> Result<()> {
    let mut stop = Stop::listen(false)?;
    let notify = Notify::from_environment();
    let mut watchdog = notify.watchdog();
    let node = &options.place.node;
    let interval = Duration::from_secs(node.interval.unsigned_abs());
    info!(
        "telling the facts of {} below {} every {}",
        node.name,
        options.place.root,
        duration::text(interval)
    );
    let mut rounds = Rounds::new(options.place.clone(), true)?;
    let mut printer = options.json.then(Printer::start).transpose()?;
    let logged = Arc::new(Mutex::new(Logged::default()));
    let ends = Arc::new(AtomicBool::new(false));
    let gather = |kinds: &'static [Kind]| {
        let (sources, logged) = (options.sources.clone(), Arc::clone(&logged));
        let ends = Arc::clone(&ends);
        let is_whole = kinds.len() > 1;
        let task = tokio::task::spawn_blocking(move || match logged.lock() {
            Ok(mut logged) => sources.gather(kinds, &mut logged, &ends),
            Err(_) => Gathered::default(),
        });
        Gathering { task, is_whole }
    };
    let mut gathering = Some(gather(&Kind::ALL));
    let mut latest: Option<Gathered> = None;
    // Whether the next round publishes the presence in any case.
    let mut is_due = true;
    let look = match options.sources.share.contains(&Kind::State) {
        true => STATE_LOOK,
        false => interval,
    };
    let (mut next_whole, mut next_state) = (Instant::now() + interval, Instant::now() + look);
    let mut was_online = false;
    let mut is_ours = true;
    loop {
        let wake = next_whole.min(next_state);
        let quiet = rounds.quiet().unwrap_or(wake);
        let mut work = false;
        tokio::select! {
            () = stop.requested() => break,
            done = finished(&mut gathering) => {
                let (gathered, is_whole) = done?;
                is_due |= is_whole;
                latest = Some(updated(latest, gathered, is_whole));
                work = true;
            }
            () = sleep_until(wake), if gathering.is_none() => {
                let now = Instant::now();
                let is_whole = next_whole <= now;
                gathering = Some(gather(if is_whole { &Kind::ALL } else { &[Kind::State] }));
                next_state = now + look;
                if is_whole {
                    next_whole = now + interval;
                }
            }
            () = sleep_until(quiet), if rounds.quiet().is_some() => {
                rounds.end_of_retained();
                work = true;
            }
            () = watchdog.due() => {
                if !rounds.session().is_stalled() {
                    notify.alive();
                }
            }
            turn = rounds.next() => match turn? {
                Turn::Read => work = true,
                // The broker may have published our will.
                Turn::Gone => is_due = true,
                Turn::Done => {
                    if rounds.refused().is_ok() && !was_online {
                        was_online = true;
                        notify.ready();
                    }
                }
                Turn::Nothing => {}
            },
        }
        let Some(gathered) = latest.as_ref().filter(|_| work && rounds.is_read()) else {
            continue;
        };
        match plan(options, &rounds, gathered) {
            Ok(plan) => {
                is_ours = true;
                rounds.publish(&plan, is_due);
                if is_due || !plan.tell.is_empty() {
                    report(options, &plan);
                    if let Some(printer) = &mut printer {
                        let line = escaped_json(&json::to_text(&plan.json()));
                        printer.print(line).map_err(|e| unprinted(&e))?;
                    }
                }
                is_due = false;
            }
            Err(e) if !was_online => return Err(e),
            // A daemon does not end for what others say.
            Err(e) => {
                if std::mem::replace(&mut is_ours, false) {
                    warn!("{e}; telling nothing until it stops");
                }
            }
        }
    }
    // The end waits for the scripts.
    ends.store(true, Ordering::Relaxed);
    if is_ours && rounds.is_read() {
        goodbye(node, &mut rounds, latest.as_ref()).await;
    }
    rounds.close().await;
    match printer {
        // Without a reader they are lost.
        Some(printer) => timeout_at(Instant::now() + GOODBYE, printer.end())
            .await
            .unwrap_or(Ok(()))
            .map_err(|e| unprinted(&e)),
        None => Ok(()),
    }
}

/// Says that the daemon was stopped.
async fn goodbye(node: &Node, rounds: &mut Rounds, latest: Option<&Gathered>) {
    let now = Timestamp::now().as_second();
    let mut presence = node.presence(State::Offline, now);
    if let Some(gathered) = latest {
        let plan = node.plan(rounds.held(), gathered, now);
        presence.kinds = plan.presence.kinds;
        presence.failed.clone_from(&gathered.failed);
    }
    rounds.tell_presence(&presence);
    let deadline = Instant::now() + GOODBYE;
    while !rounds.is_done() {
        match timeout_at(deadline, rounds.next()).await {
            Ok(Ok(turn)) if turn != Turn::Gone => {}
            _ => break,
        }
    }
}

/// Waits for what is being gathered; for ever if nothing is. Cancel safe.
async fn finished(gathering: &mut Option<Gathering>) -> Result<(Gathered, bool)> {
    let Some(running) = gathering else {
        return std::future::pending().await;
    };
    let done = (&mut running.task).await;
    let is_whole = running.is_whole;
    *gathering = None;
    let gathered = done.map_err(|e| Error::bug(format!("gather facts: {e}")))?;
    Ok((gathered, is_whole))
}

/// Returns `latest` with what was gathered of some kinds since.
fn updated(latest: Option<Gathered>, gathered: Gathered, is_whole: bool) -> Gathered {
    let Some(mut latest) = latest.filter(|_| !is_whole) else {
        return gathered;
    };
    let is_of_state = |name: &String| name.starts_with("state/");
    latest.failed.retain(|name| !is_of_state(name));
    latest.failed.extend(gathered.failed);
    latest.kinds.extend(gathered.kinds);
    latest
}
