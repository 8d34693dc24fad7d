//! The engine where this program was compiled without it: every attempt to connect is refused, so nothing else is ever
//! called.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use super::endpoint::Endpoint;
use super::{About, Build, Container, Ended, EngineImage, Entry, Publish};
use crate::console::Steps;
use crate::error::{Failure, Kind, Result};
use crate::oci::reference::Reference;

/// There is none.
pub enum Engine {}

/// There is none.
pub struct Helper<'a>(&'a Engine);

impl Drop for Helper<'_> {
    fn drop(&mut self) {
        match *self.0 {}
    }
}

#[expect(missing_docs, reason = "as in `client`")]
#[expect(clippy::must_use_candidate, reason = "as in `client`")]
impl Engine {
    pub fn connect(_: &Endpoint) -> Result<Self> {
        Err(Failure::new(Kind::Engine, "this program was compiled without what talks to engines")
            .help("compile it with its cargo feature `docker`, or leave the engine out: `--builder oci` needs none"))
    }
    pub fn endpoint(&self) -> &Endpoint {
        match *self {}
    }
    pub fn about(&self) -> &About {
        match *self {}
    }
    pub fn image(&self, _: &str) -> Result<Option<EngineImage>> {
        match *self {}
    }
    pub fn layers_with(&self, _: &str, _: Option<&str>) -> Result<Vec<Vec<String>>> {
        match *self {}
    }
    pub fn is_whole(&self, _: &str) -> Result<bool> {
        match *self {}
    }
    pub fn untag(&self, _: &str) -> Result<()> {
        match *self {}
    }
    pub fn tag(&self, _: &str, _: &Reference) -> Result<()> {
        match *self {}
    }
    pub fn require_link(&self) -> Result<()> {
        match *self {}
    }
    pub fn load(&self, _: impl FnOnce(&mut dyn Write) -> Result<()> + Send) -> Result<()> {
        match *self {}
    }
    pub fn build(&self, _: &Build, _: &Steps, _: impl FnOnce(&mut dyn Write) -> Result<()> + Send) -> Result<String> {
        match *self {}
    }
    pub fn run(&self, _: &Container, _: impl FnOnce(&[Publish]), _: impl Fn(&[u8])) -> Result<Ended> {
        match *self {}
    }
    pub fn volume(&self, _: &str) -> Result<Option<BTreeMap<String, String>>> {
        match *self {}
    }
    pub fn create_volume(&self, _: &str, _: &[(&str, &str)]) -> Result<()> {
        match *self {}
    }
    pub fn remove_volume(&self, _: &str) -> Result<()> {
        match *self {}
    }
    pub fn helper(&self, _: &str, _: &str) -> Result<Helper<'_>> {
        match *self {}
    }
}

#[expect(missing_docs, reason = "as in `transfer`")]
impl Helper<'_> {
    pub fn upload(&self, _: impl FnOnce(&mut dyn Write) -> Result<()> + Send) -> Result<()> {
        match *self.0 {}
    }
    pub fn files(&self, _: impl FnMut(&str, Entry, &mut dyn Read) -> Result<()> + Send) -> Result<()> {
        match *self.0 {}
    }
}
