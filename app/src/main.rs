//! A service that recognises handwritten digits. This file knows the subcommands and the order of the start: settings,
//! then models, then the port.

mod classifier;
mod config;
mod console;
mod healthcheck;
mod models;
mod serve;
mod state;

use std::env;
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
  IMAGE_REVISION  Git commit of code and models, reported in answers

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
fn fail(code: u8, causes: impl IntoIterator<Item = String>) -> ExitCode {
    causes.into_iter().for_each(console::error);
    ExitCode::from(code)
}

fn verify_models(config: &Config) -> ExitCode {
    let start = Instant::now();
    match state::verify_all(&config.root) {
        Ok(()) => answer(&state::summary(Verify::Full, start)),
        Err(findings) => fail(NO, findings),
    }
}

fn healthcheck(config: &Config) -> ExitCode {
    match healthcheck::ask(config.reachable()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => fail(NO, [cause]),
    }
}
