//! How much memory it takes, however large a model is.

use std::fs;
use std::io::Write as _;
use std::thread;
use std::time::Duration;

use crate::engines::{
    Cleanup, ask, build_arguments, builder, engine, image_cleanup, inspect, locked_layers, sparse, texts,
};
use crate::support::Workspace;

/// Runs the call and gives the most memory that it had, in MiB.
fn peak_memory(workspace: &Workspace, host: &str, arguments: &[&str]) -> u64 {
    let mut command = workspace.command();
    let mut child = command.args(arguments).env("DOCKER_HOST", host).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let code = loop {
        if let Ok(text) = fs::read_to_string(&status)
            && let Some(line) = text.lines().find(|line| line.starts_with("VmHWM:"))
        {
            peak = line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024;
        }
        if let Some(code) = child.try_wait().unwrap() {
            break code;
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert!(code.success(), "{arguments:?}");
    peak
}

/// Sends a model of this size through everything that talks to an engine; `between` makes room there.
fn passes_through_little_memory(name: &str, size: u64, between: impl Fn(&str)) {
    let workspace = Workspace::committed();
    sparse(&workspace.path("models/digits/model.safetensors"), size);
    workspace.run(&["lock"]).expect(0);
    let host = engine();
    let (loaded, built) = (format!("model-lock-test/{name}:load"), format!("model-lock-test/{name}:build"));
    let volume = format!("model-lock-test-{name}");
    let _cleanup = (image_cleanup(&[&host], &loaded), image_cleanup(&[&host], &built));
    let load = peak_memory(&workspace, &host, &["image", "--embed", "--load", "--tag", &loaded]);
    ask(&host, "DELETE", &format!("/images/{loaded}?force=1"));
    let made = peak_memory(&workspace, &host, &build_arguments("--embed", &built, &builder(), "host"));
    assert_eq!(texts(&inspect(&host, &built)["RootFS"]["Layers"])[..3], locked_layers(&workspace));
    ask(&host, "DELETE", &format!("/images/{built}?force=1"));
    between(&host);
    let _cleanup = Cleanup::of(&[(&host, format!("/volumes/{volume}?force=1"))]);
    let sync = peak_memory(&workspace, &host, &["volume", "sync", &volume]);
    let verify = peak_memory(&workspace, &host, &["volume", "verify", &volume]);
    let told = format!("MiB at most: --load {load}, --builder docker {made}, volume sync {sync}, verify {verify}");
    assert!([load, made, sync, verify].iter().all(|peak| *peak < 256), "{told}");
    std::io::stdout().write_all(format!("{told}\n").as_bytes()).unwrap();
}

#[test]
fn a_gibibyte_passes_through_little_memory() {
    passes_through_little_memory("one", 1 << 30, |_| {});
}

#[test]
#[ignore = "moves 9 GiB several times and needs 50 GB of disk"]
fn long_nine_gibibytes_pass_through_little_memory() {
    // The disk has no place for all of it at once.
    passes_through_little_memory("nine", 9 << 30, |host| {
        ask(host, "POST", "/build/prune?all=1");
    });
}
