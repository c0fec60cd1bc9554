//! Commands on a terminal of their own, and what its screen shows.
//!
//! `golden` compares a screen with a file of `tests/fixtures/screens/`. With `TAEL_TEST_SCREENS=write`
//! it writes the file instead: read the difference before you commit it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::sys::signal::{SigHandler, Signal, signal};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use vt100::{Color, Parser, Screen};

use super::wait_until;

/// Rows of every terminal: more than a test shows, so that nothing scrolls away.
const ROWS: u16 = 100;

/// A command on a terminal. It ends with the test, whatever happens.
pub struct Terminal {
    child: Child,
    keyboard: File,
    parser: Arc<Mutex<Parser>>,
    reader: JoinHandle<()>,
}

impl Terminal {
    /// Starts `command` on a terminal with so many `columns`, which has colours. The terminal is also
    /// its controlling terminal: Ctrl-C reaches it as SIGINT.
    pub fn start(mut command: Command, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let master = master.expect("terminal");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let size = Winsize {
            ws_row: ROWS,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).expect("size");
        let name = ptsname(&master, Vec::new()).expect("name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name, flags, Mode::empty()).expect("open");
        let end = || Stdio::from(slave.try_clone().expect("clone"));
        command
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .env("TAEL_LOG", "warn")
            .stdin(end())
            .stdout(end())
            .stderr(end());
        let adopt = || {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            // A shell starts what it puts into the background with SIGINT ignored, and the tests with
            // it. SAFETY: no handler of this process is replaced, but what the program inherits.
            unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }?;
            Ok(())
        };
        // SAFETY: between fork and exec it calls setsid(2), ioctl(2) and sigaction(2) only, which are
        // safe there.
        unsafe { command.pre_exec(adopt) };
        let child = command.spawn().expect("spawn");
        // It holds the terminal open as well.
        drop(command);
        drop(slave);
        let size = [ROWS, columns].map(|n| NonZeroU16::new(n).expect("size"));
        let parser = Arc::new(Mutex::new(Parser::new(size[0], size[1], 0)));
        let keyboard = File::from(master.try_clone().expect("clone"));
        let reader = read(master, Arc::clone(&parser));
        Self {
            child,
            keyboard,
            parser,
            reader,
        }
    }

    /// Types `keys`; `\u{3}` is Ctrl-C.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("press");
    }

    /// The screen as text, without blanks at the ends of lines and empty lines at its end. Colours
    /// stand in marks, as in `«green»finished«»`. A line that did not fit ends with `↩`.
    pub fn text(&self) -> String {
        shown(self.parser.lock().expect("lock").screen())
    }

    /// Waits until the screen has `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let deadline = std::time::Instant::now() + super::PATIENCE;
        while !self.text().contains(text) {
            assert!(
                std::time::Instant::now() < deadline,
                "never shown: {text}; shown:\n{}",
                self.text()
            );
            thread::sleep(super::LOOK);
        }
    }

    /// Waits for the end of the command and of its output. Returns its exit code and the screen.
    #[track_caller]
    pub fn end(mut self) -> (i32, String) {
        let mut status = None;
        wait_until("the command ends", || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        wait_until("its output ends", || self.reader.is_finished());
        let code = status.and_then(|status| status.code());
        (code.unwrap_or(-1), self.text())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Shows everything that comes from `master`, until no process has the terminal any more.
fn read(master: OwnedFd, parser: Arc<Mutex<Parser>>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut master = File::from(master);
        let mut buffer = [0; 4096];
        // The read fails with EIO then.
        while let Ok(n @ 1..) = master.read(&mut buffer) {
            parser.lock().expect("lock").process(&buffer[..n]);
        }
    })
}

fn shown(screen: &Screen) -> String {
    let (rows, columns) = screen.size();
    let (rows, columns) = (rows.get(), columns.get());
    let mut out = String::new();
    for row in 0..rows {
        let mut line = String::new();
        let mut style = String::new();
        for column in 0..columns {
            let Some(cell) = screen.cell(row, column) else {
                continue;
            };
            if cell.is_wide_continuation() {
                continue;
            }
            let new = style_of(cell);
            if new != style {
                let _ = write!(line, "«{new}»");
                style = new;
            }
            line += if cell.has_contents() {
                cell.contents()
            } else {
                " "
            };
        }
        if !style.is_empty() {
            line += "«»";
        }
        let wraps = if screen.row_wrapped(row) { "↩" } else { "" };
        let _ = writeln!(out, "{}{wraps}", line.trim_end());
    }
    format!("{}\n", out.trim_end())
}

fn style_of(cell: &vt100::Cell) -> String {
    let mut words = Vec::new();
    for (on, word) in [
        (cell.bold(), "bold"),
        (cell.dim(), "dim"),
        (cell.italic(), "italic"),
        (cell.underline(), "underline"),
        (cell.inverse(), "inverse"),
    ] {
        words.extend(on.then(|| word.to_owned()));
    }
    // ECMA-48, section 8.3.117.
    let names = [
        "black", "red", "green", "yellow", "blue", "magenta", "cyan", "white",
    ];
    for (on, colour) in [("", cell.fgcolor()), ("on ", cell.bgcolor())] {
        words.extend(match colour {
            Color::Default => None,
            Color::Idx(n) => Some(match names.get(usize::from(n)) {
                Some(name) => format!("{on}{name}"),
                None => format!("{on}{n}"),
            }),
            Color::Rgb(r, g, b) => Some(format!("{on}#{r:02x}{g:02x}{b:02x}")),
        });
    }
    words.join(" ")
}

/// Replaces everything in `text` that has this `shape`, in which `9` is a digit, `#` a number (digits
/// and dots), and `@` a capital letter or a digit. What differs from run to run is masked so:
/// `masked(&text, "99:99:99", "12:34:56")`.
pub fn masked(text: &str, shape: &str, with: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let inside = out.ends_with(|c: char| c.is_ascii_digit());
        match after(rest, shape).filter(|_| !(inside && c.is_ascii_digit())) {
            Some(end) => {
                out += with;
                rest = end;
            }
            None => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    out
}

/// What follows the `shape` with which `text` begins.
fn after<'a>(text: &'a str, shape: &str) -> Option<&'a str> {
    let mut rest = text;
    for wanted in shape.chars() {
        let c = rest.chars().next()?;
        rest = match wanted {
            '9' if c.is_ascii_digit() => &rest[1..],
            '@' if c.is_ascii_digit() || c.is_ascii_uppercase() => &rest[1..],
            '#' if c.is_ascii_digit() => {
                rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
            }
            '9' | '@' | '#' => return None,
            wanted if wanted == c => &rest[c.len_utf8()..],
            _ => return None,
        };
    }
    Some(rest)
}

/// Compares a screen with the golden file `name`, or writes the file (see above).
#[track_caller]
pub fn golden(name: &str, screen: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/screens");
    let path = folder.join(format!("{name}.txt"));
    match std::env::var("TAEL_TEST_SCREENS").as_deref() {
        Ok("write") => return fs::write(&path, screen).expect("write"),
        Ok(other) => panic!("TAEL_TEST_SCREENS={other}: write, or nothing"),
        Err(_) => {}
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        wanted == screen,
        "{} is\n{wanted}\nand the screen shows\n{screen}\n\
         If that is right, TAEL_TEST_SCREENS=write writes the file.",
        path.display()
    );
}
