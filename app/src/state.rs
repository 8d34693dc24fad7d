//! The models in memory: verified, loaded once, and handed to requests as one value, so that exchanging them is
//! exchanging that value.

use std::sync::Arc;
use std::time::{Duration, Instant};

use model_lock::Digest;
use model_lock::human::{bytes, count};
use model_lock::runtime::{Model, ModelRoot, Verify};

use crate::classifier::Classifier;
use crate::models;

/// A locked model whose weights are in memory.
pub(crate) struct Loaded {
    /// What models.lock says about it.
    pub(crate) model: &'static Model<'static>,
    /// The digest of the weights.
    pub(crate) digest: Digest,
    /// The weights.
    pub(crate) classifier: Classifier,
}

/// All models of one lock.
pub(crate) struct Models {
    /// The digest of the lock.
    pub(crate) lock: Digest,
    /// In the order of the lock. Never empty: the first that [`models::DIGITS`] names is the default.
    pub(crate) loaded: Vec<Loaded>,
    default: usize,
}

/// What every request sees.
#[derive(Clone)]
pub(crate) struct Service {
    /// The models that answer.
    pub(crate) models: Arc<Models>,
    /// The git commit of code and models, if the image says.
    pub(crate) commit: Option<Arc<str>>,
}

impl Models {
    /// Verifies every locked file below `root` and loads the weights from the very bytes that were verified.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, one line each.
    pub(crate) fn load(root: &ModelRoot, verify: Verify) -> Result<Self, Vec<String>> {
        let mut loaded = Vec::new();
        let mut findings = Vec::new();
        for model in models::ALL {
            for file in model.files {
                if file.path == models::digits::MODEL_SAFETENSORS.path {
                    match root.read(file, verify).map(|bytes| Classifier::from_safetensors(&bytes)) {
                        Ok(Ok(classifier)) => loaded.push(Loaded { model, digest: file.digest, classifier }),
                        Ok(Err(cause)) => findings.push(format!("{}: {}: {cause}", model.name, file.path)),
                        Err(refusal) => findings.push(refusal.to_string()),
                    }
                } else if let Err(refusal) = root.open(file, verify) {
                    findings.push(refusal.to_string());
                }
            }
        }
        if !findings.is_empty() {
            return Err(findings);
        }
        let default = loaded.iter().position(|loaded| loaded.model.name == models::DIGITS.name);
        let default = default.ok_or_else(|| vec![format!("models.lock has no model `{}`", models::DIGITS.name)])?;
        Ok(Self { lock: models::LOCK, loaded, default })
    }

    /// The model that answers when a request names none.
    pub(crate) fn default(&self) -> &Loaded {
        &self.loaded[self.default]
    }
}

/// Verifies every byte of every locked model, and loads none.
///
/// # Errors
///
/// Everything that is wrong, one line each.
pub(crate) fn verify_all(root: &ModelRoot) -> Result<(), Vec<String>> {
    root.verify(models::ALL, Verify::Full).map_err(|all| all.iter().map(ToString::to_string).collect())
}

/// `verified 1 model (2 files, 22 kB) in 0.4 ms`: says only what `verify` asked for.
pub(crate) fn summary(verify: Verify, since: Instant) -> String {
    let files = || models::ALL.iter().flat_map(|model| model.files);
    let what = format!(
        "{} ({}, {})",
        count(models::ALL.len(), "model"),
        count(files().count(), "file"),
        bytes(files().map(|file| file.size).sum())
    );
    let took = milliseconds(since.elapsed());
    match verify {
        Verify::Full => format!("verified {what} in {took}"),
        Verify::Size => format!("checked the sizes, not the digests, of {what} in {took}"),
        Verify::Off => format!("loaded {what} unverified in {took}"),
    }
}

fn milliseconds(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1e3)
}
