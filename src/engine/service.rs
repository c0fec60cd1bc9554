//! A client as a service: it runs until it is stopped, handles requests, and stops in good order.

use std::future::{Future, ready};
use std::pin::pin;

use jiff::Timestamp;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{error, info, warn};

use crate::engine::calls;
use crate::engine::chain;
use crate::engine::client::Client;
use crate::engine::commit::receipt::{Progress, Receipt};
use crate::engine::commit::step::{Step, Steps};
use crate::engine::config::Config;
use crate::engine::control::actions::Canceled;
use crate::engine::control::call::Call;
use crate::engine::control::reload::{self, Reload};
use crate::engine::control::remote::Remote;
use crate::engine::control::retry_socket::{Retried, RetrySocket};
use crate::engine::control::socket::ControlSocket;
use crate::engine::control::stop::{CLEANUP_TIMEOUT, Remains, Stage, Stopping};
use crate::engine::deliveries;
use crate::engine::intake::source::Source;
use crate::engine::link::{self, Link};
use crate::engine::node;
use crate::engine::opened::Opened;
use crate::engine::pipeline::now_ms;
use crate::engine::queue::{QueueEvent, Queues};
use crate::engine::report::followers::Followers;
use crate::engine::requests::on_control;
use crate::engine::work::Units;
use crate::engine::work::cleanup::Cleanup;
use crate::engine::work::delegates::Delegates;
use crate::engine::work::job::{warn_of_what_is_missing, warn_without_holes};
use crate::error::Result;
use crate::model::message::Delivery;
use crate::model::unit::State;
use crate::os::folder;
use crate::os::hooks;
use crate::os::memory;
use crate::os::notify::Notify;
use crate::os::signals::Stop;
use crate::os::socket::Served;
use crate::store::home::Home;
use crate::store::ledger::Openable;
use crate::store::unit_dir::RUNNERS;

/// Maximum number of network events to handle in a row.
const MAX_TAKEN_IN: usize = 128;

/// A running client.
pub struct Service {
    client: Client,
    /// Tells readers what becomes of messages.
    events: Option<Served>,
    /// Brings runs that another process has written into the ledger.
    retries: RetrySocket,
    /// Brings submitted work, and questions about it.
    control: ControlSocket,
    canceled: Canceled,
}

impl Service {
    /// Opens the state of a pipeline, and continues what an earlier client has left. The client
    /// connects meanwhile.
    ///
    /// # Errors
    /// When the state is damaged or newer; it is unchanged then. When the broker refuses the client
    /// for good.
    pub async fn open(mut config: Config, home: Home, notify: Notify) -> Result<Self> {
        let identity = link::identify(&mut config, &home.path)?;
        let id_lock = link::hold_id(&config)?;
        let found = Openable::find(&home.path)?;
        // To create or to upgrade a ledger comes first. And a worker must be able to run what it takes
        // from the others.
        let early = found.is_current() && !config.triggers.are_shared();
        let since = Timestamp::now();
        let mut link = Link::open(&config, since, identity, id_lock)?;
        // On the heap: the stack may be small.
        let opened = Box::pin(Opened::open(config, home, notify, since, found));
        let opened = match early {
            true => link.session.connect_during(opened).await,
            false => opened.await,
        };
        match opened {
            Ok(opened) => Self::begin(link, opened),
            Err(e) => {
                link.session.abandon().await;
                Err(e)
            }
        }
    }

    /// Continues what an earlier client has left.
    fn begin(link: Link, opened: Opened) -> Result<Self> {
        let pipeline = opened.pipeline;
        let runners = pipeline.home.path.join(RUNNERS);
        let mut work = Units::new(pipeline.config.lanes(), runners);
        work.pause(pipeline.paused_mark().exists());
        let mut client = Client {
            link,
            observer: opened.observer,
            commits: opened.commits,
            intake: opened.intake,
            work,
            cleanup: Cleanup::default(),
            followers: Followers::default(),
            reports: opened.reports,
            remote: Remote::default(),
            delegates: Delegates::default(),
            queues: Queues::default(),
            steps: Steps::new(),
            reported: Vec::new(),
            starting: Vec::new(),
            pipeline,
        };
        for left in opened.left {
            let ended = client
                .work
                .take_up(&client.pipeline, left, &mut client.steps);
            client.perform();
            chain::end(&mut client, ended);
        }
        calls::take_up_releases(&mut client, opened.wanted);
        for debt in &opened.debts {
            client.owe_release(debt);
        }
        client.queues.configure(&client.pipeline)?;
        client.queues.warn_of_strangers(&client.pipeline);
        Ok(Self {
            client,
            events: opened.events,
            retries: opened.retries,
            control: opened.control,
            canceled: Canceled::default(),
        })
    }

    /// Runs until it is stopped, and stops in good order.
    ///
    /// # Errors
    /// When the broker refuses the client for good, or the state cannot be written any more.
    pub async fn run(mut self, stop: &mut Stop, mut reload: Reload) -> Result<()> {
        self.serve(stop.requested(), &mut reload).await?;
        self.stop().await
    }

    /// Runs until `stop` is ready.
    async fn serve(&mut self, stop: impl Future<Output = ()>, reload: &mut Reload) -> Result<()> {
        let mut stop = pin!(stop);
        // Whether others know that we are online, and whether all that could wait for it is done.
        let (mut told, mut settled) = (false, false);
        loop {
            chain::take_held(&mut self.client);
            chain::start_waiting(&mut self.client)?;
            if self.client.reports.waiting() > 0 {
                hooks::failpoint("publish.before");
            }
            chain::flush_reports(&mut self.client)?;
            chain::send_output(&mut self.client);
            chain::send_requests(&mut self.client);
            deliveries::serve_queues(&mut self.client)?;
            self.client.observe();
            if told && !settled {
                // The presence goes out first.
                yield_now().await;
                self.settle_in();
                settled = true;
            }
            told = self.client.link.is_online();
            let takes_more = self.client.takes_more();
            self.client.intake.silence.hears(takes_more);
            let wake = self.client.wake();
            tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                Some(()) = reload.requests.recv() => {
                    // It was logged.
                    let _ = self.reload(&reload.read);
                }
                retried = self.retries.next() => self.take_up(retried),
                call = self.control.next() => match call {
                    Call::Reload(to) => {
                        let reloaded = self.reload(&reload.read).map_err(|e| e.to_string());
                        // A connection that has gone needs no answer.
                        let _ = to.send(reloaded);
                    }
                    call => calls::answer(&mut self.client, call),
                },
                committed = self.client.commits.next() => {
                    chain::on_committed(&mut self.client, committed?);
                    while let Some(committed) = self.client.commits.try_next()? {
                        chain::on_committed(&mut self.client, committed);
                    }
                }
                report = self.client.work.next() => chain::on_report(&mut self.client, report),
                Some(beside) = self.client.cleanup.next() => self.client.on_beside(beside),
                event = self.client.link.session.next(), if takes_more => {
                    let received = self.client.on_session(event?);
                    self.on_received(received);
                    self.take_in().await?;
                }
                actions = self.client.remote.next(&self.client.pipeline) => node::act(&mut self.client, actions),
                Some(checked) = self.client.delegates.next() => {
                    let client = &mut self.client;
                    let reports = client.delegates.on_checked(checked, &mut client.steps);
                    chain::on_reports(client, reports);
                }
                source = self.client.intake.next() => chain::on_source(&mut self.client, source),
                event = self.client.queues.next(), if self.client.commits.keeps_up() => {
                    deliveries::on_queue(&mut self.client, event);
                    self.take_in_of_queues();
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    self.client.on_time();
                    for due in self.client.due_of_queues() {
                        deliveries::on_found(&mut self.client, due);
                    }
                }
            }
        }
    }

    /// Takes in everything that has come already. One commit takes all of it, and only then runs
    /// start.
    async fn take_in(&mut self) -> Result<()> {
        for _ in 1..MAX_TAKEN_IN {
            if !self.client.takes_more() {
                break;
            }
            tokio::select! {
                biased;
                event = self.client.link.session.next() => {
                    let received = self.client.on_session(event?);
                    self.on_received(received);
                }
                () = ready(()) => break,
            }
        }
        Ok(())
    }

    /// The same for messages of queues.
    fn take_in_of_queues(&mut self) {
        for _ in 1..MAX_TAKEN_IN {
            if self.client.commits.keeps_up()
                && let Some(event) = self.client.queues.try_next()
            {
                deliveries::on_queue(&mut self.client, event);
            }
        }
    }

    fn on_received(&mut self, received: Option<(Delivery, Receipt)>) {
        let Some((delivery, receipt)) = received else {
            return;
        };
        if delivery.topic == self.client.pipeline.topics.control().as_bytes() {
            return on_control(&mut self.client, &mut self.canceled, delivery, receipt);
        }
        if self
            .client
            .delegates
            .takes(&self.client.pipeline, &delivery)
        {
            let client = &mut self.client;
            let (pipeline, steps) = (&client.pipeline, &mut client.steps);
            let reports = client.delegates.on_message(pipeline, &delivery, steps);
            chain::on_reports(client, reports);
            return client.settle(receipt, Progress::Refused);
        }
        if node::is_request(&self.client, &delivery) {
            return node::on_request(&mut self.client, &delivery, receipt);
        }
        chain::on_source(&mut self.client, Source::Message(delivery, receipt));
    }

    /// Does what a start need not wait for: to start a process takes longer than to connect.
    fn settle_in(&mut self) {
        let client = &mut self.client;
        client.work.keep_warm();
        let pipeline = &client.pipeline;
        warn_of_what_is_missing(&pipeline.config);
        warn_without_holes(&pipeline.config, &pipeline.home.path.join(RUNNERS));
        client.cleanup.prune(pipeline, &mut client.steps);
        client.perform();
        memory::give_back();
    }

    // --- Control ---

    /// Takes up a run that another process has written into the ledger. It waits in its lane, unless it
    /// is there already.
    fn take_up(&mut self, retried: Retried) {
        let client = &mut self.client;
        let record = match client.pipeline.reader.unit(&retried.unit) {
            Ok(record) => record,
            Err(e) => {
                // Its requester gets no answer, and asks again.
                return warn!("cannot read a run to retry: {e}");
            }
        };
        if let Some(record) = record.filter(|record| record.state == State::Pending) {
            let unit = record.unit;
            if !client.work.lanes().holds(unit.lane(), &unit.id) {
                info!(
                    TAEL_UNIT = unit.id,
                    TAEL_EVENT = unit.event,
                    "retried by an operator"
                );
                client.intake.retried(&unit);
                let pipeline = &client.pipeline;
                client.work.wait(pipeline, &unit.spec, &unit.id, unit.due);
            }
        }
        retried.taken();
    }

    /// Applies a new configuration in the same session. A mistake in it changes nothing, and is
    /// logged.
    ///
    /// # Errors
    /// When there is one.
    fn reload(&mut self, read: impl Fn() -> Result<Config>) -> Result<()> {
        self.client.observer.health.notify.reloading();
        // The path of the configuration may be relative to it.
        let _ = folder::find();
        self.look_for_pause();
        let reloaded = read().and_then(|config| self.take_over(config));
        if let Err(e) = &reloaded {
            error!("reload: {e}; going on as before");
        }
        if !matches!(reloaded, Ok(true)) {
            self.client.observer.health.notify.ready();
        }
        reloaded.map(drop)
    }

    /// Pauses or resumes according to the mark in the state folder. A request to resume comes after
    /// all events that the broker keeps, and never comes if there is no room for these.
    fn look_for_pause(&mut self) {
        let client = &mut self.client;
        let Ok(paused) = client.pipeline.paused_mark().try_exists() else {
            return;
        };
        if paused != client.work.lanes().is_paused() {
            client.work.pause(paused);
            info!("{}", if paused { "paused" } else { "resumed" });
            if client.link.is_online() {
                client.tell_presence();
            }
        }
    }

    /// Applies `config`. Returns whether the broker must answer first.
    fn take_over(&mut self, config: Config) -> Result<bool> {
        let client = &mut self.client;
        let pipeline = &mut client.pipeline;
        let config = reload::merge(&pipeline.config, config)?;
        warn_of_what_is_missing(&config);
        let nodes = client.delegates.filters()?;
        let subscriptions = client.link.prepare(&config, &pipeline.topics, nodes)?;
        pipeline.config = config;
        pipeline.room.set_limit(pipeline.config.max_state);
        client.cleanup.reconfigured();
        let triggers = &pipeline.config.triggers;
        client.work.reconfigure(pipeline.config.lanes());
        client.queues.configure(pipeline)?;
        let known = pipeline.reader.heard()?;
        client.intake.silence.take_up(triggers, &known, now_ms());
        info!("reloaded; {} triggers", triggers.len());
        client.reports.try_again();
        let asked = client.link.reconfigure(pipeline, subscriptions);
        if client.link.is_online() {
            let config = &client.pipeline.config;
            client.link.say_what_it_waits_for(config);
            client.tell_presence();
        }
        Ok(asked)
    }

    // --- Stopping ---

    /// Stops in good order. Units stay with their runners. The last statuses are published within a
    /// bounded time.
    async fn stop(mut self) -> Result<()> {
        match self.client.work.live() {
            0 => info!("stopping; no run goes on"),
            1 => info!("stopping; 1 run goes on"),
            live => info!("stopping; {live} runs go on"),
        }
        self.client.observer.health.notify.stopping();
        self.client.work.pause(true);
        self.client.cleanup.leave();
        let unwritten = self.client.intake.silence.unwritten();
        self.client
            .steps
            .extend(unwritten.into_iter().map(Step::Commit));
        match self.client.pipeline.config.stop_units {
            true => self.client.work.cancel_all(&mut self.client.steps),
            false => self.client.work.dismiss(),
        }
        self.client.perform();
        let config = &self.client.pipeline.config;
        // The session of a worker ends with it, and with the session what the broker holds for it.
        let leaves = config.triggers.are_shared() && self.client.link.is_online();
        let stopping = Stopping::begin(config, leaves);
        if leaves {
            self.client.link.session.leave();
            self.client.intake.leave();
        }
        loop {
            let leaving = self.client.link.session.is_leaving();
            if leaving {
                chain::take_held(&mut self.client);
            }
            self.client.commits.flush();
            let stage = stopping.stage(Remains {
                uncommitted: self.client.commits.waiting() > 0,
                units: self.client.work.live() > 0,
                statuses: self.client.reports.may_go_out(),
                messages: leaving,
                goodbye: !self.client.link.has_said_goodbye(),
                online: self.client.link.is_online(),
            });
            if stage == Stage::Done {
                break;
            }
            chain::flush_reports(&mut self.client)?;
            self.client.reports.last.flush();
            self.client
                .reports
                .last
                .tell(&self.client.pipeline, &mut self.client.steps);
            self.client.perform();
            deliveries::serve_queues(&mut self.client)?;
            if stage == Stage::Goodbye {
                self.client.say_goodbye();
            }
            tokio::select! {
                committed = self.client.commits.next() => {
                    chain::on_committed(&mut self.client, committed?);
                }
                report = self.client.work.next() => chain::on_report(&mut self.client, report),
                // The broker takes back what comes now.
                (id, event) = self.client.queues.next() => {
                    if !matches!(event, QueueEvent::Delivered(..)) {
                        deliveries::on_queue(&mut self.client, (id, event));
                    }
                }
                Some(beside) = self.client.cleanup.next() => self.client.on_beside(beside),
                // The session ends with this worker, so that its requests do not come again.
                actions = self.client.remote.next(&self.client.pipeline), if leaving => {
                    node::act(&mut self.client, actions);
                }
                event = self.client.link.session.next(), if !leaving || self.client.takes_more() => {
                    let received = self.client.on_session(event?);
                    // Otherwise it is not acknowledged, so the next client gets it.
                    if leaving {
                        self.on_received(received);
                    }
                }
                () = sleep_until(stopping.deadline) => break,
            }
        }
        if self.client.link.is_online() {
            // There was no time for it yet. Its answer is not awaited.
            self.client.say_goodbye();
        }
        if self.client.link.is_online() && self.client.link.session.is_leaving() {
            warn!(
                "the broker has more for this worker than it could take in time: those messages are lost"
            );
        }
        match self.client.reports.waiting() {
            0 => {}
            1 => info!("1 status waits for the next start"),
            waiting => info!("{waiting} statuses wait for the next start"),
        }
        self.client.observe_last();
        // A client that starts when this one has released its folder makes its own.
        drop((self.events.take(), self.retries, self.control));
        // The remaining mark makes the next client look for removed folders.
        if self.client.cleanup.is_removing()
            && let Ok(Some(beside)) = timeout(CLEANUP_TIMEOUT, self.client.cleanup.next()).await
        {
            self.client.on_beside(beside);
        }
        self.client.queues.stop().await;
        // Without a goodbye, also of a connection that is not online yet, the broker publishes the will.
        self.client.link.session.abandon().await;
        // The last connection to close copies the log.
        drop(self.client.pipeline);
        if !self.client.commits.close().await {
            warn!("the ledger was not closed in time; the next start checks all of it");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
