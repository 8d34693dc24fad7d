//! `run`: locked down, followed, stopped and removed.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use crate::engines::{Cleanup, ask, engine, old_engine, xtask};
use crate::support::{self, Workspace};

const LOCKED_DOWN: &str = r#"
use std::fs;
fn main() {
    let words = fs::read_to_string("/srv/words/words.txt").unwrap();
    eprintln!("words {words:?}");
    eprintln!("root {:?}", fs::write("/x", "").unwrap_err().kind());
    eprintln!("model {:?}", fs::write("/srv/words/words.txt", "").unwrap_err().kind());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    for line in status.lines().filter(|line| ["CapBnd", "NoNewPrivs", "Uid"].iter().any(|key| line.starts_with(key))) {
        eprintln!("{}", line.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
    }
}
"#;

#[test]
fn an_app_runs_locked_down_with_its_models() {
    let workspace = Workspace::committed();
    workspace.write("app/src/main.rs", LOCKED_DOWN);
    for host in [engine(), old_engine()] {
        for mode in ["--embed", "--mount"] {
            let ran = xtask(&workspace, &host, &["run", mode, "--network", "none"]).expect(0);
            ran.says(&[
                "words \"one\\ntwo\\n\"",
                "root ReadOnlyFilesystem",
                "model ReadOnlyFilesystem",
                "CapBnd: 0000000000000000",
                "NoNewPrivs: 1",
                "Uid: 65532",
            ]);
        }
    }
}

#[test]
fn models_reach_an_engine_that_does_not_see_them_through_a_volume() {
    let workspace = Workspace::committed();
    workspace.write("app/src/main.rs", LOCKED_DOWN);
    let name = "model-lock-test-run";
    let (new, old) = (engine(), old_engine());
    let path = format!("/volumes/{name}?force=1");
    let _cleanup = Cleanup::of(&[(&new, path.clone()), (&old, path)]);
    let arguments = ["run", "--mount", "--volume", name, "--network", "none"];
    xtask(&workspace, &new, &arguments).expect(0).says(&[
        "3 files sent",
        "words \"one\\ntwo\\n\"",
        "model ReadOnlyFilesystem",
    ]);
    xtask(&workspace, &new, &arguments).expect(0).says(&["Unchanged", "words \"one\\ntwo\\n\""]);
    // One model is not below /models, and a part of a volume is more than the old engine can mount.
    xtask(&workspace, &old, &arguments).expect(2).says(&["cannot mount a part of a volume", "help: "]);
    let declared = workspace.text("Cargo.toml").replace("/srv/words", "/models/words");
    workspace.write("Cargo.toml", declared);
    workspace.write("app/src/main.rs", LOCKED_DOWN.replace("/srv/words", "/models/words"));
    workspace.run(&["lock"]).expect(0);
    xtask(&workspace, &old, &arguments).expect(0).says(&["words \"one\\ntwo\\n\"", "model ReadOnlyFilesystem"]);
}

const ECHO: &str = r#"
fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    eprintln!("words {words:?} {:?}", std::env::var("WORD"));
}
"#;

/// Arguments and a variable for [`ECHO`].
const WORDS: [&str; 5] = ["--env", "WORD=a =b", "--", "--two words", "$HOME"];

#[test]
fn arguments_and_variables_reach_the_app() {
    let workspace = Workspace::committed();
    workspace.write("app/src/main.rs", ECHO);
    for host in [engine(), old_engine()] {
        let ran = xtask(&workspace, &host, &[&["run", "--mount", "--network", "none"], &WORDS[..]].concat());
        ran.expect(0).says(&["words [\"--two words\", \"$HOME\"] Ok(\"a =b\")"]);
    }
}

#[test]
fn an_app_that_fails_fails_the_command() {
    let workspace = Workspace::committed();
    let host = old_engine();
    for (code, expected) in [(1, 1), (3, 2), (101, 2)] {
        workspace.write("app/src/main.rs", format!("fn main() {{ std::process::exit({code}) }}\n"));
        let failed = xtask(&workspace, &host, &["run", "--embed", "--network", "none"]).expect(expected);
        failed.says(&[&format!("`app` ended with exit code {code}")]);
    }
    workspace.remove("models/words.txt");
    xtask(&workspace, &host, &["run", "--mount", "--network", "none"]).expect(1).says(&["words/words.txt is missing"]);
}

#[test]
fn a_signal_stops_and_removes_the_container() {
    let workspace = Workspace::committed();
    let sleeping = "fn main() {\n    println!(\"up\");\n    loop {\n        std::thread::park();\n    }\n}\n";
    workspace.write("app/src/main.rs", sleeping);
    for host in [engine(), old_engine()] {
        let mut command = workspace.command();
        command.args(["run", "--embed", "--network", "none"]).env("DOCKER_HOST", &host).stderr(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "up"));
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let rest: Vec<String> = lines.collect();
        assert!(child.wait().unwrap().success(), "{rest:?}");
        assert!(rest.iter().any(|line| line.contains("Stopped app")), "{rest:?}");
        let (_, left) =
            ask(&host, "GET", "/containers/json?all=1&filters=%7B%22ancestor%22%3A%5B%22app%3Aembed%22%5D%7D");
        assert_eq!(left.as_array().map(Vec::len), Some(0), "{left}");
    }
}

const ALONE: &str = r#"
use std::env::{args, var};
fn main() {
    let model = std::fs::read_to_string(format!("{}/srv/words/words.txt", var("MODEL_ROOT").unwrap())).unwrap();
    eprintln!("model {model:?} at {}", var("LISTEN").unwrap());
    eprintln!("words {:?} {:?}", args().skip(1).collect::<Vec<_>>(), var("WORD"));
}
"#;

#[test]
fn without_an_engine_the_app_runs_by_itself() {
    let workspace = Workspace::committed();
    workspace.write("app/src/main.rs", ALONE);
    let config = workspace.path("no-docker");
    // In a mount namespace without the sockets of this machine.
    let script =
        "exec unshare --user --map-root-user --mount sh -c 'mount -t tmpfs none /run && exec \"$@\"' sh \"$@\"";
    let mut shell = support::command("sh", workspace.root());
    shell.args(["-c", script, "sh", env!("CARGO_BIN_EXE_xtask"), "run", "--mount", "--publish", "8099:8080"]);
    shell.args(WORDS);
    let ran = support::output(shell.env("DOCKER_CONFIG", config), workspace.root()).expect(0);
    assert_eq!(ran.stdout, "http://127.0.0.1:8099\n");
    ran.says(&[
        "no engine is there",
        "model \"one\\ntwo\\n\" at 127.0.0.1:8099",
        "words [\"--two words\", \"$HOME\"] Ok(\"a =b\")",
    ]);
}
