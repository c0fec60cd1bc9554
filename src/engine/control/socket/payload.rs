//! Reads the payload of a submission: into memory if it is small, otherwise into a file.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::engine::control::call::Answer;
use crate::engine::control::socket::wire::Wire;
use crate::engine::intake::submission::Payload;
use crate::model::digest::Sha256;
use crate::model::receptor::TRY_AGAIN;
use crate::model::work::PayloadFile;
use crate::os::socket::has_hung_up;
use crate::store::payload_file::Writing;
use crate::store::room::Share;

/// Maximum size of a payload that goes into the ledger, bytes. A larger one gets a file.
const MAX_INLINE: usize = 16 * 1024;

/// Maximum time in which the rest of a payload that is too large is read, so that its sender comes
/// to read the error.
const DRAIN: Duration = Duration::from_secs(10);

/// Reads a payload of at most `limit` bytes, for the pipeline in the folder `home`, of which it takes
/// its `share`. The inner error is for its sender.
///
/// # Errors
/// When its sender has gone.
pub async fn read(
    wire: &mut Wire,
    home: &Path,
    limit: u64,
    share: &mut Share,
) -> io::Result<Answer<Payload>> {
    let mut small = Vec::new();
    let mut large: Option<(Writing, Sha256)> = None;
    let mut total: u64 = 0;
    let mut chunk = vec![0; MAX_INLINE];
    loop {
        let read = wire.read(&mut chunk).await?;
        if read == 0 {
            break;
        }
        total += read as u64;
        if total > limit {
            drop(large.take());
            // Its sender reads the error when it has sent all.
            let _ = timeout(DRAIN, drain(wire, &mut chunk)).await;
            return Ok(Err(format!("the payload is larger than {limit} bytes")));
        }
        if let Err(full) = share.grow(read as u64) {
            drop(large.take());
            let _ = timeout(DRAIN, drain(wire, &mut chunk)).await;
            return Ok(Err(format!("{TRY_AGAIN}{full}")));
        }
        small.extend_from_slice(chunk.get(..read).unwrap_or_default());
        if large.is_none() && small.len() <= MAX_INLINE {
            continue;
        }
        // A full disk, or a slow one, holds up this requester only.
        let home = home.to_owned();
        let bytes = std::mem::take(&mut small);
        let before = large.take();
        let written = spawn_blocking(move || write(&home, before, &bytes)).await;
        match written.map_err(io::Error::other)? {
            Ok(writing) => large = Some(writing),
            Err(cause) => {
                let _ = timeout(DRAIN, drain(wire, &mut chunk)).await;
                return Ok(Err(format!("{TRY_AGAIN}store the payload: {cause}")));
            }
        }
    }
    // The end of what a killed sender has sent is not the end of its payload. One that waits for
    // the answer has closed its half only.
    if has_hung_up(wire.stream()) {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let Some((writing, digest)) = large else {
        return Ok(Ok(Payload::Inline(Bytes::from(small))));
    };
    let kept = spawn_blocking(move || writing.keep()).await;
    Ok(match kept.map_err(io::Error::other)? {
        Ok((name, bytes)) => Ok(Payload::File(PayloadFile { name, bytes }, digest.finish())),
        Err(e) => Err(format!("{TRY_AGAIN}store the payload: {e}")),
    })
}

async fn drain(wire: &mut Wire, chunk: &mut [u8]) -> io::Result<()> {
    while wire.read(chunk).await? > 0 {}
    Ok(())
}

/// Appends `bytes` to the file of a payload, which is created first.
fn write(
    home: &Path,
    before: Option<(Writing, Sha256)>,
    bytes: &[u8],
) -> std::result::Result<(Writing, Sha256), String> {
    let (mut writing, mut digest) = match before {
        Some(before) => before,
        None => {
            let writing = Writing::create(home).map_err(|e| e.to_string())?;
            (writing, Sha256::default())
        }
    };
    writing.write(bytes).map_err(|e| e.to_string())?;
    digest.update(bytes);
    Ok((writing, digest))
}
