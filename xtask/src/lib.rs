//! `cargo xtask` as a library: the xtask of any workspace is a `main` of three lines over [`main`].
//!
//! Values move to the right only. A stage takes the value before it and never calls another stage; only the files in
//! `commands` know the order.
//!
//! ```text
//! Cargo.toml -declare> Declaration -resolve> ModelLock <> models.lock -verify> VerifiedModels
//!                                      compile> AppBinary -plan> ImagePlan
//! ImagePlan -dockerfile> Dockerfile    ImagePlan -oci::assemble> Image -layout|archive> files
//! ```

pub mod build_context;
pub mod cargo_config;
pub mod commands;
pub mod compile;
pub mod console;
pub mod context;
pub mod declare;
pub mod dockerfile;
pub mod engine;
pub mod error;
pub mod flags;
pub mod git;
pub mod lockfile;
pub mod mounts;
pub mod oci;
pub mod plan;
pub mod quote;
pub mod resolve;
pub mod source;
pub mod stamp;
pub mod upload;
pub mod verify;
pub mod volume;
pub mod write;

use std::process::ExitCode;

use clap::Parser as _;

use crate::flags::{Command, Flags};

/// Parses the command line, runs the command, and gives the exit code: 0 yes, 1 a check found a disagreement, 2 it could
/// not be told or done.
#[must_use]
pub fn main() -> ExitCode {
    let Flags { command, global } = Flags::parse();
    let console = global.console();
    let result = match &command {
        Command::Lock(flags) => commands::lock::run(flags, &global, &console),
        Command::VerifyModels(flags) => commands::verify_models::run(flags, &console),
        Command::Image(flags) => commands::image::run(flags, &global, &console),
        Command::Run(flags) => commands::run::run(flags, &global, &console),
        Command::Volume(flags) => commands::volume::run(flags, &console),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            console.error(&failure);
            ExitCode::from(failure.kind.exit())
        }
    }
}
