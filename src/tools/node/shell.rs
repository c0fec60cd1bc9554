//! A shell that has read the functions of a node and runs as long as the node. A variable of one
//! call stays for the next.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::time::sleep;

use crate::model::text::printable;
use crate::os::inherit::keep_variables;
use crate::os::process::end_group;

/// Calls functions with words that it reads, separated by NUL, and reports how each ended. Nothing
/// in a word is evaluated. Background processes of functions do not have the pipes.
const DRIVER: &str = r#"
exec 3<&0 4>&1 </dev/null 1>&2
[ -z "$1" ] || . "$1" || exit 1
eval "$2" || exit 1
set --
_tael_code=0
if declare -F initFunction >/dev/null; then initFunction 3<&- 4>&-; _tael_code=$?; fi
printf 'done %s\n' "$_tael_code" >&4
while IFS= read -r -d '' -u 3 _tael_count; do
    _tael_words=()
    while [ "${#_tael_words[@]}" -lt "$_tael_count" ]; do
        IFS= read -r -d '' -u 3 _tael_word || exit 0
        _tael_words+=("$_tael_word")
    done
    "${_tael_words[@]}" 3<&- 4>&-
    printf 'done %s\n' "$?" >&4
done
# The node is gone: what it has started goes too.
if declare -F tael_stop >/dev/null; then tael_stop; fi
trap '' TERM
kill -TERM 0
"#;

/// Interval between two checks whether the shell still runs, while a call is pending.
const LOOK: Duration = Duration::from_millis(200);

/// The shell.
#[derive(Debug)]
pub struct Shell {
    child: Child,
    calls: ChildStdin,
    replies: Lines<BufReader<pipe::Receiver>>,
    ended: bool,
}

/// Parses text for the shell, and runs none of it: the file `functions`, or `text` if there is no file.
///
/// # Errors
/// The mistake that bash reports first, or why there is no bash.
pub fn parse(functions: Option<&Path>, text: &str) -> Result<(), String> {
    let mut command = Command::new("bash");
    keep_variables(&mut command);
    command.arg("-n");
    match functions {
        Some(file) => command.arg(file),
        None => command.args(["-c", text]),
    };
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("start bash: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or("bash does not say why");
    // `FILE: line 3: …`, or `bash: -c: line 3: …`.
    let place = first.find("line ").unwrap_or(0);
    Err(printable(first.get(place..).unwrap_or(first), 300))
}

impl Drop for Shell {
    fn drop(&mut self) {
        if !self.ended {
            end_group(self.child.id(), Duration::ZERO);
            let _ = self.child.wait();
        }
    }
}

impl Shell {
    /// Starts a shell that reads the file `functions`, if that is not empty, and then the
    /// definitions in `text`. [`Shell::reply`] returns how `initFunction` ended, if there is one.
    ///
    /// # Errors
    /// When there is no bash.
    pub fn start(functions: &Path, text: &str) -> io::Result<Self> {
        let mut command = Command::new("bash");
        keep_variables(&mut command);
        let mut child = command
            .args(["-c", DRIVER, "tael-node"])
            .arg(functions)
            .arg(text)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (Some(calls), Some(replies)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let replies = pipe::Receiver::from_file(File::from(OwnedFd::from(replies)))?;
        Ok(Self {
            child,
            calls,
            replies: BufReader::new(replies).lines(),
            ended: false,
        })
    }

    /// Calls `function` with `words`; [`Shell::reply`] returns how it ended.
    ///
    /// # Errors
    /// When the shell is gone.
    pub fn call(&mut self, function: &str, words: &[String]) -> io::Result<()> {
        if words.iter().any(|word| word.contains('\0')) {
            // It would end the word, and start a call that the sender chooses.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut text = format!("{}\0{function}\0", words.len() + 1);
        for word in words {
            text += word;
            text.push('\0');
        }
        self.calls.write_all(text.as_bytes())
    }

    /// Returns the exit code of the call; `None` if it has ended the shell.
    pub async fn reply(&mut self) -> Option<i32> {
        loop {
            tokio::select! {
                biased;
                line = self.replies.next_line() => {
                    return line.ok()??.strip_prefix("done ")?.parse().ok();
                }
                // Its background processes may hold the pipe open.
                () = sleep(LOOK) => if !matches!(self.child.try_wait(), Ok(None)) {
                    return None;
                },
            }
        }
    }

    /// Ends the shell, and everything it has started that is still in its process group.
    pub fn end(mut self, grace: Duration) {
        end_group(self.child.id(), grace);
        let _ = self.child.wait();
        self.ended = true;
    }
}
