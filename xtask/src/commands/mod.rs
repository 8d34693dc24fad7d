//! One file a command: the only files that know the order of the stages.

mod engine;
pub mod image;
pub mod lock;
pub mod prepare;
pub mod run;
pub mod verify_models;
pub mod volume;
