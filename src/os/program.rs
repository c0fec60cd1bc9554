//! Programs for `execve(2)`: found, executed, and explained when they cannot run.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{AccessFlags, eaccess};

use crate::model::command::Command;
use crate::model::text::{printable, printable_bytes};

/// Folders of programs without `PATH` (`execvp(3)`).
const EXECVP_PATH: &str = "/bin:/usr/bin";

/// Folders of programs of a command whose environment has no `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Maximum time to wait for a program that another process is writing (ETXTBSY), such as an
/// installer; and the interval between two attempts.
const BUSY_LIMIT: Duration = Duration::from_secs(1);
const BUSY_CHECK: Duration = Duration::from_millis(20);

/// Maximum length of the line that names an interpreter, bytes (Linux, `BINPRM_BUF_SIZE`).
const MAX_FIRST_LINE: u64 = 256;

/// Maximum number of its characters to show.
const MAX_SHOWN: usize = 120;

/// Strings for `execve(2)`.
pub(super) struct Strings {
    /// The strings to which the pointers point.
    _owned: Vec<CString>,
    /// Pointers, with a null pointer at the end.
    pointers: Vec<*const libc::c_char>,
}

impl Strings {
    /// Takes `strings`.
    ///
    /// # Errors
    /// `InvalidInput` if one contains a NUL.
    pub(super) fn new(strings: impl IntoIterator<Item = Vec<u8>>) -> io::Result<Self> {
        let owned = strings.into_iter().map(CString::new);
        let owned = owned.collect::<Result<Vec<_>, _>>()?;
        let pointers = owned.iter().map(|string| string.as_ptr());
        let pointers = pointers.chain([ptr::null()]).collect();
        Ok(Self {
            _owned: owned,
            pointers,
        })
    }
}

/// A program with its arguments.
pub(super) struct Program {
    /// Paths to try, in order.
    paths: Vec<CString>,
    argv: Strings,
}

impl Program {
    /// Returns the program `argv[0]` with these arguments, searched in `path` as `execvp(3)` does.
    ///
    /// # Errors
    /// `InvalidInput` if a string contains a NUL.
    pub(super) fn new(argv: &[String], path: Option<&OsStr>) -> io::Result<Self> {
        let program = argv.first().map_or("", String::as_str);
        let paths = if program.contains('/') || program.is_empty() {
            vec![CString::new(program)?]
        } else {
            let path = path.unwrap_or(OsStr::new(EXECVP_PATH)).as_bytes();
            path.split(|byte| *byte == b':')
                .map(|folder| {
                    // An empty one is the working directory.
                    let slash: &[u8] = if folder.is_empty() { b"" } else { b"/" };
                    Ok(CString::new([folder, slash, program.as_bytes()].concat())?)
                })
                .collect::<io::Result<_>>()?
        };
        let argv = Strings::new(argv.iter().map(|text| text.clone().into_bytes()))?;
        Ok(Self { paths, argv })
    }

    /// Becomes the program, or returns why not, as `execvp(3)` does. Waits up to [`BUSY_LIMIT`] for
    /// a program that another process is writing.
    pub(super) fn execute(&self, environment: &Strings) -> Errno {
        let mut error = Errno::ENOENT;
        for path in &self.paths {
            match self.execute_at(path, environment) {
                Errno::EACCES => error = Errno::EACCES,
                Errno::ENOENT
                | Errno::ENOTDIR
                | Errno::ENODEV
                | Errno::ESTALE
                | Errno::ETIMEDOUT => {}
                other => return other,
            }
        }
        error
    }

    fn execute_at(&self, path: &CString, environment: &Strings) -> Errno {
        let begun = Instant::now();
        loop {
            let (argv, envp) = (&self.argv.pointers, &environment.pointers);
            // SAFETY: the path is a C string; both arrays point to C strings that live as long
            // as they do, and end with a null pointer.
            unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
            match Errno::last() {
                Errno::ETXTBSY if begun.elapsed() < BUSY_LIMIT => thread::sleep(BUSY_CHECK),
                other => return other,
            }
        }
    }

    /// Explains the `error` of [`Program::execute`] in `folder`: the system reports a missing
    /// program when its interpreter is missing.
    pub(super) fn explain(&self, error: io::Error, folder: Option<&Path>) -> io::Error {
        if error.kind() != io::ErrorKind::NotFound {
            return error;
        }
        let there = self.paths.iter().find_map(|path| {
            let path = Path::new(OsStr::from_bytes(path.as_bytes()));
            let path = folder.map_or_else(|| path.to_owned(), |folder| folder.join(path));
            path.is_file().then_some(path)
        });
        let Some(path) = there else {
            return error;
        };
        io::Error::new(error.kind(), missing_interpreter(&path, &error))
    }
}

/// Explains why the existing file at `path` was reported missing.
fn missing_interpreter(path: &Path, error: &io::Error) -> String {
    let mut begin = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FIRST_LINE).read_to_end(&mut begin));
    if let Err(e) = read {
        return format!("{error}, or its interpreter is missing: {e}");
    }
    let line = begin.split(|b| *b == b'\n').next().unwrap_or_default();
    let Some(line) = line.strip_prefix(b"#!") else {
        return "the loader that it needs is missing: it was built for another system".into();
    };
    let words = line.trim_ascii().split(|b| b.is_ascii_whitespace());
    let interpreter = words.into_iter().next().unwrap_or_default();
    let interpreter = printable_bytes(interpreter, MAX_SHOWN);
    match line.ends_with(b"\r") {
        true => format!(
            "its interpreter '{interpreter}\\r' is missing: the file has Windows line ends, \
             which sed -i 's/\\r$//' removes"
        ),
        false => format!("its interpreter '{interpreter}' is missing"),
    }
}

/// Looks for the file that executing `program` with `path` as its `PATH` in `folder` would execute.
///
/// # Errors
/// A text for the user: why there is none.
pub fn look(program: &str, path: &OsStr, folder: &Path) -> Result<(), String> {
    let shown = printable(program, MAX_SHOWN);
    let found = Program::new(&[program.to_owned()], Some(path));
    let found = found.map_err(|e| format!("'{shown}' cannot be executed: {e}"))?;
    let mut why = match program.contains('/') {
        true => format!("there is no {shown}"),
        false => format!(
            "there is no program '{shown}' in {}",
            printable_bytes(path.as_bytes(), 4 * MAX_SHOWN)
        ),
    };
    for path in &found.paths {
        // Without a `./` before that of the folder.
        let path: PathBuf = folder
            .join(OsStr::from_bytes(path.as_bytes()))
            .components()
            .collect();
        let Ok(meta) = path.metadata() else { continue };
        if meta.is_dir() {
            why = format!("{} is a folder", path.display());
        } else if eaccess(&path, AccessFlags::X_OK).is_err() {
            why = format!("{} is not executable: chmod +x it", path.display());
        } else {
            return interpreter(&path);
        }
    }
    Err(why)
}

/// Looks for the program of `command`, and first for its shell. A word that its shell would not execute
/// as it is counts as found.
///
/// # Errors
/// A text for the user: why there is none.
pub fn look_for(command: &Command, path: &OsStr, folder: &Path) -> Result<(), String> {
    match command {
        Command::Shell { shell, .. } => {
            look(shell, path, folder)?;
            let Some(first) = command.first_word() else {
                return Ok(());
            };
            // A bare name may be a built-in of the shell, which is asked only then.
            look(first, path, folder).or_else(|cause| {
                let is_known = !first.contains('/') && shell_knows(shell, first, path);
                if is_known { Ok(()) } else { Err(cause) }
            })
        }
        Command::Direct(words) => match words.first() {
            Some(first) => look(first, path, folder),
            None => Ok(()),
        },
        Command::Recorded(_) => Ok(()),
    }
}

/// Checks that the interpreter of a script exists.
fn interpreter(script: &Path) -> Result<(), String> {
    let mut begin = Vec::new();
    let read =
        File::open(script).and_then(|file| file.take(MAX_FIRST_LINE).read_to_end(&mut begin));
    // A program may be executable and not readable.
    let line = begin.split(|b| *b == b'\n').next().unwrap_or_default();
    let Some(line) = line.strip_prefix(b"#!").filter(|_| read.is_ok()) else {
        return Ok(());
    };
    let line = line.trim_ascii_start();
    let end = line.iter().position(u8::is_ascii_whitespace);
    let carriage = line.ends_with(b"\r");
    let name = line.get(..end.unwrap_or(line.len())).unwrap_or_default();
    if !name.is_empty() && (carriage || !Path::new(OsStr::from_bytes(name)).exists()) {
        let missing = io::Error::from(io::ErrorKind::NotFound);
        let cause = missing_interpreter(script, &missing);
        return Err(format!("{} cannot be executed: {cause}", script.display()));
    }
    Ok(())
}

/// Shells that read a line without executing it when they are started with `-n` (POSIX.1-2017, `sh`).
const SHELLS: &[&str] = &["sh", "ash", "bash", "dash", "ksh", "mksh", "zsh"];

fn is_posix(shell: &str) -> bool {
    let name = Path::new(shell).file_name().and_then(OsStr::to_str);
    name.is_some_and(|name| SHELLS.contains(&name))
}

/// Returns whether `shell` may execute `word` without a file of that name: it is a built-in, or a shell
/// that cannot be asked (POSIX.1-2017, `command -v`).
#[must_use]
pub fn shell_knows(shell: &str, word: &str, path: &OsStr) -> bool {
    if !is_posix(shell) {
        return true;
    }
    let asked = process::Command::new(shell)
        .args(["-c", "command -v -- \"$1\"", "sh", word])
        .env_clear()
        .env("PATH", path)
        .stdin(process::Stdio::null())
        .stdout(process::Stdio::null())
        .stderr(process::Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

/// Makes `shell` read `line` without executing it.
///
/// # Errors
/// What the shell says about the line.
pub fn check_syntax(shell: &str, line: &str) -> Result<(), String> {
    if !is_posix(shell) {
        return Ok(());
    }
    // Nothing of the environment, such as BASH_ENV, is of interest.
    let checked = process::Command::new(shell)
        .args(["-n", "-c", line])
        .env_clear()
        .stdin(process::Stdio::null())
        .output();
    match checked {
        Ok(output) if !output.status.success() => {
            let said = output.stderr.split(|b| *b == b'\n').next();
            Err(printable_bytes(said.unwrap_or_default(), 2 * MAX_SHOWN))
        }
        // A shell that cannot be started was reported.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(name: &str, path: Option<&str>) -> Vec<String> {
        let program = Program::new(&[name.to_owned()], path.map(OsStr::new)).expect("program");
        let text = |path: &CString| path.to_str().expect("UTF-8").to_owned();
        program.paths.iter().map(text).collect()
    }

    #[test]
    fn programs_are_looked_for_where_execvp_does() {
        assert_eq!(paths("x", Some("/a:/b/")), ["/a/x", "/b//x"]);
        assert_eq!(paths("x", Some(":/b:")), ["x", "/b/x", "x"]);
        assert_eq!(paths("x", None), ["/bin/x", "/usr/bin/x"]);
        assert_eq!(paths("./x", Some("/a")), ["./x"]);
        assert_eq!(paths("", Some("/a")), [""]);
        assert!(Program::new(&["x\0y".to_owned()], None).is_err());
    }

    #[test]
    fn a_missing_interpreter_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let explain = |text: &[u8]| {
            std::fs::write(dir.path().join("x"), text).expect("write");
            let program = Program::new(&["./x".to_owned()], None).expect("program");
            let missing = io::Error::from(io::ErrorKind::NotFound);
            let error = program.explain(missing, Some(dir.path()));
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            error.to_string()
        };
        assert_eq!(
            explain(b"#! /no/such -e\n"),
            "its interpreter '/no/such' is missing"
        );
        let windows = explain(b"#!/bin/bash\r\necho\r\n");
        assert!(
            windows.starts_with("its interpreter '/bin/bash\\r' is missing"),
            "{windows}"
        );
        assert!(windows.contains("Windows line ends"));
        let env = explain(b"#!/usr/bin/env -S python3 -u\r\n");
        assert!(env.contains("Windows line ends"), "{env}");
        assert!(explain(b"\x7fELF").contains("loader"));
        let program = Program::new(&["./y".to_owned()], None).expect("program");
        let missing = io::Error::from(io::ErrorKind::NotFound);
        let text = missing.to_string();
        assert_eq!(program.explain(missing, Some(dir.path())).to_string(), text);
    }
}
