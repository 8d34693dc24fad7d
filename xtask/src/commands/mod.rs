//! One file a command: the only files that know the order of the stages.

mod engine;
pub mod image;
pub mod lock;
pub mod prepare;
pub mod run;
mod upload;
pub mod verify_models;
pub mod volume;
