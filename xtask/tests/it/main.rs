//! The tool as its users meet it: the built binary, in a private workspace for each test.

mod declare;
mod dockerfile;
mod image;
mod lock;
mod reproducible;
mod support;
mod tidy;
mod verify;
