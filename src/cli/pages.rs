//! Manual pages and completions, from the same definitions as the options themselves.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command};
use clap_complete::{Shell, generate};
use clap_mangen::Man as Page;

use crate::cli::config::Layers;
use crate::cli::{Tool, single_commands, whole};
use crate::error::{Error, Result};

/// Options of `tael man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Folder for the pages; it is created if missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Tool for Man {
    const NAME: &'static str = "man";
    const ABOUT: &'static str = "Write the manual pages into a folder";

    fn run(self, _: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        fs::create_dir_all(&self.dir).map_err(|e| {
            Error::cannot_create(format!("create folder {}: {e}", self.dir.display()))
        })?;
        let whole = whole();
        let mut pages = vec![whole.clone()];
        for command in whole.get_subcommands() {
            // Each has a page of its own, with the name of the binary.
            let name = format!("tael-{}", command.get_name());
            pages.push(command.clone().name(name.clone()).bin_name(name));
        }
        for command in pages {
            let path = self.dir.join(format!("{}.1", command.get_name()));
            let mut text = Vec::new();
            let page = Page::new(command)
                .manual("Tael")
                .source(env!("CARGO_PKG_VERSION"));
            page.render(&mut text)
                .and_then(|()| fs::write(&path, text))
                .map_err(|e| Error::cannot_create(format!("write {}: {e}", path.display())))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Options of `tael completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// Shell: bash, zsh or fish
    #[arg(value_name = "SHELL", value_parser = shell)]
    shell: Shell,
    /// Command to complete: tael, tael-client, tael-message or tael-beacon
    #[arg(value_name = "COMMAND", default_value = "tael")]
    command: String,
}

fn shell(text: &str) -> Result<Shell, String> {
    match text {
        "bash" => Ok(Shell::Bash),
        "zsh" => Ok(Shell::Zsh),
        "fish" => Ok(Shell::Fish),
        _ => Err(format!("unknown shell '{text}': bash, zsh or fish")),
    }
}

impl Tool for Completions {
    const NAME: &'static str = "completions";
    const ABOUT: &'static str = "Print completions for bash, zsh or fish";

    fn run(self, _: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        let mut commands: Vec<Command> = vec![whole()];
        commands.extend(single_commands());
        let names: Vec<String> = commands.iter().map(|c| c.get_name().to_owned()).collect();
        let wanted = commands.into_iter().find(|c| c.get_name() == self.command);
        let mut command = wanted.ok_or_else(|| {
            Error::usage(format!(
                "print completions: '{}' is none of {}",
                self.command,
                names.join(", ")
            ))
        })?;
        let mut text = Vec::new();
        generate(self.shell, &mut command, self.command, &mut text);
        let done = io::stdout().lock().write_all(&text);
        done.map_err(|e| Error::cannot_create(format!("write to stdout: {e}")))?;
        Ok(ExitCode::SUCCESS)
    }
}
