//! The engines of these tests: where they are, what they say themselves, and what is left in them is removed.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::support::{self, Output, Workspace, safetensors};

#[track_caller]
pub(crate) fn variable(name: &str) -> String {
    let value = support::inherited(name).unwrap_or_else(|| panic!("{name} is not set: see tests/engine/main.rs"));
    value.into_string().unwrap()
}

pub(crate) fn engine() -> String {
    variable("MODEL_LOCK_TEST_ENGINE")
}

pub(crate) fn old_engine() -> String {
    variable("MODEL_LOCK_TEST_OLD_ENGINE")
}

/// Runs `cargo xtask ARGUMENTS` with this engine.
pub(crate) fn xtask(workspace: &Workspace, host: &str, arguments: &[&str]) -> Output {
    workspace.run_with(arguments, |command| {
        command.env("DOCKER_HOST", host);
    })
}

/// The build argument with the builder of these tests.
pub(crate) fn builder() -> String {
    format!("BUILDER={}", variable("MODEL_LOCK_TEST_BUILDER"))
}

/// The arguments of `image --builder docker`.
pub(crate) fn build_arguments<'a>(mode: &'a str, tag: &'a str, builder: &'a str, network: &'a str) -> [&'a str; 10] {
    ["image", mode, "--builder", "docker", "--network", network, "--build-arg", builder, "--tag", tag]
}

pub(crate) fn docker_build(workspace: &Workspace, mode: &str, tag: &str) -> Output {
    xtask(workspace, &engine(), &build_arguments(mode, tag, &builder(), "host"))
}

/// Asks the engine itself, by an HTTP request of our own: what it says is not to come through the code under test.
pub(crate) fn ask(host: &str, method: &str, path: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(host.strip_prefix("unix://").unwrap()).unwrap();
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: engine\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

pub(crate) fn inspect(host: &str, image: &str) -> Value {
    let (status, image) = ask(host, "GET", &format!("/images/{image}/json"));
    assert_eq!(status, 200, "{image}");
    image
}

/// Removes an image or a volume when a test ends.
pub(crate) struct Cleanup(Vec<(String, String)>);

impl Cleanup {
    pub(crate) fn of(paths: &[(&str, String)]) -> Self {
        Self(paths.iter().map(|(host, path)| ((*host).to_owned(), path.clone())).collect())
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        for (host, path) in &self.0 {
            ask(host, "DELETE", path);
        }
    }
}

pub(crate) fn image_cleanup(hosts: &[&str], tag: &str) -> Cleanup {
    Cleanup::of(&hosts.iter().map(|host| (*host, format!("/images/{tag}?force=1"))).collect::<Vec<_>>())
}

/// The digests of the layers that models.lock names, in the order in which an image has them.
pub(crate) fn locked_layers(workspace: &Workspace) -> Vec<String> {
    let mut layers: Vec<String> = Vec::new();
    let text = workspace.text("models.lock");
    for (at, _) in text.match_indices("layer = \"") {
        let digest = text[at + "layer = \"".len()..].split('"').next().unwrap().to_owned();
        if !layers.contains(&digest) {
            layers.push(digest);
        }
    }
    layers
}

pub(crate) fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// A safetensors file of this size that takes no place on the disk.
pub(crate) fn sparse(at: &Path, size: u64) {
    let header = safetensors(&[]);
    let file = File::create(at).unwrap();
    let data = size - 200;
    let text = format!("{{\"w\":{{\"dtype\":\"U8\",\"shape\":[{data}],\"data_offsets\":[0,{data}]}}}}");
    assert!(header.len() < 200 && text.len() <= 192);
    let text = format!("{text:192}");
    file.set_len(size).unwrap();
    file.write_all_at(&(text.len() as u64).to_le_bytes(), 0).unwrap();
    file.write_all_at(text.as_bytes(), 8).unwrap();
}
