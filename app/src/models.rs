//! The locked models as constants, made from models.lock by the build script. There is no other way to name a model
//! file in this program, so a file that is not locked cannot be opened.
#![allow(unreachable_pub, reason = "the constants are made for libraries too")]

include!(concat!(env!("OUT_DIR"), "/models.rs"));
