//! A service that recognises handwritten digits. This file knows the subcommands; `serve` knows the order of the start.

mod classifier;
mod config;
mod console;
mod healthcheck;
mod models;
mod serve;
mod state;

use std::env;
use std::fmt::Display;
use std::process::ExitCode;
use std::time::Instant;

use config::Config;
use model_lock::runtime::Verify;

const HELP: &str = "\
Recognises handwritten digits over HTTP, with models that are pinned in models.lock.

Usage: app [COMMAND]

Commands:
  serve          Verify and load the models, then answer requests (default)
  verify-models  Read every byte of the models and compare with models.lock
  healthcheck    Ask the service on this machine whether it is up

Options:
  -h, --help     Print this help
  -V, --version  Print the version

Environment:
  LISTEN          Address and port to serve on [default: 0.0.0.0:8080]
  MODEL_ROOT      Folder under which the models lie [default: /models]
  MODEL_VERIFY    What to check at the start: full, size or off [default: full]
  MODEL_POLICY    Which models may be served [default: pinned]
                    pinned  only those that this program was built with
                    locked  also those that MODEL_ROOT/models.lock pins, if there is one: it may change
                            what is in the models, not their names, targets or file names
  IMAGE_REVISION  Git commit of code and models, reported in answers

Requests:
  GET  /             A page to draw on
  POST /v1/predict   {\"pixels\": [64 numbers from 0 to 16]}; the header `x-model: NAME` chooses the
                     model that answers [default: digits]
  GET  /v1/models    The models, their digests, and the digest of the models.lock that pins them
  GET  /healthz      Whether the service is up

Signals:
  SIGHUP           Read MODEL_ROOT/models.lock (if MODEL_POLICY is locked) and the models again, verify every
                   byte, and exchange what changed while requests go on; if anything is wrong, all stays
  SIGTERM, SIGINT  Finish open requests and stop

Exit status: 0 yes, 1 a model or the service is not as it should be, 2 could not tell.";

/// Something is not as it should be.
const NO: u8 = 1;
/// Usage, settings, or a resource that could not be had.
const COULD_NOT: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let run: fn(&Config) -> ExitCode = match arguments[..] {
        [] | ["serve"] => serve::run,
        ["verify-models"] => verify_models,
        ["healthcheck"] => healthcheck,
        ["-h" | "--help"] => return answer(HELP),
        ["-V" | "--version"] => return answer(concat!("app ", env!("CARGO_PKG_VERSION"))),
        _ => {
            console::error(format_args!("unexpected arguments `{}`\n\n{HELP}", arguments.join(" ")));
            return ExitCode::from(COULD_NOT);
        }
    };
    match Config::from_env() {
        Ok(config) => run(&config),
        Err(cause) => fail(COULD_NOT, [cause]),
    }
}

fn answer(text: &str) -> ExitCode {
    console::answer(text);
    ExitCode::SUCCESS
}

/// One line per cause, and the exit code.
fn fail(code: u8, causes: impl IntoIterator<Item = impl Display>) -> ExitCode {
    causes.into_iter().for_each(console::error);
    ExitCode::from(code)
}

fn verify_models(config: &Config) -> ExitCode {
    let start = Instant::now();
    match state::setup(config).verify() {
        Ok(pins) => answer(&state::summary(&pins.models, Verify::Full, start)),
        Err(refused) => fail(NO, refused),
    }
}

fn healthcheck(config: &Config) -> ExitCode {
    match healthcheck::ask(config.reachable()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => fail(NO, [cause]),
    }
}
