//! `tael broker`: runs a broker for one machine.

use std::process::ExitCode;

use tracing::info;

use crate::error::Result;
use crate::net::broker::{Broker, Options};
use crate::os::host;
use crate::os::notify::Notify;
use crate::os::signals::Stop;
use crate::tools::printer::Printer;
use crate::tools::unprinted;

/// Runs a broker until it is stopped. `announce` prints its address on stdout when it accepts
/// connections.
///
/// # Errors
/// As [`Broker::start`].
pub fn run(options: Options, announce: bool) -> Result<ExitCode> {
    let tls = options.tls.is_some();
    // Sessions contain messages of others.
    host::make_files_private();
    super::runtime()?.block_on(async {
        let mut stop = Stop::listen(false)?;
        let mut broker = Broker::start(options).await?;
        let scheme = if tls { "mqtts" } else { "mqtt" };
        let url = format!("{scheme}://{}", broker.address());
        info!("listening on {url}");
        if announce {
            let mut printer = Printer::start()?;
            printer.print(url).map_err(|e| unprinted(&e))?;
            tokio::select! {
                biased;
                printed = printer.end() => printed.map_err(|e| unprinted(&e))?,
                // Nothing reads it.
                () = stop.requested() => {
                    broker.stop().await;
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
        Notify::from_environment().ready();
        tokio::select! {
            () = stop.requested() => {}
            e = broker.failed() => return Err(e),
        }
        broker.stop().await;
        Ok(ExitCode::SUCCESS)
    })
}
