//! Completions for shells, from the same definitions as the options themselves.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Args, Command};
use clap_complete::{Shell, generate};

use crate::cli::config::Layers;
use crate::cli::values::one_of;
use crate::cli::{Tool, single_commands, whole};
use crate::error::{Error, Result};
use crate::tools::print_part;

/// Options of `tael completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// Shell: bash, zsh or fish
    #[arg(value_name = "SHELL", value_parser = one_of(shell, &["bash", "zsh", "fish"]))]
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
        let is_whole = self.command == "tael";
        let mut text = Vec::new();
        generate(self.shell, &mut command, self.command, &mut text);
        let text = String::from_utf8_lossy(&text).into_owned();
        let text = match is_whole {
            true => live(self.shell, text),
            false => text,
        };
        print_part(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Commands whose next word is the name of a pipeline.
const WHO: &[&str] = &["control", "forget"];

/// States of runs, which `--state` of `tael work list` takes beside folders.
const STATES: &str = "pending running succeeded failed canceled";

/// Returns the verbs of `tael work` whose next word is a unit.
fn unit_verbs() -> Vec<String> {
    let whole = whole();
    let Some(work) = whole.find_subcommand("work") else {
        return Vec::new();
    };
    let is_unit = |arg: &Arg| arg.get_id() == "unit" || arg.get_id() == "units";
    let takes = |verb: &&Command| verb.get_positionals().any(is_unit);
    let verbs = work.get_subcommands().filter(takes);
    verbs.map(|verb| verb.get_name().to_owned()).collect()
}

/// Adds the ids of units, their states, types of work and the names of pipelines to the completions of
/// `tael`. Ids, types and names are known only when a person asks.
fn live(shell: Shell, text: String) -> String {
    let verbs = unit_verbs();
    match shell {
        Shell::Bash => format!("{text}\n{}", bash(&verbs)),
        Shell::Fish => format!("{text}{}", fish(&verbs)),
        _ => zsh(&text),
    }
}

fn bash(verbs: &[String]) -> String {
    let units: Vec<String> = verbs.iter().map(|verb| format!("work,{verb}")).collect();
    let who: Vec<String> = WHO.iter().map(|name| format!("{name},*")).collect();
    format!(
        r#"_tael_live() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" kind=""
    if [[ ${{COMP_WORDS[COMP_CWORD-1]}} == --who ]]; then
        kind=pipelines
    elif [[ ${{COMP_WORDS[COMP_CWORD-1]}} == --state && ${{COMP_WORDS[1]}} == work &&
        " ${{COMP_WORDS[*]}} " == *" list "* ]]; then
        COMPREPLY=($(compgen -W "{STATES}" -- "$cur") $(compgen -d -- "$cur"))
        return
    elif [[ $cur != -* ]]; then
        case "${{COMP_WORDS[1]}},${{COMP_WORDS[2]}}" in
            {}) [[ $COMP_CWORD -eq 3 ]] && kind=units ;;
            work,submit) [[ $COMP_CWORD -eq 3 ]] && kind=types ;;
            {}) [[ $COMP_CWORD -eq 2 || ${{COMP_WORDS[1]}} == forget ]] && kind=pipelines ;;
        esac
    fi
    if [[ -n $kind ]]; then
        COMPREPLY=($(compgen -W "$("$1" complete "$kind" 2>/dev/null)" -- "$cur"))
        [[ ${{#COMPREPLY[@]}} -gt 0 ]] && return
    fi
    _tael "$@"
}}
complete -F _tael_live -o bashdefault -o default tael
"#,
        units.join("|"),
        who.join("|")
    )
}

fn fish(verbs: &[String]) -> String {
    let seen = |names: &[&str]| format!("__fish_seen_subcommand_from {}", names.join(" "));
    let verbs: Vec<&str> = verbs.iter().map(String::as_str).collect();
    let place = |words: usize| format!("test (__tael_words) -eq {words}");
    let (work, control) = (seen(&["work"]), seen(&["control"]));
    let mut out = String::from(
        "function __tael_words\n    count (string match -v -- '-*' (commandline -opc))\nend\n",
    );
    let mut add = |condition: &str, words: &str| {
        out += &format!("complete -c tael -n \"{condition}\" {words}\n");
    };
    let (units, pipelines) = ("tael complete units", "tael complete pipelines");
    add(
        &format!("{work}; and {}; and {}", seen(&["submit"]), place(3)),
        "-f -a \"(tael complete types 2>/dev/null)\"",
    );
    add(
        &format!("{work}; and {}; and {}", seen(&verbs), place(3)),
        &format!("-f -a \"({units} 2>/dev/null)\""),
    );
    for name in WHO {
        let first = match *name {
            "control" => format!("{control}; and {}", place(2)),
            name => seen(&[name]),
        };
        add(&first, &format!("-f -a \"({pipelines} 2>/dev/null)\""));
    }
    add(
        "true",
        &format!("-l who -x -a \"({pipelines} 2>/dev/null)\""),
    );
    add(
        &format!("{work}; and {}", seen(&["list"])),
        &format!("-l state -x -a \"{STATES} (__fish_complete_directories)\""),
    );
    // The generator leaves out the values of arguments that are no options.
    for command in whole().get_subcommands() {
        for (n, arg) in command.get_positionals().enumerate() {
            let values = arg.get_possible_values();
            let values: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
            if !values.is_empty() && !command.is_hide_set() {
                add(
                    &format!("{}; and {}", seen(&[command.get_name()]), place(n + 2)),
                    &format!("-f -a \"{}\"", values.join(" ")),
                );
            }
        }
    }
    out
}

/// Replaces the completion of units, types of work and pipelines, which files are by default.
fn zsh(text: &str) -> String {
    const BEGIN: &str = "if [ \"$funcstack[1]\" = \"_tael\" ]";
    const DEFAULT: &str = ":_default' \\";
    const STATE: &str = ":DIR:_files -/' \\";
    let functions = format!(
        "_tael_units() {{ compadd -- ${{(f)\"$(tael complete units 2>/dev/null)\"}} }}\n\
         _tael_types() {{ compadd -- ${{(f)\"$(tael complete types 2>/dev/null)\"}} }}\n\
         _tael_pipelines() {{ compadd -- ${{(f)\"$(tael complete pipelines 2>/dev/null)\"}} }}\n\
         _tael_states() {{ (( words[(I)list] )) && compadd -- {STATES}; _files -/ }}\n\n"
    );
    let mut out = String::new();
    for line in text.lines() {
        if line.starts_with(BEGIN) {
            out += &functions;
        }
        let words = if line.contains(":unit -- ") || line.contains(":units -- ") {
            ":_tael_units' \\"
        } else if line.starts_with("':kind -- Type of the work:") {
            ":_tael_types' \\"
        } else if line.contains(":who -- ") || line.starts_with("'--who=[") {
            ":_tael_pipelines' \\"
        } else {
            DEFAULT
        };
        let of_state = line.strip_suffix(STATE);
        let of_state = of_state.filter(|start| start.starts_with("'*--state=["));
        match (line.strip_suffix(DEFAULT), of_state) {
            (Some(start), _) => out += &format!("{start}{words}\n"),
            (None, Some(start)) => out += &format!("{start}:DIR:_tael_states' \\\n"),
            (None, None) => out += &format!("{line}\n"),
        }
    }
    out
}
