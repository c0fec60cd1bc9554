//! `tael gateway --check`: mistakes in the configuration, all of them, each with its line.

use std::fs;

use tael::model::signature::base64;

use crate::common::{Certificates, World, bare_command, ran};

/// Returns code and output of a gateway with this file.
fn with_file(world: &World, text: &str, more: &[&str]) -> (i32, String) {
    let file = world.file("gateway.toml", text);
    let mut command = bare_command(&world.dir, "tael");
    command
        .args(["gateway", "--root", "lab", "--config", &file])
        .args(more);
    let (code, out, said) = ran(&mut command);
    (code, out + &said)
}

#[test]
fn half_of_tls_is_refused_wherever_it_stands() {
    let world = World::new();
    let pair = "go together: one is missing";
    let authority = "--tls-client-ca needs --tls-cert and --tls-key";
    for (key, cause) in [
        ("tls-cert", pair),
        ("tls-key", pair),
        ("tls-client-ca", authority),
    ] {
        let text = format!("[gateway]\nrate = 0\n{key} = \"/nowhere.pem\"\n");
        // A start refuses it as the check does, and does not listen.
        for more in [&["--check"][..], &["--listen", "127.0.0.1:0"]] {
            let (code, said) = with_file(&world, &text, more);
            assert_eq!(code, 78, "{key}: {said}");
            assert!(said.contains(cause), "{key}: {said}");
            assert!(said.contains("gateway.toml, line 3"), "{key}: {said}");
        }
        let flag = format!("--{key}");
        let (code, said) = with_file(&world, "", &[&flag, "/nowhere.pem", "--check"]);
        assert!(code == 64 && said.contains(cause), "{code} {said}");
        let mut command = bare_command(&world.dir, "tael");
        let variable = format!("TAEL_GATEWAY_{}", key.replace('-', "_").to_uppercase());
        command
            .args(["gateway", "--check"])
            .env(variable, "/nowhere.pem");
        let (code, out, said) = ran(&mut command);
        let said = out + &said;
        assert!(code == 64 && said.contains(cause), "{code} {said}");
    }
    // Halves of different sources are one pair.
    let text = "[gateway]\ntls-cert = \"/nowhere.pem\"\n";
    let more = ["--tls-key", "/nowhere.key", "--check"];
    let (code, said) = with_file(&world, text, &more);
    assert_eq!(code, 78, "{said}");
    assert!(
        said.contains("read our certificate from /nowhere.pem"),
        "{said}"
    );
    // An address of others is not open beside half a pair; that is one mistake, not two.
    let more = ["--listen", "0.0.0.0:0", "--check"];
    let (_, said) = with_file(&world, text, &more);
    assert!(!said.contains("open to others"), "{said}");
}

#[test]
fn every_mistake_of_keys_routes_and_secrets_is_reported_by_its_line() {
    let world = World::new();
    world.file("empty", "");
    world.file("two", "new secret\nold secret\n");
    let folder = world.dir.path().display();
    let text = format!(
        "[gateway]\nlistn = \"127.0.0.1:1\"\nallow-wrk = \"a\"\ntoken-file = \"/nowhere/tokens\"\n\
         [[route]]\nname = \"a b\"\npath = \"hooks/a\"\ntopik = \"lab/a\"\n\
         source = \"github\"\nsecret-file = [\"/nowhere/a\", \"{folder}/empty\", \"{folder}/two\"]\n\
         work = \"localhost/b\"\n\
         [[route]]\nname = \"b\"\npath = \"/hooks/b\"\ntopic = \"lab/b/#\"\nsource = \"bearer\"\n\
         [[route]]\nname = \"c\"\npath = \"/hooks/c\"\ntopic = \"lab/infrastructure/pipelines/ci/control\"\n\
         [[route]]\nname = \"c\"\npath = \"/hooks/c\"\ntopic = \"lab/c\"\n"
    );
    let (code, said) = with_file(&world, &text, &["--check"]);
    assert_eq!(code, 78, "{said}");
    let mut rest = said.as_str();
    for (line, cause) in [
        (0, "read tokens from /nowhere/tokens"),
        (2, "did you mean 'listen'"),
        (3, "did you mean 'allow-work'"),
        (6, "a route's name has"),
        (7, "a path begins with /"),
        (8, "did you mean 'topic'"),
        (10, "read /nowhere/a: No such file"),
        (10, "the secret is empty"),
        (10, "it has several lines"),
        (11, "'localhost/b' is not allowed"),
        (15, "lab/b/#"),
        (16, "bearer needs 'secret-file'"),
        (20, "only an --allow that names it"),
        (22, "two routes are called 'c'"),
        (23, "two routes have POST /hooks/c"),
    ] {
        let at = rest.find(cause);
        let at = at.unwrap_or_else(|| panic!("{cause} is missing or too early: {said}"));
        let (before, after) = rest.split_at(at);
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        assert!(
            line == 0 || before[start..].contains(&format!(", line {line}:")),
            "{cause}: {said}"
        );
        rest = after;
    }
    let mistakes = said.lines().filter(|line| line.starts_with("tael: "));
    assert_eq!(mistakes.count(), 15, "{said}");
    assert!(!said.contains("new secret"), "{said}");
}

#[test]
fn a_route_to_our_own_topics_needs_an_allow_that_names_them() {
    let world = World::new();
    let route = |topic: &str| {
        format!("[[route]]\nname = \"a\"\npath = \"/hooks/a\"\ntopic = \"{topic}\"\n")
    };
    let control = "lab/infrastructure/pipelines/ci/control";
    for (allow, want) in [
        (&[][..], 78),
        (&["--allow", "#"], 78),
        (&["--allow", "lab/+/pipelines/ci/control"], 78),
        (&["--allow", "lab/infrastructure/nodes/#"], 78),
        (&["--allow", control], 0),
    ] {
        let more = [allow, &["--check"]].concat();
        let (code, said) = with_file(&world, &route(control), &more);
        assert_eq!(code, want, "{allow:?}: {said}");
        assert!(want == 0 || said.contains("line 4"), "{said}");
    }
    let (code, said) = with_file(&world, &route(control), &["--listen", "127.0.0.1:0"]);
    assert_eq!(code, 78, "{said}");
    // Others are allowed, as routes are the operator's; callers of /t/ reach none of them.
    for topic in ["/lab/a", "other/a", "lab2"] {
        let (code, said) = with_file(&world, &route(topic), &["--check"]);
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("is not below the root"), "{topic}: {said}");
        let more = ["--allow", topic, "--check"];
        let (_, said) = with_file(&world, &route(topic), &more);
        assert!(!said.contains("is not below the root"), "{topic}: {said}");
    }
    let (_, said) = with_file(&world, &route("lab/a"), &["--check"]);
    assert!(!said.contains("is not below the root"), "{said}");
}

#[test]
fn a_relative_secret_is_in_the_working_directory() {
    let world = World::new();
    let text = "[[route]]\nname = \"a\"\npath = \"/hooks/a\"\ntopic = \"lab/a\"\nsource = \"github\"\n\
        secret-file = \"relative.secret\"\n";
    let (code, said) = with_file(&world, text, &["--check"]);
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("read relative.secret in /"), "{said}");
    let folder = world.dir.path().join("elsewhere");
    fs::create_dir(&folder).expect("folder");
    fs::write(folder.join("relative.secret"), "a secret of a\n").expect("secret");
    let mut command = bare_command(&world.dir, "tael");
    let file = world.file("gateway.toml", text);
    command.args(["gateway", "--check", "--root", "lab", "--config", &file]);
    let (code, out, said) = ran(command.current_dir(&folder));
    assert_eq!(code, 0, "{out}{said}");
}

#[test]
fn a_certificate_and_a_key_that_do_not_fit_are_told_in_words() {
    let world = World::new();
    let made = Certificates::make(&world.path(""));
    let version_1 = include_bytes!("../fixtures/certificates/version-1.der");
    let text = base64::encode_padded(version_1);
    let old = world.file(
        "old.pem",
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"),
    );
    let (cert, key) = (made.path("server.pem"), made.path("stranger.key"));
    let gateway = &["gateway", "--check"][..];
    let client = &[
        "client",
        "--check",
        "--who",
        "a",
        "-t",
        "x",
        "--command",
        "true",
    ][..];
    let mut cases = vec![
        (gateway, ["--tls-cert", "--tls-key"]),
        (client, ["--cert", "--key"]),
    ];
    if cfg!(feature = "embedded-broker") {
        cases.push((&["broker", "--listen", "127.0.0.1:0"], ["--cert", "--key"]));
    }
    for (words, [cert_flag, key_flag]) in cases {
        for (cert, cause) in [
            (&cert, "the key is not that of the certificate"),
            (&old, "the certificate is of version 1"),
        ] {
            let mut command = bare_command(&world.dir, "tael");
            command.args(words).args([cert_flag, cert, key_flag, &key]);
            let (code, out, said) = ran(&mut command);
            assert_eq!(code, 78, "{words:?}: {out}{said}");
            assert!(said.contains(cause), "{words:?}: {said}");
            assert!(!said.contains("Mismatch"), "{words:?}: {said}");
        }
    }
}

#[test]
fn single_brackets_and_wrong_escapes_say_how_to_write_them() {
    let world = World::new();
    let route = "name = \"a\"\npath = \"/a\"\ntopic = \"lab/a\"\n";
    let two = format!("[route]\n{route}[route]\n{route}");
    let (code, said) = with_file(&world, &two, &["--check"]);
    assert_eq!(code, 78, "{said}");
    assert_eq!(said.matches("write [[route]]").count(), 2, "{said}");
    assert!(!said.contains("duplicate key"), "{said}");
    let pattern = format!("[[route]]\n{route}rule = {{ json = \"ref\", regex = \"^\\d$\" }}\n");
    let (code, said) = with_file(&world, &pattern, &["--check"]);
    assert!(code == 78 && said.contains("line 5"), "{said}");
    assert!(said.contains("'single quotes'"), "{said}");
}
