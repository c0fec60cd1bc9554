//! `tael gateway`: callers that speak TLS.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

use crate::common::gateway::{Gateway, post, request};
use crate::common::{Certificates, PATIENCE, World, bare_command, ran, wait_until};

/// Sends `text` over TLS to a server that must have a certificate of the authority `ca`.
fn exchange(
    gateway: &Gateway,
    (ca, identity): (&str, Option<(&str, &str)>),
    version: &'static SupportedProtocolVersion,
    text: &str,
) -> io::Result<String> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(ca).expect("authority");
    roots.add(ca).expect("authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("version")
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let cert = CertificateDer::from_pem_file(cert).expect("certificate");
            let key = PrivateKeyDer::from_pem_file(key).expect("key");
            builder
                .with_client_auth_cert(vec![cert], key)
                .expect("pair")
        }
    };
    let name = ServerName::try_from("localhost").expect("name");
    let tls = ClientConnection::new(Arc::new(config), name).expect("TLS");
    let tcp = TcpStream::connect(&gateway.address)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(tls, tcp);
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    // It ends as TLS does, which nothing can forge.
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Sends `text` over TLS to a server that must have a certificate of the authority `ca`.
pub fn ask(gateway: &Gateway, ca: &str, text: &str) -> io::Result<String> {
    exchange(gateway, (ca, None), &TLS13, text)
}

#[test]
fn callers_speak_tls_and_the_certificate_is_read_again() {
    let world = World::new();
    let certificates = Certificates::make(&world.path(""));
    let (cert, key) = (
        certificates.path("server.pem"),
        certificates.path("server.key"),
    );
    let ca = certificates.path("ca.pem");
    let process = world.spawn({
        let mut command = world.tael(["gateway", "--root", "lab", "--listen", "127.0.0.1:0"]);
        command.args(["--tls-cert", &cert, "--tls-key", &key]);
        command
    });
    let gateway = Gateway::listening(process);
    let health = request("GET /healthz", &[]);
    wait_until("it is online", || {
        let answer = exchange(&gateway, (&ca, None), &TLS13, &health);
        answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    });
    let message = post("/t/lab/a", &[], "{}");
    for version in [&TLS12, &TLS13] {
        let answer = exchange(&gateway, (&ca, None), version, &message).expect("answer");
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    }
    // Clients without TLS, slow and broken ones cost only themselves.
    let plain = gateway.exchange_bytes(message.as_bytes());
    assert!(!plain.starts_with(b"HTTP"), "{plain:?}");
    let silent: Vec<_> = (0..20).map(|_| gateway.connect()).collect();
    let mut half = gateway.connect();
    half.write_all(&[0x16, 3, 1, 0x20]).expect("half a record");
    let answer = exchange(&gateway, (&ca, None), &TLS13, &message).expect("answer");
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    for mut stream in silent {
        let mut rest = Vec::new();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("limit");
        stream.read_to_end(&mut rest).expect("closed");
    }
    // A pair that does not fit changes nothing.
    let other = certificates.path("other-ca.pem");
    assert!(exchange(&gateway, (&other, None), &TLS13, &message).is_err());
    fs::copy(certificates.path("stranger.pem"), &cert).expect("certificate");
    gateway.process.signal(Signal::SIGHUP);
    wait_until("it says so", || {
        gateway
            .process
            .log_text()
            .contains("keeping the certificate")
    });
    assert!(exchange(&gateway, (&ca, None), &TLS13, &message).is_ok());
    fs::copy(certificates.path("stranger.key"), &key).expect("key");
    gateway.process.signal(Signal::SIGHUP);
    wait_until("the new one is shown", || {
        exchange(&gateway, (&other, None), &TLS13, &message).is_ok()
    });
    gateway.process.stop();
}

#[test]
fn callers_may_have_to_show_a_certificate() {
    let world = World::new();
    let certificates = Certificates::make(&world.path(""));
    let path = |name: &str| certificates.path(name);
    let (cert, key, ca) = (path("server.pem"), path("server.key"), path("ca.pem"));
    let process = world.spawn({
        let mut command = world.tael(["gateway", "--root", "lab", "--listen", "127.0.0.1:0"]);
        command.args([
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
            "--tls-client-ca",
            &ca,
        ]);
        command
    });
    let gateway = Gateway::listening(process);
    let health = request("GET /healthz", &[]);
    let (own, own_key) = (path("client.pem"), path("client.key"));
    let known = (ca.as_str(), Some((own.as_str(), own_key.as_str())));
    let (foreign, foreign_key) = (path("stranger.pem"), path("stranger.key"));
    let stranger = (ca.as_str(), Some((foreign.as_str(), foreign_key.as_str())));
    let answer = exchange(&gateway, known, &TLS13, &health).expect("answer");
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    for version in [&TLS12, &TLS13] {
        for who in [(ca.as_str(), None), stranger] {
            let answer = exchange(&gateway, who, version, &health);
            assert!(answer.is_err(), "{answer:?}");
        }
    }
    gateway.process.stop();
}

/// Writes a certificate that ends on this day, and its key.
fn ending_on(world: &World, year: i32) -> [String; 2] {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(vec!["localhost".into()]).expect("params");
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(year, 1, 2);
    let own = params.self_signed(&key).expect("certificate");
    [
        world.file("own.pem", own.pem()),
        world.file("own.key", key.serialize_pem()),
    ]
}

#[test]
fn a_certificate_that_has_expired_is_told_at_check_start_and_reload() {
    let world = World::new();
    let expired = "own.pem has expired";
    let [cert, key] = ending_on(&world, 2020);
    let flags = ["--tls-cert", &cert, "--tls-key", &key];
    let mut command = bare_command(&world.dir, "tael");
    command.args(["gateway", "--check"]).args(flags);
    let (code, out, said) = ran(&mut command);
    assert_eq!(code, 0, "{out}{said}");
    assert!(said.contains(expired), "{said}");
    let mut command = world.tael(["gateway", "--root", "lab", "--listen", "127.0.0.1:0"]);
    command.args([
        "--listen",
        &format!("unix:{}", world.path("http").display()),
    ]);
    let gateway = Gateway::listening(world.spawn({
        command.args(flags);
        command
    }));
    assert!(gateway.process.log_text().contains(expired));
    let end = |want: u64| {
        let line = format!("tael_gateway_certificate_not_after_seconds {want}\n");
        wait_until("the end is in the metrics", || {
            let Ok(mut stream) = UnixStream::connect(world.path("http")) else {
                return false;
            };
            let _ = stream.write_all(request("GET /metrics", &[]).as_bytes());
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text);
            text.contains(&line)
        });
    };
    end(1_577_923_200);
    let count = || gateway.process.log_text().matches(expired).count();
    gateway.process.signal(Signal::SIGHUP);
    wait_until("a reload says so", || count() == 2);
    ending_on(&world, 2099);
    gateway.process.signal(Signal::SIGHUP);
    end(4_070_995_200);
    assert_eq!(count(), 2);
    gateway.process.stop();
}

#[test]
fn a_reload_without_the_authorities_of_callers_still_asks_for_certificates() {
    let world = World::new();
    let made = Certificates::make(&world.path(""));
    let path = |name: &str| made.path(name);
    let (cert, key, ca) = (path("server.pem"), path("server.key"), path("ca.pem"));
    let text = format!("[gateway]\ntls-cert = \"{cert}\"\ntls-key = \"{key}\"\n");
    let with = format!("{text}tls-client-ca = \"{ca}\"\n");
    let file = world.file("gateway.toml", with);
    let mut command = world.tael(["gateway", "--root", "lab", "--config", &file]);
    command.args(["--listen", "127.0.0.1:0"]);
    let gateway = Gateway::listening(world.spawn(command));
    let health = request("GET /healthz", &[]);
    let (own, own_key) = (path("client.pem"), path("client.key"));
    let known = (ca.as_str(), Some((own.as_str(), own_key.as_str())));
    let asks = || {
        let answer = exchange(&gateway, known, &TLS13, &health).expect("answer");
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        let unknown = exchange(&gateway, (&ca, None), &TLS13, &health);
        assert!(unknown.is_err(), "{unknown:?}");
    };
    asks();
    for text in [text, "[gateway]\n".to_owned()] {
        let before = gateway.process.log_text().len();
        world.file("gateway.toml", text);
        gateway.process.signal(Signal::SIGHUP);
        wait_until("it has reloaded", || {
            let log = gateway.process.log_text();
            let said = &log[before..];
            said.contains("needs a restart") && said.contains("reloaded; ")
        });
        asks();
    }
    gateway.process.stop();
}
