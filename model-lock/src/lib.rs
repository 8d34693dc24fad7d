//! models.lock pins every model of a workspace by digest. This crate is what the tool that writes the lock and the app
//! that runs by it share:
//!
//! ```text
//! digest   Digest: parsed once, 64 lower-case hex digits or nothing
//! path     RelPath, TargetPath, ModelName, ModelRoot
//! lock     ModelLock > LockedModel > LockedFile, right by construction; Model and ModelFile for constants
//! codec    models.lock text <-> ModelLock
//! format   what a file is by its content: safetensors, GGUF, ONNX, a pickle, a Git LFS pointer, an HTML page
//! verify   a file against its digest -> Finding
//! runtime  for apps: verify and open models below MODEL_ROOT
//! live     for apps: models that are exchanged while they are served
//! build    for build scripts: models.lock -> constants
//! ```
//!
//! No async, no network, no child process. Reading a lock touches no file: `codec` takes and gives text.

pub mod build;
pub mod codec;
pub mod digest;
pub mod format;
pub mod human;
pub mod live;
pub mod lock;
pub mod path;
pub mod runtime;
pub mod verify;

pub use digest::Digest;
pub use lock::{LockedFile, LockedLayer, LockedModel, ModelLock};
pub use path::{ModelName, ModelRoot, RelPath, TargetPath};
