//! How a unit gets to a runner.

use std::sync::Arc;

use crate::engine::pipeline::Pipeline;
use crate::engine::work::job::job;
use crate::engine::work::pool::Pool;
use crate::error::Error;
use crate::model::unit::Unit;
use crate::os::hooks;
use crate::runner::Job;

/// Why no runner could make a unit ready.
pub enum NotReady {
    /// There is nothing to run.
    Job(String),
    /// There is no runner.
    Runner(std::io::Error),
    /// The ledger does not give what the command reads.
    Payload(Error),
}

/// Lets the runners that were taken for `units` make all ready for them, while the ledger
/// commits that they run.
pub fn make_ready(pool: &mut Pool, pipeline: &Pipeline, units: &[Arc<Unit>]) {
    for unit in units {
        // What fails now is tried again when it is to begin.
        let payload = unit.payload.as_deref().unwrap_or_default();
        match runners_job(pipeline, unit, payload.len()) {
            Ok(job) => {
                let _ = pool.make_ready(&unit.id, &job, payload);
            }
            Err(_) => pool.let_go(&unit.id),
        }
    }
}

/// Hands a unit to a runner that may begin it.
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
        let permit = pool.reserve(&unit.id).map_err(NotReady::Runner)?;
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

/// Returns what a runner does for `unit`, whose command reads `stdin` bytes.
fn runners_job(pipeline: &Pipeline, unit: &Unit, stdin: usize) -> Result<Job, NotReady> {
    job(&pipeline.config, &unit.spec, unit, stdin).map_err(NotReady::Job)
}
