//! Facts of this host, read from `/proc`, `/sys`, `/etc` and `/run`. No process is started, and
//! nothing is read that may be secret: no environment, command lines, users, serial numbers,
//! hardware addresses or mount options.

mod addresses;
mod disks;
pub mod guard;
pub mod script;
mod units;

use std::fs;
use std::path::{Path, PathBuf};

use nix::libc;
use serde_json::{Value, json};

use crate::model::facts::kind::Kind;
use crate::model::facts::tree::Facts;

/// Maximum size of a file that is read, bytes. Those of `/proc` grow with the number of cores.
const MAX_FILE: usize = 1024 * 1024;

/// Maximum length of a text that becomes a fact, bytes.
const MAX_WORD: usize = 256;

/// Where the facts of a host are read.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
        }
    }
}

impl Host {
    /// Returns the facts of `kind`. What cannot be read is left out.
    #[must_use]
    pub fn facts(&self, kind: Kind) -> Facts {
        let mut facts = Tree::default();
        match kind {
            Kind::Common => self.common(&mut facts),
            Kind::Static => self.built(&mut facts),
            Kind::Dynamic => self.dynamic(&mut facts),
            Kind::State => self.state(&mut facts),
        }
        facts.0
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Returns the text of a file; `None` if it cannot be read, or is no text.
    fn text(&self, path: &str) -> Option<String> {
        let bytes = fs::read(self.path(path)).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        (text.len() <= MAX_FILE).then_some(text)
    }

    /// Returns the first line of a file, unless it is empty.
    fn line(&self, path: &str) -> Option<String> {
        let text = self.text(path)?;
        let line = text.lines().next()?.trim();
        (!line.is_empty() && line.len() <= MAX_WORD).then(|| line.to_owned())
    }

    fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Returns the value of `key` in a file of `KEY=VALUE` lines (`os-release(5)`).
    fn assigned(&self, path: &str, key: &str) -> Option<String> {
        let text = self.text(path)?;
        let mut lines = text.lines().filter_map(|line| line.trim().split_once('='));
        let (_, value) = lines.find(|(name, _)| *name == key)?;
        let words = shell_words::split(value).ok()?;
        let value = words.join(" ");
        (!value.is_empty() && value.len() <= MAX_WORD).then_some(value)
    }

    fn common(&self, facts: &mut Tree) {
        let name = self.line("/proc/sys/kernel/hostname");
        facts.put("host", name.clone());
        let domain = name.as_deref().and_then(|name| name.split_once('.'));
        let configured = self.line("/proc/sys/kernel/domainname");
        let configured = configured.filter(|domain| domain != "(none)");
        facts.put(
            "domain",
            domain.map(|(_, domain)| domain.to_owned()).or(configured),
        );
        // The first file wins (os-release(5)).
        let release = ["/etc/os-release", "/usr/lib/os-release"];
        let release = release
            .into_iter()
            .find(|path| self.has(path))
            .unwrap_or("/etc/os-release");
        for (key, name) in [
            ("ID", "os.id"),
            ("VERSION_ID", "os.version"),
            ("PRETTY_NAME", "os.name"),
        ] {
            facts.put(name, self.assigned(release, key));
        }
        facts.put("arch", Some(std::env::consts::ARCH));
        facts.put("kernel", self.line("/proc/sys/kernel/osrelease"));
        // Written by people (machine-info(5)).
        for (key, name) in [
            ("LOCATION", "site"),
            ("DEPLOYMENT", "deployment"),
            ("CHASSIS", "chassis"),
        ] {
            facts.put(name, self.assigned("/etc/machine-info", key));
        }
        let tags = self.assigned("/etc/machine-info", "TAGS");
        let tags = tags.map(|tags| {
            let tags = tags.split([' ', ',', ':']).filter(|tag| !tag.is_empty());
            tags.map(str::to_owned).collect::<Vec<_>>()
        });
        facts.put("tags", tags);
        facts.put("tael", Some(env!("CARGO_PKG_VERSION")));
    }

    fn built(&self, facts: &mut Tree) {
        facts.put(
            "cpus",
            self.line("/sys/devices/system/cpu/online")
                .and_then(|list| count(&list)),
        );
        let processors = self.text("/proc/cpuinfo").unwrap_or_default();
        let model = processors.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == "model name").then(|| value.trim().to_owned())
        });
        facts.put("cpu", model);
        let memory = self.text("/proc/meminfo").unwrap_or_default();
        facts.put("memory_gb", kib(&memory, "MemTotal").map(gigabytes));
        facts.put("swap_gb", kib(&memory, "SwapTotal").map(gigabytes));
        for (name, file) in [("vendor", "sys_vendor"), ("model", "product_name")] {
            facts.put(name, self.line(&format!("/sys/class/dmi/id/{file}")));
        }
        facts.put("virtual", Some(self.virtualisation(&processors)));
        let stat = self.text("/proc/stat").unwrap_or_default();
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime "));
        facts.put(
            "boot",
            boot.and_then(|boot| boot.trim().parse::<i64>().ok()),
        );
        for disk in disks::devices(&self.path("/sys/block")) {
            facts.put(
                &format!("disks.{}.size_gb", escaped(&disk.name)),
                Some(disk.size_gb),
            );
        }
        for space in disks::spaces(&self.mounts(), &self.root) {
            facts.put(&format!("disk.{}.size_gb", space.name), Some(space.size_gb));
        }
        for (name, list) in addresses::of_interfaces() {
            facts.put(
                &format!("interfaces.{}.addresses", escaped(&name)),
                Some(list),
            );
        }
    }

    fn dynamic(&self, facts: &mut Tree) {
        let load = self.line("/proc/loadavg").unwrap_or_default();
        for (name, value) in ["load1", "load5", "load15"]
            .into_iter()
            .zip(load.split(' '))
        {
            facts.put(name, value.parse::<f64>().ok().map(tenths));
        }
        let memory = self.text("/proc/meminfo").unwrap_or_default();
        let percent = |part: &str, whole: &str| {
            let (part, whole) = (kib(&memory, part)?, kib(&memory, whole)?);
            (whole > 0).then(|| part.saturating_mul(100) / whole)
        };
        facts.put("memory.free_percent", percent("MemAvailable", "MemTotal"));
        facts.put("swap.free_percent", percent("SwapFree", "SwapTotal"));
        for space in disks::spaces(&self.mounts(), &self.root) {
            facts.put(
                &format!("disk.{}.free_percent", space.name),
                Some(space.free_percent),
            );
        }
        facts.put("clock.offset_ms", clock().and_then(|clock| clock.offset_ms));
    }

    fn state(&self, facts: &mut Tree) {
        // Debian and its kin leave this file (update-notifier, unattended-upgrades).
        facts.put("reboot_required", Some(self.has("/run/reboot-required")));
        let timesyncd = self.has("/run/systemd/timesync/synchronized");
        let synced = clock().map(|clock| clock.synced);
        facts.put("clock_synced", synced.map(|synced| synced || timesyncd));
        facts.put("read_only_root", disks::is_root_read_only(&self.mounts()));
        // As sd_booted(3): a bus of something else has no systemd.
        if self.has("/run/systemd/system")
            && let Some(failed) = units::failed(&self.path("/run/dbus/system_bus_socket"))
        {
            facts.put("failed_units.count", Some(failed.count));
            facts.put("failed_units.names", Some(failed.names));
        }
    }

    fn mounts(&self) -> String {
        self.text("/proc/self/mountinfo").unwrap_or_default()
    }

    /// Returns where this host runs: `container`, a hypervisor, or `none`.
    fn virtualisation(&self, processors: &str) -> &'static str {
        const VENDORS: &[(&str, &str)] = &[
            ("QEMU", "kvm"),
            ("KVM", "kvm"),
            ("VMware", "vmware"),
            ("innotek", "virtualbox"),
            ("VirtualBox", "virtualbox"),
            ("Microsoft", "hyperv"),
            ("Xen", "xen"),
            ("Amazon EC2", "amazon"),
            ("Google", "google"),
            ("Parallels", "parallels"),
            ("BHYVE", "bhyve"),
        ];
        const CONTAINERS: &[&str] = &[
            "/run/systemd/container",
            "/.dockerenv",
            "/run/.containerenv",
        ];
        if CONTAINERS.iter().any(|path| self.has(path)) {
            return "container";
        }
        let mut lines = processors.lines().filter(|line| line.starts_with("flags"));
        let is_guest = lines.any(|line| line.split(' ').any(|flag| flag == "hypervisor"));
        let is_guest = is_guest || self.has("/sys/hypervisor/type");
        let names = ["sys_vendor", "product_name"]
            .map(|file| self.line(&format!("/sys/class/dmi/id/{file}")));
        let vendor = VENDORS
            .iter()
            .find(|(vendor, _)| names.iter().flatten().any(|name| name.contains(vendor)));
        match (is_guest, vendor) {
            (true, Some((_, name))) => name,
            (true, None) => "unknown",
            (false, _) => "none",
        }
    }

    /// Returns a hash that identifies this machine and tells nothing about its id, which is
    /// confidential (`machine-id(5)`); empty if it has none.
    #[must_use]
    pub fn machine(&self) -> String {
        let Some(id) = self.line("/etc/machine-id") else {
            return String::new();
        };
        let mut digest = crate::model::digest::Sha256::default();
        digest.part(b"tael facts");
        digest.part(id.as_bytes());
        let digest = digest.finish();
        digest
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// Facts that are being read.
#[derive(Debug, Default)]
struct Tree(Facts);

impl Tree {
    /// Puts `value`, if there is one, at the dotted name `name`.
    fn put(&mut self, name: &str, value: Option<impl Into<Value>>) {
        let Some(value) = value else { return };
        let mut value = value.into();
        let mut names = name.rsplit('.');
        let Some(last) = names.next() else { return };
        let mut outer = last;
        for name in names {
            value = json!({ outer: value });
            outer = name;
        }
        let fact = Facts::from_iter([(outer.to_owned(), value)]);
        crate::model::facts::tree::merge(&mut self.0, fact);
    }
}

/// Returns a name without dots, which would make it several.
fn escaped(name: &str) -> String {
    name.replace('.', "_")
}

/// Returns how many numbers a list like `0-3,8` has (`cpuset(7)`, "List format").
fn count(list: &str) -> Option<u64> {
    let parts = list.split(',').map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.checked_sub(first)? + 1)
    });
    parts.sum()
}

/// Returns the value of `name` in `/proc/meminfo`, KiB.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns KiB as GB (10^9 bytes), to one digit behind the point.
fn gigabytes(kib: u64) -> f64 {
    tenths(kib as f64 * 1024.0 / 1e9)
}

/// Returns a number to one digit behind the point.
fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// The clock, as the kernel sees it (`adjtimex(2)`).
struct Clock {
    synced: bool,
    offset_ms: Option<i64>,
}

fn clock() -> Option<Clock> {
    // SAFETY: all zeroes is a valid `timex`; it asks for nothing to be changed.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live, writable local of the right type.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return None;
    }
    let synced = timex.status & libc::STA_UNSYNC == 0;
    let unit = if timex.status & libc::STA_NANO == 0 {
        1_000
    } else {
        1_000_000
    };
    Some(Clock {
        synced,
        offset_ms: synced.then(|| timex.offset / unit),
    })
}

/// Returns `path` below `root`.
fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Returns a host whose files are `files`.
    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().expect("tempdir");
        let host = Host {
            root: dir.path().to_owned(),
        };
        for (path, text) in files {
            let path = host.path(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(path, text).expect("file");
        }
        (dir, host)
    }

    #[test]
    fn a_host_says_who_it_is() {
        let (_dir, host) = host(&[
            ("/proc/sys/kernel/hostname", "seq1.lab.example\n"),
            ("/proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"),
            (
                "/etc/os-release",
                "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME='Debian 12'\n",
            ),
            (
                "/etc/machine-info",
                "LOCATION=\"Hall 2\"\nDEPLOYMENT=production\nTAGS=seq,gpu\n",
            ),
            ("/etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        ]);
        let common = Value::Object(host.facts(Kind::Common));
        let want = json!({"host": "seq1.lab.example", "domain": "lab.example",
            "os": {"id": "debian", "version": "12", "name": "Debian 12"},
            "arch": std::env::consts::ARCH, "kernel": "6.1.0-18-amd64", "site": "Hall 2",
            "deployment": "production", "tags": ["seq", "gpu"], "tael": env!("CARGO_PKG_VERSION")});
        assert_eq!(common, want);
        let machine = host.machine();
        assert!(
            machine.len() == 32 && !machine.contains("0123456789"),
            "{machine}"
        );
    }

    #[test]
    fn a_host_says_what_it_is_built_of() {
        let (_dir, host) = host(&[
            ("/sys/devices/system/cpu/online", "0-3,8\n"),
            (
                "/proc/cpuinfo",
                "model name\t: Some CPU\nflags\t\t: fpu hypervisor sse\n",
            ),
            (
                "/proc/meminfo",
                "MemTotal:       16000000 kB\nMemAvailable:    4000000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n",
            ),
            ("/proc/loadavg", "0.26 1.04 0.00 1/100 4711\n"),
            ("/proc/stat", "cpu 1 2\nbtime 1772366400\n"),
            ("/sys/class/dmi/id/sys_vendor", "QEMU\n"),
            ("/sys/block/vda/size", "2000000\n"),
            ("/sys/block/loop0/size", "2000000\n"),
        ]);
        let built = Value::Object(host.facts(Kind::Static));
        assert_eq!(
            (&built["cpus"], &built["cpu"]),
            (&json!(5), &json!("Some CPU"))
        );
        assert_eq!(
            (&built["memory_gb"], &built["virtual"]),
            (&json!(16.4), &json!("kvm"))
        );
        assert_eq!(built["boot"], 1_772_366_400);
        assert_eq!(built["disks"], json!({"vda": {"size_gb": 1.0}}));
        let dynamic = Value::Object(host.facts(Kind::Dynamic));
        assert_eq!(
            (&dynamic["load1"], &dynamic["load5"]),
            (&json!(0.3), &json!(1.0))
        );
        assert_eq!(dynamic["memory"], json!({"free_percent": 25}));
        assert!(dynamic.get("swap").is_none());
    }

    #[test]
    fn a_host_answers_questions() {
        let (_dir, host) = host(&[
            ("/run/reboot-required", ""),
            (
                "/proc/self/mountinfo",
                "1 0 8:1 / / ro,relatime shared:1 - ext4 /dev/sda1 rw,x\n",
            ),
        ]);
        let state = Value::Object(host.facts(Kind::State));
        assert_eq!(state["reboot_required"], true);
        assert_eq!(state["read_only_root"], false);
    }

    #[test]
    fn an_empty_host_has_few_facts() {
        let (_dir, host) = host(&[]);
        assert_eq!(host.machine(), "");
        for kind in Kind::ALL {
            let _ = host.facts(kind);
        }
    }

    #[test]
    fn this_host_has_facts_soon() {
        let host = Host::default();
        let begun = Instant::now();
        let found: usize = Kind::ALL.iter().map(|kind| host.facts(*kind).len()).sum();
        assert!(found > 10, "{found}");
        // The aim is 5 ms on an idle host; tests share theirs.
        assert!(begun.elapsed().as_millis() < 500, "{:?}", begun.elapsed());
    }
}
