//! Notices in the package for the crates that it is built from.

use std::path::Path;
use std::process::Command;

#[test]
fn the_notices_of_all_that_is_linked_go_into_the_package() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    if Command::new("jq").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "needs jq");
        return eprintln!("not run, needs jq: the notices of crates");
    }
    let output = Command::new(package.join("packaging/third-party"))
        .output()
        .expect("packaging/third-party");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let (crates, notices) = text.split_once("\n----").expect("notices");
    for name in [
        "ring",
        "rumqttc",
        "rustls",
        "libsqlite3-sys",
        "mqtt5",
        "serde",
    ] {
        assert!(crates.contains(&format!("\n{name} v")), "{name}");
    }
    for name in ["tempfile", "proptest", "tael", "clap_derive"] {
        assert!(
            !crates.contains(&format!("\n{name} v")),
            "{name} is not linked"
        );
    }
    // Licences that require it.
    for notice in [
        "Permission is hereby granted",
        "Redistributions in binary form",
    ] {
        assert!(notices.contains(notice), "{notice}");
    }
    let manifest = std::fs::read_to_string(package.join("Cargo.toml")).expect("manifest");
    assert!(manifest.contains(r#""target/assets/THIRD-PARTY""#));
}

/// `docs/security.md` says that these crates, which have advisories, are not used.
#[test]
fn the_client_library_brings_no_tls_of_its_own() {
    let lock = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock"));
    let lock = lock.expect("Cargo.lock");
    assert!(lock.contains("name = \"rumqttc\""));
    assert!(!lock.contains("name = \"rustls-pemfile\""));
    assert!(!lock.contains("name = \"rustls-webpki\"\nversion = \"0.102"));
}

/// `tael-message` starts thousands of times a day: it is one tool, not all of them.
#[test]
fn one_tool_links_nothing_of_the_others() {
    let holds = |binary: &str, bytes: &[u8]| {
        let binary = std::fs::read(binary).expect("binary");
        binary.windows(bytes.len()).any(|window| window == bytes)
    };
    // A text that the ledger has; a binary with the ledger shows that it would be found.
    let ledger = b"SQLite format 3";
    assert!(holds(env!("CARGO_BIN_EXE_tael-client"), ledger));
    // What the client for queues says to a broker; this binary has it, and not the text as a whole
    // beside it.
    let queues = [&b"exchange_exchange"[..], b"_bindings"].concat();
    let own = std::env::current_exe().expect("this binary");
    assert!(holds(own.to_str().expect("path"), &queues));
    // What the HTTP server says to one client too many.
    let http = [&b"too many "[..], b"connections"].concat();
    assert!(holds(env!("CARGO_BIN_EXE_tael"), &http));
    assert!(!holds(env!("CARGO_BIN_EXE_tael-client"), &http));
    for binary in [
        env!("CARGO_BIN_EXE_tael-message"),
        env!("CARGO_BIN_EXE_tael-beacon"),
    ] {
        assert!(!holds(binary, ledger), "{binary} links the ledger");
        assert!(!holds(binary, &http), "{binary} links the HTTP server");
        assert!(
            !holds(binary, &queues),
            "{binary} links the client for queues"
        );
    }
}
