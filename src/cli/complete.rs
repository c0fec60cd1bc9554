//! The command line of `tael complete`, which the completions of shells call.

use std::process::ExitCode;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::values::one_of;
use crate::error::{Error, Result};
use crate::os::paths;
use crate::tools::print_part;
use crate::tools::work::Scope;
use crate::tools::work::complete::{names, types, units};

/// Options of `tael complete`.
#[derive(Debug, Args)]
pub struct Complete {
    /// Words to print: units, pipelines or types
    #[arg(value_parser = one_of(kind, &["units", "pipelines", "types"]))]
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Units,
    Pipelines,
    Types,
}

fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "units" => Ok(Kind::Units),
        "pipelines" => Ok(Kind::Pipelines),
        "types" => Ok(Kind::Types),
        _ => Err(format!(
            "'{text}' cannot be completed: units, pipelines or types"
        )),
    }
}

impl Tool for Complete {
    const NAME: &'static str = "complete";
    const ABOUT: &'static str = "Print words for the completions of shells";
    const HIDDEN: bool = true;

    fn run(self, _: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        let scope = Scope {
            state: paths::state_dir()?,
            who: None,
        };
        let words = match self.kind {
            Kind::Units => units(&scope),
            Kind::Pipelines => names(&scope),
            Kind::Types => types(&scope),
        }?;
        let lines: String = words.iter().map(|word| format!("{word}\n")).collect();
        print_part(&lines)?;
        Ok(ExitCode::SUCCESS)
    }

    fn failed(_: Error) -> Result<ExitCode> {
        // A person who presses Tab wants no errors.
        Ok(ExitCode::SUCCESS)
    }
}
