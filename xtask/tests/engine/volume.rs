//! `volume`: filled, verified, repaired, and never taken for whole when it is not.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::engines::{Cleanup, ask, engine, old_engine, sparse, xtask};
use crate::support::Workspace;

#[test]
fn a_volume_is_filled_verified_repaired_and_removed() {
    for (host, name) in [(engine(), "model-lock-test-a"), (old_engine(), "model-lock-test-a")] {
        let _cleanup = Cleanup::of(&[(&host, format!("/volumes/{name}?force=1"))]);
        let workspace = Workspace::committed();
        let run = |arguments: &[&str]| xtask(&workspace, &host, arguments);
        run(&["volume", "rm", name]).expect(0);
        run(&["volume", "verify", name]).expect(2).says(&["the engine has no volume", "volume sync"]);
        run(&["volume", "sync", name]).expect(0).says(&["3 files, ", "3 files sent"]);
        run(&["volume", "sync", name]).expect(0).says(&["Unchanged", "0 files sent"]);
        run(&["volume", "verify", name]).expect(0).says(&["as in models.lock"]);
        // Another model: the old one is a finding, and only it is sent.
        workspace.write("models/words.txt", "six\nten\n");
        run(&["volume", "sync", name]).expect(1).says(&["words/words.txt has other bytes"]);
        workspace.run(&["lock"]).expect(0);
        let differs = run(&["volume", "verify", name, "--format", "json"]).expect(1);
        let differs =
            differs.says(&["words/words.txt has other bytes than models.lock says", "expected", "found"]).json();
        assert_eq!(differs["findings"][0]["kind"], "different");
        run(&["volume", "sync", name]).expect(0).says(&["1 file sent"]);
        run(&["volume", "verify", name]).expect(0);
        // A model less: what it left behind goes.
        workspace.declare("[workspace.metadata.models.digits]\nsource = \"models/digits\"\n");
        workspace.run(&["lock"]).expect(0);
        run(&["volume", "verify", name]).expect(1).says(&["srv/words/words.txt is not in models.lock"]);
        run(&["volume", "sync", name]).expect(0).says(&["Removing"]);
        run(&["volume", "verify", name]).expect(0);
        run(&["volume", "rm", name]).expect(0);
        assert_eq!(ask(&host, "GET", &format!("/volumes/{name}")).0, 404);
    }
}

#[test]
fn a_volume_that_somebody_else_made_is_left_alone() {
    let workspace = Workspace::committed();
    let (host, name) = (old_engine(), "model-lock-test-other");
    let _cleanup = Cleanup::of(&[(&host, format!("/volumes/{name}?force=1"))]);
    let made = Command::new("docker").args(["-H", &host, "volume", "create", name]).output().unwrap();
    assert!(made.status.success());
    for action in ["sync", "verify", "rm"] {
        let refused = xtask(&workspace, &host, &["volume", action, name]).expect(2);
        refused.says(&["was not made by this program"]);
    }
}

#[test]
fn a_volume_whose_filling_was_broken_off_says_so() {
    let workspace = Workspace::committed();
    let (host, name) = (old_engine(), "model-lock-test-killed");
    let _cleanup = Cleanup::of(&[(&host, format!("/volumes/{name}?force=1"))]);
    let run = |arguments: &[&str]| xtask(&workspace, &host, arguments);
    // Complete, then a larger model on its way when the process is killed.
    run(&["volume", "sync", name]).expect(0);
    let at = workspace.path("models/digits/model.safetensors");
    sparse(&at, 1 << 30);
    workspace.run(&["lock"]).expect(0);
    let mut broken = 0;
    for wait in [50, 100, 200, 400] {
        let mut command = workspace.command();
        command.args(["volume", "sync", name]).env("DOCKER_HOST", &host).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("Filling")));
        thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            broken += 1;
            run(&["volume", "verify", name]).expect(1).says(&["digits/model.safetensors"]);
        }
    }
    assert!(broken > 0);
    run(&["volume", "sync", name]).expect(0);
    run(&["volume", "verify", name]).expect(0);
    run(&["volume", "rm", name]).expect(0);
}
