//! OCI images: layers, documents, layouts, archives. Nothing here knows where a model comes from or which command runs.
//!
//! ```text
//! tar        the bytes of headers                        PURE
//! layer      a recipe of entries -> tar stream, digest
//! spec       descriptor, manifest, config, index         PURE
//! reference  [host/]path[:tag][@digest]                  PURE
//! assemble   ImagePlan + app layer -> Image              PURE
//! layout     Image + layers -> folder
//! archive    Image + layers -> tar stream
//! ```

pub mod archive;
pub mod assemble;
pub mod layer;
pub mod layout;
pub mod reference;
pub mod spec;
pub mod tar;
