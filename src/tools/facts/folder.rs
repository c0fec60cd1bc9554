//! Folders of facts: which files are read, and which scripts are run.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::unistd::Uid;
use tracing::debug;

use crate::error::{Error, Result};
use crate::model::facts::kind::Kind;
use crate::model::facts::own::{self, Form, MAX_TEXT};
use crate::model::facts::tree::Facts;
use crate::model::text::printable;
use crate::os::descent;
use crate::os::facts::script;

/// The folder of a host, with a folder for each kind.
pub const FOLDER: &str = "/etc/tael/facts.d";

/// Maximum number of files, of all kinds together.
const MAX_FILES: usize = 64;

/// Maximum number of scripts that run at the same time.
const MAX_SCRIPTS: usize = 4;

/// Maximum length of a path in a cause, characters.
const MAX_PATH: usize = 300;

/// A file that may have facts.
struct Entry {
    kind: Kind,
    /// Name of the file, for people.
    file: String,
    path: PathBuf,
}

/// Facts of a file, or why it has none.
pub(super) struct Found {
    /// Its kind.
    pub kind: Kind,
    /// Name of the fact; that of the file if it has none.
    pub name: String,
    /// The facts.
    pub facts: Result<Facts, String>,
}

/// Checks that the folders that the operator names are there.
///
/// # Errors
/// 78 when one is not.
pub fn check(folders: &[PathBuf]) -> Result<()> {
    for folder in folders {
        let found = fs::metadata(folder).map_err(|e| e.to_string());
        let found = found.and_then(|meta| match meta.is_dir() {
            true => Ok(()),
            false => Err("it is not a folder".to_owned()),
        });
        found.map_err(|e| Error::config(format!("read facts in {}: {e}", folder.display())))?;
    }
    Ok(())
}

/// Returns the facts of `kinds` in `folders`, or in that of the host if there are none.
pub(super) fn read(folders: &[PathBuf], kinds: &[Kind], ends: &AtomicBool) -> Vec<Found> {
    let mut found = Vec::new();
    let mut entries = Vec::new();
    let own = [PathBuf::from(FOLDER)];
    let folders = if folders.is_empty() {
        &own[..]
    } else {
        folders
    };
    for folder in folders {
        // Folders of Ansible and facter have none for each kind.
        let base = folder.file_name().unwrap_or_else(|| folder.as_os_str());
        let base = printable(&base.to_string_lossy(), 120);
        let mut list = |kind, folder: &Path| list(kind, folder, &base, &mut entries, &mut found);
        if !list(Kind::Static, folder) {
            // Who may write it may have put anything in the place of the folders below.
            continue;
        }
        for kind in Kind::ALL {
            list(kind, &folder.join(kind.name()));
        }
        found.extend(strange_kinds(folder));
    }
    entries.retain(|entry| kinds.contains(&entry.kind));
    found.retain(|found: &Found| kinds.contains(&found.kind));
    for entry in entries.drain(MAX_FILES.min(entries.len())..) {
        let facts = Err(format!("there are more than {MAX_FILES} files"));
        found.push(Found {
            kind: entry.kind,
            name: entry.file,
            facts,
        });
    }
    found.extend(read_all(&entries, ends));
    found
}

/// Returns the folders that look like those of a kind but are none. Folders of others, such as Ansible's, have
/// none for kinds, and may have any.
fn strange_kinds(folder: &Path) -> Vec<Found> {
    let is_of_kinds = |folder: &Path| {
        let mut kinds = Kind::ALL.iter();
        kinds.any(|kind| folder.join(kind.name()).is_dir())
    };
    if folder != Path::new(FOLDER) && !is_of_kinds(folder) {
        return Vec::new();
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.path().is_dir());
    let names = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let strange = names.filter(|name| !name.starts_with('.') && !Kind::NAMES.contains(&&**name));
    let found = strange.map(|name| Found {
        kind: Kind::Static,
        name: printable(&name, 120),
        facts: Err(format!(
            "folder {} is none of {}",
            printable(&folder.join(&name).display().to_string(), MAX_PATH),
            Kind::NAMES.join(", ")
        )),
    });
    found.take(MAX_FILES).collect()
}

/// Adds the files in `folder`, in order. Returns whether it could be read, and only root and we may write it;
/// if not, the fact that fails has the name `base`.
fn list(
    kind: Kind,
    folder: &Path,
    base: &str,
    entries: &mut Vec<Entry>,
    found: &mut Vec<Found>,
) -> bool {
    let mut refuse = |why: String| {
        found.push(Found {
            kind,
            name: base.to_owned(),
            facts: Err(why),
        });
        false
    };
    let meta = match fs::metadata(folder) {
        Ok(meta) if meta.is_dir() => meta,
        Ok(_) => return false,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return false,
        Err(e) => return refuse(format!("read {}: {e}", folder.display())),
    };
    if let Err(why) = is_safe(&meta) {
        return refuse(format!("folder {}: {why}", folder.display()));
    }
    let read = match fs::read_dir(folder) {
        Ok(read) => read,
        Err(e) => return refuse(format!("read {}: {e}", folder.display())),
    };
    let mut names: BTreeMap<String, PathBuf> = BTreeMap::new();
    for entry in read.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        names.insert(name, entry.path());
    }
    let files = names.into_iter().filter(|(_, path)| !path.is_dir());
    entries.extend(files.map(|(file, path)| Entry { kind, file, path }));
    true
}

/// Checks that only root and we could have written a file or a folder.
fn is_safe(meta: &Metadata) -> Result<(), String> {
    if meta.permissions().mode() & 0o022 != 0 {
        return Err("group or others may write it: chmod go-w".to_owned());
    }
    let owner = meta.uid();
    match owner == 0 || owner == Uid::effective().as_raw() {
        true => Ok(()),
        false => Err(format!(
            "user {owner} owns it: it must be root or the present user"
        )),
    }
}

/// Reads all `entries`, up to [`MAX_SCRIPTS`] at a time, and ends what scripts have left running.
fn read_all(entries: &[Entry], ends: &AtomicBool) -> Vec<Found> {
    // Scripts that leave their group are found as our descendants. Those of a shell that has become this
    // program by exec are not ours to end.
    let has_children = descent::children_left();
    descent::adopt_descendants();
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<usize, Found>> = Mutex::new(BTreeMap::new());
    let has_run = AtomicUsize::new(0);
    let work = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(entry) = entries.get(n) else { break };
            if let Some(found) = one(entry, &has_run, ends)
                && let Ok(mut done) = done.lock()
            {
                done.insert(n, found);
            }
        }
    };
    thread::scope(|scope| {
        let others = entries.len().min(MAX_SCRIPTS).saturating_sub(1);
        for _ in 0..others {
            // Without a thread, the others do its work.
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    if !has_children && has_run.load(Ordering::Relaxed) > 0 && descent::children_left() {
        let left = descent::kill_run(None, thread::sleep);
        if let Some(left) = left {
            tracing::warn!("facts: a script has left processes that cannot be ended: {left}");
        }
        let _ = descent::children_left();
    }
    done.into_inner()
        .unwrap_or_default()
        .into_values()
        .collect()
}

/// Returns the facts of one file; `None` if it is of no interest.
fn one(entry: &Entry, has_run: &AtomicUsize, ends: &AtomicBool) -> Option<Found> {
    let Entry { kind, file, path } = entry;
    let found = |name: String, facts| {
        Some(Found {
            kind: *kind,
            name,
            facts,
        })
    };
    let shown = printable(file, 120);
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) => return found(shown, Err(format!("read it: {e}"))),
    };
    let is_executable = meta.permissions().mode() & 0o111 != 0;
    let Some(named) = own::named(file, is_executable) else {
        debug!("facts: {} is left out", path.display());
        return None;
    };
    let (name, form) = match named {
        Ok(named) => named,
        Err(why) => return found(shown, Err(why)),
    };
    if !meta.is_file() {
        return found(shown, Err("it is not a file".to_owned()));
    }
    if let Err(why) = is_safe(&meta) {
        return found(name, Err(why));
    }
    let facts = match form {
        Form::Json => text(path).and_then(|text| own::of_file(&text)),
        Form::Script => {
            has_run.fetch_add(1, Ordering::Relaxed);
            script::run(path, script::MAX_TIME, ends).and_then(|text| own::of_output(&text))
        }
    };
    found(name, facts)
}

/// Returns the text of a file.
fn text(path: &Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let limit = MAX_TEXT as u64 + 1;
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text));
    read.map_err(|e| format!("read it: {e}"))?;
    match text.len() > MAX_TEXT {
        true => Err(format!("it has more than {} KiB", MAX_TEXT >> 10)),
        false => Ok(text),
    }
}
