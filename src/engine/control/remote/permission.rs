//! Whether a request of another node is allowed: its signature.

use jiff::Timestamp;

use crate::engine::pipeline::Pipeline;
use crate::engine::report::reply::ReplyTo;
use crate::error::{Error, Kind};
use crate::model::remote::wire::Request;
use crate::model::signature::Refusal;
use crate::model::work::{Signed, Work};
use crate::store::ledger::Record;

/// Checks the signature of a request, if it needs or has one. `record` is the unit that it is about.
///
/// # Errors
/// 77 if the signature is missing or does not allow the request.
pub fn allow(
    pipeline: &Pipeline,
    request: &Request,
    reply: &ReplyTo,
    record: Option<&Record>,
) -> Result<(), Error> {
    let config = &pipeline.config;
    let Some((asked, signature)) = request.allowance(&config.who, reply.topic()) else {
        return Ok(());
    };
    let refused = |refusal: Refusal| Error::new(Kind::NotAuthorised, refusal.to_string());
    if let (Request::Submit(manifest), Some(_)) = (request, signature)
        && let Some(kind) = config.work.named(&manifest.kind)
        && kind.signed == Signed::Never
        && let Some(cause) = kind.refusal(&manifest.parameters(), true)
    {
        return Err(Error::data(cause));
    }
    if let Some(token) = signature {
        let now = Timestamp::now().as_second();
        config.verify.verify(token, &asked, now).map_err(refused)?;
        return Ok(());
    }
    let needs = match (
        request,
        record.and_then(|record| record.unit.work.as_deref()),
    ) {
        (Request::Submit(manifest), _) => is_required(pipeline, &manifest.kind),
        (_, Some(work)) => is_signed(pipeline, work),
        (_, None) => false,
    };
    match needs {
        true => Err(unsigned()),
        false => Ok(()),
    }
}

/// Returns the refusal of a request that needs a signature and has none.
pub fn unsigned() -> Error {
    Error::new(Kind::NotAuthorised, Refusal::Missing.to_string())
}

/// Returns whether a request about `work` needs a signature.
pub fn is_signed(pipeline: &Pipeline, work: &Work) -> bool {
    work.signed || is_required(pipeline, &work.kind)
}

fn is_required(pipeline: &Pipeline, kind: &str) -> bool {
    let kind = pipeline.config.work.named(kind);
    kind.is_some_and(|kind| kind.signed == Signed::Required)
}
