//! TLS: the certificates of docs/tls.md work, and errors name the cause with other ones.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::{bare_command, binary, has_program, ran, refuses};

/// A server that ends with its test.
struct Server(Child, u16);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `command`, which prints its port at the end of a line.
fn server(mut command: Command) -> Server {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().expect("spawn");
    let stdout = child.stdout.take().expect("stdout");
    let port = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.trim().rsplit_once(':')?.1.parse().ok());
    Server(child, port.expect("a port"))
}

/// Starts a TLS server without a protocol inside.
fn handshakes(dir: &Path, certificate: &str, key: &str) -> Server {
    let mut command = Command::new("openssl");
    command
        .current_dir(dir)
        .args(["s_server", "-accept", "127.0.0.1:0", "-naccept", "9"]);
    command.args(["-cert", certificate, "-key", key]);
    server(command)
}

fn shell(dir: &Path, script: &str) {
    let mut command = Command::new("sh");
    command.current_dir(dir).args(["-euc", script]);
    let (code, _, stderr) = ran(&mut command);
    assert_eq!(code, 0, "{script}: {stderr}");
}

/// Returns the shell blocks of docs/tls.md.
fn chapter() -> Vec<String> {
    let text = include_str!("../../docs/tls.md");
    let blocks = text.split("```sh certificates\n").skip(1);
    blocks
        .map(|block| block.split("```").next().expect("block").to_owned())
        .collect()
}

fn message(dir: &tempfile::TempDir, port: u16) -> Command {
    let mut command = bare_command(dir, "tael-message");
    command
        .current_dir(dir)
        .args(["-t", "lab/seq/status", "-H", "localhost"]);
    command.args(["-p", &port.to_string(), "--cafile", "ca.pem"]);
    command
}

#[test]
fn the_chapters_commands_make_certificates_that_work() {
    if !has_program("openssl", "the commands of docs/tls.md") {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let blocks = chapter();
    assert_eq!(blocks.len(), 3);
    blocks.iter().for_each(|block| shell(dir.path(), block));
    let mut command = Command::new(binary("tael"));
    command
        .current_dir(&dir)
        .args(["broker", "--print-url", "--listen", "127.0.0.1:0"]);
    command.args(["--cafile", "ca.pem", "--cert", "server.pem"]);
    command
        .args(["--key", "server.key"])
        .env("TAEL_CONFIG", "/dev/null");
    let broker = server(command);
    let client = ["--cert", "client.pem", "--key", "client.key"];
    let sent = ran(message(&dir, broker.1).args(client));
    assert_eq!(sent, (0, String::new(), String::new()));
    // A folder works like a file, and a name like an address.
    let authorities = dir.path().join("authorities");
    fs::create_dir(&authorities).expect("folder");
    fs::copy(dir.path().join("ca.pem"), authorities.join("lab.crt")).expect("copy");
    let mut by_folder = bare_command(&dir, "tael-message");
    by_folder
        .current_dir(&dir)
        .args(["-t", "lab/seq/status", "-H", "127.0.0.1"]);
    by_folder.args(["-p", &broker.1.to_string(), "--capath", "authorities"]);
    by_folder
        .args(["--tls-server-name", "localhost"])
        .args(client);
    assert_eq!(ran(&mut by_folder), (0, String::new(), String::new()));
    refuses(&mut message(&dir, broker.1), 77, "--cert and --key");
    let other = ["--tls-server-name", "other.example"];
    refuses(
        message(&dir, broker.1).args(client).args(other),
        69,
        "not for 'other.example'",
    );
    // A key with a passphrase.
    shell(
        dir.path(),
        "openssl pkey -in client.key -aes256 -passout pass:x -out locked.key",
    );
    let locked = ["--cert", "client.pem", "--key", "locked.key"];
    let way_out = "openssl pkey -in locked.key";
    refuses(message(&dir, broker.1).args(locked), 78, way_out);
}

#[test]
fn certificates_that_do_not_work_say_why() {
    if !has_program("openssl", "certificates that do not work") {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let blocks = chapter();
    blocks[..2]
        .iter()
        .for_each(|block| shell(dir.path(), block));
    let sign = "openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -out odd.pem";
    let p521 = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-521 -nodes \
                -keyout odd.key -out odd.csr -subj /CN=x";
    for (make, key, text) in [
        (
            format!("{sign} -in server.csr"),
            "server.key",
            "is of version 1",
        ),
        (
            format!("echo basicConstraints=CA:FALSE >cn; {sign} -in server.csr -extfile cn"),
            "server.key",
            "its subjectAltName is missing",
        ),
        (
            "cp ca.pem odd.pem".to_owned(),
            "ca.key",
            "is that of an authority itself",
        ),
        (
            format!("{p521}; {sign} -in odd.csr -extfile server.ext"),
            "odd.key",
            "P-521",
        ),
        (
            format!("{sign} -in server.csr -days -1 -extfile server.ext"),
            "server.key",
            "has expired",
        ),
    ] {
        shell(dir.path(), &make);
        let broker = handshakes(dir.path(), "odd.pem", key);
        refuses(&mut message(&dir, broker.1), 69, text);
    }
}
