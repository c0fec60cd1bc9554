//! The units, drop-ins and examples of the package, without systemd as the first process.
//! `.ci/systemd` tests the rest in a machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{World, bare_command, binary, has_program, ran};

/// Every unit, and its maximum exposure by `systemd-analyze security`, in tenths. The needs of
/// pipelines set that of the client: see its unit. Units of a user have the rights of the user.
const UNITS: &[(&str, Option<u32>)] = &[
    ("tael-client@.service", Some(25)),
    ("tael-beacon.service", Some(15)),
    ("tael-broker.service", Some(15)),
    ("tael-gateway.service", Some(20)),
    ("tael-facts.service", Some(20)),
    ("tael-facts-once.service", Some(20)),
    ("tael-facts.timer", None),
    ("tael-check@.service", Some(15)),
    ("tael-check@.timer", None),
    ("user/tael-client@.service", None),
];

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(package().join(path)).expect(path)
}

/// Returns the files in a folder of the package.
fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(package().join(folder)).expect(folder);
    let mut files: Vec<_> = entries.map(|e| e.expect("entry").path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    files
}

/// Returns the values of `key` in a unit.
fn values(unit: &str, key: &str) -> Vec<String> {
    let start = format!("{key}=");
    let lines = unit.lines().filter_map(|line| line.strip_prefix(&start));
    lines.map(str::to_owned).collect()
}

/// Returns a unit below `dir`, where our binaries have their places in the package.
fn installed(dir: &Path, unit: &str) -> PathBuf {
    let bin = binary("tael");
    let bin = bin.parent().expect("folder").to_str().expect("UTF-8");
    let text = read(&format!("systemd/{unit}")).replace("/usr/bin/tael", &format!("{bin}/tael"));
    let path = dir.join(unit);
    fs::create_dir_all(path.parent().expect("folder")).expect("folder");
    fs::write(&path, text).expect("unit");
    path
}

/// Returns the complaints of systemd about a unit.
fn verified(path: &Path) -> String {
    let user = path.to_str().is_some_and(|path| path.contains("/user/"));
    let mut command = Command::new("systemd-analyze");
    command
        .args(["verify", "--man=no", "--generators=no"])
        .args(["--recursive-errors=no"])
        .arg(if user { "--user" } else { "--system" })
        .env("XDG_RUNTIME_DIR", path.parent().expect("folder"))
        .arg(path);
    let (code, _, said) = ran(&mut command);
    let name = path.file_name().and_then(|name| name.to_str());
    let stem = name.and_then(|name| name.split('@').next()).expect("name");
    let ours: Vec<&str> = said.lines().filter(|line| line.contains(stem)).collect();
    match (code, ours.is_empty()) {
        (0, true) => String::new(),
        _ => format!("{code}: {said}"),
    }
}

#[test]
fn no_unit_is_left_out() {
    let mut found: Vec<String> = Vec::new();
    for (folder, prefix) in [("systemd", ""), ("systemd/user", "user/")] {
        for path in files(folder) {
            let name = path.file_name().and_then(|n| n.to_str()).expect("name");
            if !name.ends_with(".sysusers") {
                found.push(format!("{prefix}{name}"));
            }
        }
    }
    let mut known: Vec<&str> = UNITS.iter().map(|(unit, _)| *unit).collect();
    known.sort_unstable();
    found.sort();
    assert_eq!(found, known);
}

#[test]
fn systemd_knows_all_that_units_say() {
    if !has_program("systemd-analyze", "units are verified") {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    for (unit, _) in UNITS {
        installed(dir.path(), unit);
    }
    for (unit, _) in UNITS {
        assert_eq!(verified(&dir.path().join(unit)), "", "{unit}");
    }
    // It does report unknown settings.
    let wrong = dir.path().join("tael-wrong.service");
    fs::write(&wrong, "[Service]\nExecStart=/bin/true\nKillMood=process\n").expect("unit");
    assert!(verified(&wrong).contains("KillMood"));
}

#[test]
fn systemd_knows_all_that_drop_ins_say() {
    if !has_program("systemd-analyze", "drop-ins are verified") {
        return;
    }
    let examples = files("systemd/examples");
    assert!(!examples.is_empty());
    for example in examples {
        let dir = tempfile::tempdir().expect("tempdir");
        let unit = installed(dir.path(), "tael-client@.service");
        let folder = dir.path().join("tael-client@.service.d");
        fs::create_dir(&folder).expect("folder");
        let name = example.file_name().expect("name");
        fs::copy(&example, folder.join(name)).expect("copy");
        assert_eq!(verified(&unit), "", "{}", example.display());
    }
}

#[test]
fn units_are_no_more_exposed_than_they_must_be() {
    if !has_program("systemd-analyze", "exposure is measured") {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let exposure = |unit: &Path, limit: u32| {
        let mut command = Command::new("systemd-analyze");
        command
            .args(["security", "--no-pager", "--offline=true"])
            .arg(format!("--threshold={limit}"))
            .arg(unit);
        ran(&mut command)
    };
    for (unit, limit) in UNITS {
        let Some(limit) = limit else { continue };
        let path = installed(dir.path(), unit);
        let (code, out, error) = exposure(&path, *limit);
        assert_eq!(code, 0, "{unit}: {out}{error}");
        // The limit has an effect.
        assert_ne!(exposure(&path, limit / 2).0, 0, "{unit}");
    }
}

#[test]
fn runs_outlive_a_restart_of_their_unit() {
    for unit in ["tael-client@.service", "user/tael-client@.service"] {
        let text = read(&format!("systemd/{unit}"));
        assert_eq!(values(&text, "KillMode"), ["process"], "{unit}");
        // By default a run that exceeds the memory would end all others.
        assert_eq!(values(&text, "OOMPolicy"), ["continue"], "{unit}");
        assert_eq!(values(&text, "Type"), ["notify"], "{unit}");
        // systemd empties these folders when a service is restarted.
        assert_eq!(values(&text, "PrivateTmp"), [""; 0], "{unit}");
        assert_eq!(values(&text, "RuntimeDirectory"), [""; 0], "{unit}");
        // A broker may be away longer than any limit.
        assert_eq!(values(&text, "TimeoutStartSec"), ["infinity"], "{unit}");
    }
}

#[test]
fn the_units_bring_the_example_online() {
    for unit in ["tael-client@.service", "user/tael-client@.service"] {
        let world = World::new();
        let text = read(&format!("systemd/{unit}"));
        let [line] = &values(&text, "ExecStart")[..] else {
            panic!("one ExecStart: {unit}");
        };
        let example = read("examples/tael.toml");
        let broker = "mqtt://mqtt.lab.example";
        assert!(example.contains(broker));
        let here = format!("mqtt://127.0.0.1:{}", world.broker.port());
        fs::write(world.path("align.toml"), example.replace(broker, &here)).expect("file");
        let folder = world.dir.path().to_str().expect("UTF-8");
        let line = line
            .replace("%i", "align")
            .replace("%E/tael", folder)
            .replace("/etc/tael", folder);
        // systemd runs no shell.
        let words = shell_words::split(&line).expect("words");
        assert_eq!(words[0], "/usr/bin/tael-client");
        let mut command = bare_command(&world.dir, "tael-client");
        command.args(&words[1..]);
        let client = world.online("align", command);
        world.message(
            "lab/seq/status",
            &[("status", "finished"), ("sample", "S1")],
        );
        world.wait_report("align", "/units/succeeded", 1);
        client.stop();
    }
}

#[test]
fn a_reload_checks_the_file_before_it_signals() {
    for unit in ["tael-client@.service", "user/tael-client@.service"] {
        let text = read(&format!("systemd/{unit}"));
        let start = &values(&text, "ExecStart")[0];
        let [check, signal] = &values(&text, "ExecReload")[..] else {
            panic!("two ExecReload: {unit}");
        };
        // systemd runs the second only when the first has ended with 0.
        assert_eq!(check.replace(" --check", ""), *start, "{unit}");
        assert!(signal.contains("kill -HUP ${MAINPID}"), "{unit}");
        // A code that a restart cannot mend ends the service. All others restart it.
        let prevented = values(&text, "RestartPreventExitStatus");
        assert_eq!(prevented, ["64 73 77 78"], "{unit}");
    }
}

#[test]
fn the_crontab_has_no_wrong_option() {
    let mut seen = 0;
    for line in read("examples/crontab").lines() {
        let fields = match line.as_bytes().first() {
            Some(b'@') => 1,
            Some(b'*') => 5,
            _ => continue,
        };
        let command = line.splitn(fields + 1, ' ').last().expect("a command");
        assert!(!command.contains('%'), "cron ends a command there: {line}");
        let command = command.split(" >").next().unwrap_or_default();
        let mut words = shell_words::split(command).expect("words");
        for word in words.iter_mut().filter(|word| word.ends_with(".toml")) {
            assert!(word.starts_with("~/.config/tael/"), "{line}");
            *word = package().join("examples/tael.toml").display().to_string();
        }
        // Help comes only after options that exist.
        let (code, out, error) = ran(Command::new(binary(&words[0]))
            .args(&words[1..])
            .arg("--help")
            .env("TAEL_CONFIG", ""));
        assert_eq!(code, 0, "{line}: {error}");
        assert!(out.contains("Usage"), "{line}: {out}");
        seen += 1;
    }
    assert!(seen > 4);
}

#[test]
fn what_conda_sets_reaches_a_command() {
    let world = World::new();
    let script = package().join("examples/conda.sh");
    let mode = fs::metadata(&script).expect("script").permissions().mode();
    assert_eq!(mode & 0o111, 0o111);
    let (code, out, error) = ran(Command::new(&script)
        .args([
            "export",
            "CONDA_PREFIX=/opt/envs/align",
            "TITLE=a $b 'c' \"d\" # e",
        ])
        .env("HOME", world.dir.path()));
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("CONDA_PREFIX=\"/opt/envs/align\"\n"), "{out}");
    assert!(!out.contains("HOME="), "{out}");
    let file = world.path("align.env");
    fs::write(&file, out).expect("file");
    let client = world.client(
        "align",
        &[
            "-t",
            "lab/seq/status",
            "--env-file",
            file.to_str().expect("UTF-8"),
            "-c",
            "printf '%s\\n' \"$CONDA_PREFIX\" \"$TITLE\" >$OUT/set",
        ],
    );
    world.message("lab/seq/status", &[("status", "finished")]);
    world.wait_report("align", "/units/succeeded", 1);
    assert_eq!(
        world.lines("set"),
        ["/opt/envs/align", "a $b 'c' \"d\" # e"]
    );
    client.stop();
}
