//! Screens: what our commands show on a terminal.

use std::process::Command;

use crate::common::pty::{Terminal, golden, masked};

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn the_kit_shows_what_a_terminal_shows() {
    let script = r#"
        [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && stty size
        printf 'plain \033[32mgreen\033[0m \033[1;31mbold red\033[0m\n'
        printf 'never seen\r\033[Kdrawn again\n'
        printf '\346\227\245\346\234\254 wide, e\314\201 combined\n'
        printf '%085d\n' 7
        trap 'echo interrupted; exit 3' INT
        echo ready
        while :; do sleep 0.01; done
    "#;
    let mut terminal = Terminal::start(shell(script), 80);
    terminal.wait_for("ready");
    terminal.press("\u{3}");
    let (code, screen) = terminal.end();
    assert_eq!(code, 3, "{screen}");
    golden("kit", &screen);
    assert_eq!(
        masked("at 10:11:12, 7ms of 1.25s", "99:99:99", "12:34:56"),
        "at 12:34:56, 7ms of 1.25s"
    );
    assert_eq!(masked("7ms of 1.25s", "#s", "9s"), "7ms of 9s");
    assert_eq!(masked("127.0.0.1:1883", ":#", ":1"), "127.0.0.1:1");
}
