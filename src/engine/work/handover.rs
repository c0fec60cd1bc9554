//! Hands units over to runners.

use std::sync::Arc;

use crate::engine::pipeline::Pipeline;
use crate::engine::work::job::job;
use crate::engine::work::pool::Pool;
use crate::error::Error;
use crate::model::unit::Unit;
use crate::os::hooks;
use crate::runner::Job;

/// Why no runner could prepare a unit.
pub enum NotReady {
    /// There is no command.
    Job(String),
    /// There is no runner.
    Runner(std::io::Error),
    /// The ledger cannot read the input of the command.
    Payload(Error),
}

/// Makes the runners that were taken for `units` prepare them, while the ledger commits that they
/// run.
pub fn make_ready(pool: &mut Pool, pipeline: &Pipeline, units: &[Arc<Unit>]) {
    for unit in units {
        // After a failure, it is tried again when the unit begins.
        let payload = unit.payload.as_deref().unwrap_or_default();
        match runners_job(pipeline, unit, payload.len()) {
            Ok(job) => {
                let _ = pool.make_ready(&unit.id, &job, payload);
            }
            Err(_) => pool.let_go(&unit.id),
        }
    }
}

/// Sends a unit that is running in the ledger to a new runner, which begins it at once.
pub fn hand_over(pool: &mut Pool, pipeline: &Pipeline, unit: &Unit) -> Result<(), NotReady> {
    let payload = match &unit.payload {
        Some(payload) => payload.clone(),
        None => {
            let payload = pipeline.reader.payload(&unit.id);
            let payload = payload.map_err(NotReady::Payload)?;
            payload.ok_or_else(|| NotReady::Job("it was released".into()))?
        }
    };
    let job = runners_job(pipeline, unit, payload.len())?;
    loop {
        let permit = pool.reserve_new(&unit.id).map_err(NotReady::Runner)?;
        hooks::failpoint("spawn.before");
        permit.give(true);
        match pool.make_ready(&unit.id, &job, &payload) {
            Ok(()) => break,
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(e) => return Err(NotReady::Runner(e)),
        }
    }
    pool.told(&unit.id);
    Ok(())
}

/// Returns the job of a runner for `unit`, whose command reads `stdin` bytes.
fn runners_job(pipeline: &Pipeline, unit: &Unit, stdin: usize) -> Result<Job, NotReady> {
    job(&pipeline.config, &unit.spec, unit, stdin).map_err(NotReady::Job)
}
