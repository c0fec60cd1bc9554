//! State folders that other users can change: the client refuses them, and does not follow their links.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use crate::common::{World, refuses};

const SEQ: &str = "lab/seq/status";

#[track_caller]
fn client_refuses(world: &World, cause: &str) {
    let mut command = world.command("tael-client");
    command.args(["--who", "p", "--root", "lab", "-t", SEQ, "-c", "true"]);
    refuses(&mut command, 73, cause);
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
}

#[test]
fn a_state_that_others_can_change_is_refused_and_what_links_lead_to_is_not_touched() {
    let world = World::new();
    world.client("p", &["-t", SEQ, "-c", "true"]).stop();
    let (state, home) = (world.state(), world.home("p"));
    let victim = world.path("victim");
    fs::create_dir(&victim).expect("folder");
    // Links in the folder, and instead of it.
    for (name, target) in [("lock", victim.join("file")), ("units", victim.clone())] {
        let (inside, aside) = (home.join(name), world.path("aside"));
        fs::rename(&inside, &aside).expect("aside");
        symlink(target, &inside).expect("link");
        client_refuses(&world, "is a link");
        fs::remove_file(&inside).expect("link");
        fs::rename(&aside, &inside).expect("back");
    }
    let aside = world.path("aside");
    fs::rename(&home, &aside).expect("aside");
    symlink(&victim, &home).expect("link");
    client_refuses(&world, "it is a link");
    fs::remove_file(&home).expect("link");
    fs::rename(&aside, &home).expect("back");
    assert_eq!(fs::read_dir(&victim).expect("folder").count(), 0);
    // Other users may write there.
    mode(&home, 0o770);
    client_refuses(&world, "chmod go-w");
    mode(&home, 0o700);
    mode(&state, 0o777);
    client_refuses(&world, "chmod o-w");
    mode(&state, 0o700);
    // It belongs to another user. Only root can arrange that.
    if nix::unistd::geteuid().is_root() {
        for path in [&state, &home] {
            chown(path, Some(65534), None).expect("chown");
            client_refuses(&world, "it belongs to user 65534");
            chown(path, Some(0), None).expect("chown");
        }
    }
    // A link to a state folder on another disk is fine if root or we have made it.
    fs::rename(&state, &aside).expect("aside");
    symlink(&aside, &state).expect("link");
    world.client("p", &["-t", SEQ, "-c", "true"]).stop();
}
