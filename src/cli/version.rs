//! The command line of `tael version`.

use std::process::ExitCode;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::error::Result;
use crate::tools::print_part;

/// `tael version`, which takes no options.
#[derive(Debug, Args)]
pub struct Version {}

impl Tool for Version {
    const NAME: &'static str = "version";
    const ABOUT: &'static str = "Print the version";

    fn run(self, _: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        print_part(concat!("tael ", env!("CARGO_PKG_VERSION"), "\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}
