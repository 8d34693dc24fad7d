//! The only files that know the order of the stages: one a command, and what several of them share.
//!
//! ```text
//! image, run, lock, verify_models, volume   commands
//! prepare    from the declaration to an image whose every digest is known
//! build      `image --builder docker`
//! engine     find it, load an image into it
//! manifest   the runtime manifest and its files
//! ```

mod build;
mod engine;
pub mod image;
pub mod lock;
mod manifest;
pub mod prepare;
pub mod run;
pub mod verify_models;
pub mod volume;
