//! Output of a unit as it comes.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Kind, Result};
use crate::model::digest::Sha256;
use crate::model::remote::assembly::{Assembly, Fit, Gap, Piece};
use crate::model::remote::wire::{Answer, Confirmation, End, Request, State, StreamName};
use crate::model::signature::{Keys, hex};
use crate::model::text::printable;
use crate::os::logging::say;
use crate::os::stdout::stdout;
use crate::tools::work::node::dialog::{Dialog, Heard};

/// Time without a limit: a run may take days.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Maximum number of ends in a row that tell of more output, although nothing came since the last one
/// and all was asked for. An end may be one of an earlier request.
const MAX_SHORTS: u32 = 16;

/// What of the output is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Both streams, each on ours.
    Both,
    /// Both streams on stdout.
    Merged,
    /// One stream on stdout.
    One(StreamName),
}

impl Show {
    fn write(self, stream: StreamName, bytes: &[u8]) -> Result<()> {
        let to_stderr = match self {
            Self::Both => stream == StreamName::Stderr,
            Self::One(one) if one != stream => return Ok(()),
            Self::One(_) | Self::Merged => false,
        };
        let written = match to_stderr {
            true => io::stderr().lock().write_all(bytes),
            false => stdout().and_then(|out| {
                let mut out = out.lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }),
        };
        written
            .inspect_err(crate::tools::ended_by_reader)
            .map_err(|e| Error::cannot_create(format!("write the output: {e}")))
    }
}

/// A stream that comes.
struct Coming {
    pieces: Assembly,
    digest: Sha256,
}

/// Last state that the node has told since output was asked for.
#[derive(Default)]
struct Reminders(Option<State>);

impl Reminders {
    /// Notes that output is asked for: the node tells its state once more.
    fn asked(&mut self) {
        self.0 = None;
    }

    /// Takes a state. Returns whether the node reminds us: it has waited for us, and tells the same again.
    fn is_reminder(&mut self, state: State) -> bool {
        let last = self.0.replace(state);
        last == self.0
    }
}

/// Prints the output of the unit as it comes, and returns its end.
///
/// # Errors
/// When the node refuses, or the output cannot be written.
pub async fn follow(dialog: &mut Dialog<'_>, show: Show) -> Result<End> {
    let coming = || Coming {
        pieces: Assembly::default(),
        digest: Sha256::default(),
    };
    let mut streams = [coming(), coming()];
    let at = |streams: &[Coming; 2]| {
        let [stdout, stderr] = streams;
        [stdout.pieces.offset(), stderr.pieces.offset()]
    };
    let unit = dialog.unit.to_owned();
    let ask = |dialog: &mut Dialog<'_>, from, reminders: &mut Reminders| {
        let request = Request::Results {
            unit: unit.clone(),
            from,
            signature: None,
        };
        reminders.asked();
        dialog.send(request, b"", None)
    };
    let patience = Instant::now() + FOR_EVER;
    let mut first = Instant::now() + dialog.node.timeout;
    // Whether the node was told since something new came that we have what it sends.
    let mut repeated = false;
    // Number of ends since something new came that told of more.
    let mut shorts = 0;
    let mut reminders = Reminders::default();
    // Whether output was asked for since something new came.
    let mut asked = ask(dialog, [0, 0], &mut reminders)?;
    loop {
        let (answer, body) = match dialog.next(first).await? {
            Heard::Online | Heard::Back => {
                asked = ask(dialog, at(&streams), &mut reminders)?;
                continue;
            }
            // A unit that says nothing sends nothing.
            Heard::Late => {
                first = patience;
                continue;
            }
            Heard::Answer(answer, body) => (answer, body),
        };
        first = patience;
        match answer {
            Answer::Output { stream, offset, .. } => {
                let Some(coming) = streams.get_mut(stream as usize) else {
                    continue;
                };
                match coming.pieces.take(offset, body) {
                    Piece::Next(bytes) => {
                        (asked, repeated, shorts) = (false, false, 0);
                        coming.digest.update(&bytes);
                        show.write(stream, &bytes)?;
                    }
                    Piece::Known if !repeated => {
                        // An earlier request was delivered late. The node goes on from here.
                        repeated = true;
                        let (unit, at) = (unit.clone(), at(&streams));
                        let end = false;
                        dialog.send(Request::Ack { unit, at, end }, b"", None)?;
                    }
                    Piece::Known => {}
                    Piece::Early if !asked => {
                        asked = ask(dialog, at(&streams), &mut reminders)?;
                    }
                    Piece::Early => {}
                }
            }
            Answer::Gap {
                stream,
                offset,
                bytes,
                ..
            } => {
                let Some(coming) = streams.get_mut(stream as usize) else {
                    continue;
                };
                let gap = match bytes {
                    Some(bytes) => coming.pieces.skip(offset, bytes),
                    None => coming.pieces.cut(offset),
                };
                match (gap, bytes) {
                    (Gap::Next, Some(bytes)) => {
                        (asked, shorts) = (false, 0);
                        say(&format!("{bytes} bytes were dropped here"));
                    }
                    (Gap::Next, None) => say("the rest was dropped here"),
                    (Gap::Early, _) if !asked => {
                        asked = ask(dialog, at(&streams), &mut reminders)?;
                    }
                    (Gap::Known | Gap::Early, _) => {}
                }
            }
            // An acknowledgement or a request did not get there, or output did not get here.
            Answer::State(state) => {
                let is_reminder = reminders.is_reminder(state);
                if is_reminder {
                    asked = ask(dialog, at(&streams), &mut reminders)?;
                }
            }
            Answer::End(end) => {
                let fits = fits(&streams, &end)?;
                if fits.contains(&Fit::Short) {
                    shorts += 1;
                    if shorts > MAX_SHORTS {
                        return Err(wrong(&unit, "the node does not send all of it"));
                    }
                    asked = ask(dialog, at(&streams), &mut reminders)?;
                    continue;
                }
                if let Some(keys) = &dialog.node.verify {
                    is_confirmed(&end, keys, &dialog.node.name)?;
                    if fits.contains(&Fit::More) {
                        say("no signature covers the output that the node has dropped since");
                    }
                }
                // A node that hears of it forgets this unit before others when it needs room.
                let ack = Request::Ack {
                    unit: unit.clone(),
                    at: end.lengths,
                    end: true,
                };
                dialog.send(ack, b"", None)?;
                return Ok(end);
            }
            Answer::Refused { code, error, .. } => {
                return Err(dialog.refused("read output", code, &error));
            }
            _ => {}
        }
        if streams.iter_mut().any(|coming| coming.pieces.is_ack_due()) {
            let (unit, at) = (unit.clone(), at(&streams));
            let end = false;
            dialog.send(Request::Ack { unit, at, end }, b"", None)?;
        }
    }
}

/// Returns how the output fits its end.
///
/// # Errors
/// When it does not.
fn fits(streams: &[Coming; 2], end: &End) -> Result<[Fit; 2]> {
    let unit = &end.state.unit;
    let mut fits = [Fit::Same; 2];
    for (n, (fit, coming)) in fits.iter_mut().zip(streams).enumerate() {
        let told = (end.lengths.get(n), end.sha256.get(n), end.dropped.get(n));
        let (Some(length), Some(sha256), Some(dropped)) = told else {
            continue;
        };
        *fit = coming.pieces.fits(*length, *dropped);
        let is_same = || hex(&coming.digest.clone().finish()) == *sha256;
        match fit {
            Fit::Same if !is_same() => {
                return Err(wrong(unit, "its SHA-256 is not that of the node"));
            }
            Fit::Wrong => return Err(wrong(unit, "its length is not that of the node")),
            Fit::Same | Fit::More | Fit::Short => {}
        }
    }
    Ok(fits)
}

fn wrong(unit: &str, cause: &str) -> Error {
    Error::data(format!("read output of unit {unit}: {cause}"))
}

/// Checks that the node has confirmed the end.
///
/// # Errors
/// 77 if it has not.
fn is_confirmed(end: &End, keys: &Keys, node: &str) -> Result<()> {
    let cause = match &end.signature {
        None => "it is not signed".to_owned(),
        Some(token) => match keys.confirmed::<Confirmation>(token) {
            Ok(confirmed) if confirmed == end.confirmation(node) => return Ok(()),
            Ok(_) => "the signature is for another end".to_owned(),
            Err(e) => e.to_string(),
        },
    };
    let unit = &end.state.unit;
    Err(Error::new(
        Kind::NotAuthorised,
        format!("take the end of unit {unit} on node {node}: {cause}"),
    ))
}

/// Returns the exit code of a unit that has ended.
pub fn exit(end: &End) -> ExitCode {
    match end.state.code {
        Some(code) => ExitCode::from(code),
        None => {
            let (unit, detail) = (&end.state.unit, printable(&end.state.detail, 500));
            say(&format!("unit {unit}: {detail}"));
            ExitCode::from(Kind::NoCode.exit_code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(name: &str) -> State {
        State {
            unit: "01JBV7Y3ZK8Q5W2N4T6R9M1XCD".to_owned(),
            kind: "cat".to_owned(),
            state: name.to_owned(),
            detail: name.to_owned(),
            code: None,
            submitter: String::new(),
            started: None,
            elapsed: None,
        }
    }

    #[test]
    fn a_state_that_comes_again_is_a_reminder_and_its_answer_is_not() {
        let mut reminders = Reminders::default();
        assert!(!reminders.is_reminder(state("pending")));
        assert!(!reminders.is_reminder(state("running")));
        assert!(reminders.is_reminder(state("running")));
        reminders.asked();
        assert!(!reminders.is_reminder(state("running")));
        assert!(reminders.is_reminder(state("running")));
    }
}
