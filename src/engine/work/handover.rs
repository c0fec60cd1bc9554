//! Hands units over to runners.

use std::fs::File;
use std::io::ErrorKind;
use std::sync::Arc;

use crate::engine::commit::permit::StartPermit;
use crate::engine::pipeline::Pipeline;
use crate::engine::work::job::job;
use crate::engine::work::pool::Pool;
use crate::error::Error;
use crate::model::unit::Unit;
use crate::model::work::Work;
use crate::os::hooks;
use crate::runner::Job;
use crate::store::payload_file;

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
pub fn make_ready(pool: &mut Pool, pipeline: &Pipeline, units: &[(Arc<Unit>, StartPermit)]) {
    for (unit, permit) in units {
        // After a failure, it is tried again when the unit begins.
        let payload = unit.payload.as_deref().unwrap_or_default();
        match runners_job(pipeline, unit, payload.len()) {
            Ok(job) => {
                let _ = pool.make_ready(permit, &job, payload);
            }
            Err(_) => pool.let_go(permit),
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
    let permit = loop {
        let permit = pool.reserve_new().map_err(NotReady::Runner)?;
        hooks::failpoint("spawn.before");
        permit.give(true);
        match pool.make_ready(&permit, &job, &payload) {
            Ok(()) => break permit,
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(e) => return Err(NotReady::Runner(e)),
        }
    };
    pool.told(&unit.id, &permit);
    Ok(())
}

/// Returns the job of a runner for `unit`, whose command reads `stdin` bytes.
fn runners_job(pipeline: &Pipeline, unit: &Unit, stdin: usize) -> Result<Job, NotReady> {
    let mut job = job(&pipeline.config, &unit.spec, unit, stdin).map_err(NotReady::Job)?;
    if let Some(name) = unit.work.as_deref().and_then(Work::file_name) {
        let path = payload_file::path(&pipeline.home.path, name);
        // A runner could only try again.
        match File::open(&path) {
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                let path = path.display();
                return Err(NotReady::Job(format!("read its payload {path}: {e}")));
            }
            // Descriptors may be short.
            Err(e) => return Err(NotReady::Runner(e)),
        }
        job.stdin_file = Some(path);
    }
    Ok(job)
}
