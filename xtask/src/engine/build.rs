//! A Dockerfile and its context become an image, by the engine's BuildKit. Its steps are told as they end, and when one
//! fails, the step and its last lines.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write;

use bollard::errors::Error;
use bollard::moby::buildkit::v1::{StatusResponse, Vertex};
use bollard::models::{BuildInfo, BuildInfoAux};
use bollard::query_parameters::{BuildImageOptions, BuilderVersion};
use futures_util::StreamExt as _;

use super::Build;
use super::client::{Engine, innermost, is_end};
use crate::console::Steps;
use crate::error::{Failure, Kind, Result};

/// How many of a step's last lines are told when it fails.
const LAST_LINES: usize = 20;

impl Engine {
    /// Builds the context that `write` writes as a tar stream, and gives the image's id. It gets no name.
    pub fn build(
        &self,
        build: &Build,
        steps: &Steps,
        write: impl FnOnce(&mut dyn Write) -> Result<()> + Send,
    ) -> Result<String> {
        let options = BuildImageOptions {
            dockerfile: build.dockerfile.clone(),
            buildargs: Some(build.arguments.clone().into_iter().collect()),
            networkmode: build.network.clone(),
            platform: build.platform.clone(),
            rm: true,
            forcerm: true,
            version: BuilderVersion::BuilderBuildKit,
            // No `:` in it: the engine cuts the id there and waits for a session that never comes.
            session: Some(format!("model-lock-{}-{:p}", std::process::id(), build)),
            ..BuildImageOptions::default()
        };
        self.stream(
            |writer| write(writer),
            |docker, body| async move {
                let mut seen = Seen {
                    steps,
                    done: BTreeSet::new(),
                    vertices: BTreeMap::new(),
                    logs: BTreeMap::new(),
                    image: None,
                };
                let body = bollard::body_try_stream(body);
                let mut messages = docker.build_image(options, None, Some(body)).boxed();
                while let Some(message) = messages.next().await {
                    match message {
                        Ok(message) => seen.take(message).map_err(|error| seen.failure(self, &error))?,
                        Err(error) if is_end(&error) => break,
                        Err(error) => return Err(seen.failure(self, &error)),
                    }
                }
                seen.image.ok_or_else(|| {
                    Failure::new(Kind::Engine, format!("the build ended without an image: {}", self.endpoint()))
                        .help("the engine hung up: was it stopped? see its log, then run the command again")
                })
            },
        )
    }
}

/// The last lines of a step. They come in pieces, wherever the program in it flushed.
#[derive(Default)]
struct Log {
    lines: VecDeque<String>,
    piece: Vec<u8>,
}

impl Log {
    fn take(&mut self, bytes: &[u8], step: &str, steps: &Steps) {
        self.piece.extend_from_slice(bytes);
        while let Some(end) =
            self.piece.iter().position(|byte| *byte == b'\n').or((self.piece.len() > 4096).then_some(4096))
        {
            let line: Vec<u8> = self.piece.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            steps.detail(step, &line);
            self.lines.push_back(line);
            if self.lines.len() > LAST_LINES {
                self.lines.pop_front();
            }
        }
    }

    fn last_lines(&self) -> impl Iterator<Item = String> {
        let piece = String::from_utf8_lossy(&self.piece).into_owned();
        self.lines.iter().cloned().chain((!piece.is_empty()).then_some(piece))
    }
}

/// What BuildKit has said so far.
struct Seen<'a> {
    steps: &'a Steps,
    /// The names of the steps that were told to be done. An image that is pulled is done twice.
    done: BTreeSet<String>,
    vertices: BTreeMap<String, Vertex>,
    logs: BTreeMap<String, Log>,
    image: Option<String>,
}

impl Seen<'_> {
    fn take(&mut self, message: BuildInfo) -> std::result::Result<(), Error> {
        if let Some(detail) = message.error_detail {
            return Err(Error::DockerStreamError { error: detail.message.unwrap_or_default() });
        }
        match message.aux {
            Some(BuildInfoAux::BuildKit(status)) => self.status(status),
            Some(BuildInfoAux::Default(image)) => self.image = image.id,
            None => {}
        }
        Ok(())
    }

    fn status(&mut self, status: StatusResponse) {
        for vertex in status.vertexes {
            let known = self.vertices.get(&vertex.digest);
            let (was_started, was_done) =
                known.map_or((false, false), |known| (known.started.is_some(), known.completed.is_some()));
            if is_step(&vertex.name) {
                let done = vertex.completed.is_some() && !was_done && vertex.error.is_empty();
                if done && self.done.insert(vertex.name.clone()) {
                    self.steps.done(if vertex.cached { "Cached" } else { "Built" }, &told(&vertex));
                } else if vertex.started.is_some() && !was_started {
                    self.steps.now(&short(&vertex.name));
                }
            }
            self.vertices.insert(vertex.digest.clone(), vertex);
        }
        for log in status.logs {
            let name = self.vertices.get(&log.vertex).map_or("", |vertex| vertex.name.as_str());
            // `[build 4/4] RUN …`: the number tells which step it is.
            let step = name.find(']').map_or("", |end| &name[..=end]);
            self.logs.entry(log.vertex).or_default().take(&log.msg, step, self.steps);
        }
    }

    /// The failing step, its last lines, and what the engine says.
    fn failure(&self, engine: &Engine, error: &Error) -> Failure {
        // A step that was broken off because another one failed says so.
        let is_cause = |vertex: &&Vertex| !vertex.error.is_empty() && !vertex.error.contains("context canceled");
        let Some(failed) = self.vertices.values().find(is_cause) else {
            return engine.failed("the engine failed to build the image", error);
        };
        let said = innermost(error);
        let lines = self.logs.get(&failed.digest).into_iter().flat_map(Log::last_lines).map(|line| format!("| {line}"));
        let failure = engine
            .failed(format!("the engine failed to build the image at the step `{}`", short(&failed.name)), error)
            .details(lines);
        match said.rsplit_once("did not complete successfully: ") {
            Some((_, how)) => failure
                .because(format!("the step ended with {how}"))
                .help("correct what the step says; `--builder oci` builds without the engine"),
            None => failure,
        }
    }
}

/// Steps of the Dockerfile, in contrast to what the engine does for itself.
fn is_step(name: &str) -> bool {
    name.starts_with('[') && !name.starts_with("[internal]") && !name.contains("] LINK ")
}

/// A step's name on one line: a RUN instruction can be as long as a script, and a digest is known by its beginning.
fn short(name: &str) -> String {
    let words = name.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let cut = |piece: &str| match piece.split_at_checked(64) {
        Some((digest, rest)) if is_hex(digest) => format!("{}…{rest}", &digest[..12]),
        _ => piece.to_owned(),
    };
    let words: String = words.split_inclusive(|c: char| !c.is_ascii_hexdigit()).map(cut).collect();
    match words.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words,
    }
}

/// Its name, and how long it took if that was long.
fn told(vertex: &Vertex) -> String {
    let name = short(&vertex.name);
    match (&vertex.started, &vertex.completed) {
        (Some(started), Some(completed)) if !vertex.cached && completed.seconds - started.seconds > 1 => {
            format!("{name} ({} s)", completed.seconds - started.seconds)
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_steps_fit_on_a_line() {
        let digest = "90c80051c94a99e1251b4e82ad9bd5dcf8cded1562cdfaafc7e5ed09fbd33a65";
        assert_eq!(short(&format!("COPY --link .context/{digest}/ /")), "COPY --link .context/90c80051c94a…/ /");
        assert_eq!(short(&format!("FROM rust@sha256:{digest}")), "FROM rust@sha256:90c80051c94a…");
        assert_eq!(short("RUN set -e;\n   true"), "RUN set -e; true");
        assert_eq!(short(&format!("RUN {}", "é".repeat(200))), format!("RUN {}…", "é".repeat(76)));
        assert_eq!(short(&digest[1..]), digest[1..]);
    }
}
