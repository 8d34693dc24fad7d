//! The built binary against real engines, and against a socket that answers as a broken one does. Run by
//! `cargo test --workspace --features xtask/engine-tests --test engine`; an engine that is not there is a failure, not a skip.
//!
//! ```text
//! MODEL_LOCK_TEST_ENGINE      a current Docker Engine, such as unix:///run/docker.sock
//! MODEL_LOCK_TEST_OLD_ENGINE  Docker Engine 20.10
//! MODEL_LOCK_TEST_BUILDER     an image with Rust that the engine can pull, by digest
//! MODEL_LOCK_TEST_TOOLS       a program that runs dockerd, ip, openssl, podman, sshd as root: `TOOLS dockerd …`
//! ```
//!
//! `docker buildx` and `ssh` are those of the user.
//!
//! `long_…` moves 9 GiB and is run by name: `--ignored long_`.

#[path = "../it/support.rs"]
#[expect(dead_code, reason = "what the other tests need beside these")]
mod support;

mod build;
mod endpoints;
mod engines;
mod faults;
mod load;
mod memory;
mod run;
mod volume;
