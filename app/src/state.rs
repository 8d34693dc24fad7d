//! The models in memory: which they are, how their weights are loaded, and what is said about them.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model_lock::Digest;
use model_lock::human::{bytes, count};
use model_lock::live::{Live, Pin, Policy, Refused, Setup};
use model_lock::runtime::Verify;

use crate::classifier::Classifier;
use crate::config::Config;
use crate::models;

/// The model that answers when a request names none.
pub(crate) const DEFAULT: &str = models::DIGITS.name;
/// The file of each model that has its weights.
const WEIGHTS: &str = models::digits::MODEL_SAFETENSORS.path;

/// The weights of one model.
pub(crate) struct Weights {
    /// The digest of the very bytes that the classifier was made of, unless verification is off.
    pub(crate) digest: Digest,
    pub(crate) classifier: Classifier,
}

/// What every request sees.
#[derive(Clone)]
pub(crate) struct Service {
    /// The models that answer.
    pub(crate) models: Arc<Live<Weights>>,
    /// The git commit of the code, and of the models that it was built with, if the image says.
    pub(crate) commit: Option<Arc<str>>,
}

/// What this program was built with, and what the environment makes of it.
pub(crate) fn setup(config: &Config) -> Setup {
    Setup { lock: models::LOCK, models: models::ALL, root: config.root.clone(), policy: config.policy }
}

/// Verifies every file and loads the weights from the very bytes that were verified.
///
/// # Errors
///
/// Everything that is wrong, one line each.
pub(crate) fn load(setup: Setup, verify: Verify) -> Result<Live<Weights>, Vec<Refused>> {
    Live::load(setup, verify, |files| {
        let bytes = files.read(WEIGHTS)?;
        let classifier = Classifier::from_safetensors(&bytes).map_err(|cause| files.refuse(WEIGHTS, cause))?;
        Ok(Weights { digest: files.file(WEIGHTS)?.digest, classifier })
    })
}

/// Verifies and loads again, and says in one line what came of it.
pub(crate) fn reload(models: &Live<Weights>) -> String {
    let start = Instant::now();
    match models.reload() {
        Ok(change) if change.is_none() => {
            let policy = models.setup().policy;
            let took = milliseconds(start.elapsed());
            format!("reloaded in {took}, nothing changed (MODEL_POLICY is {policy}), serving {}", models.current())
        }
        Ok(change) => format!("reloaded in {}: {change}", milliseconds(start.elapsed())),
        Err(refused) => {
            let mut line = format!("reload refused, still serving {}: {}", models.current(), refused[0]);
            if refused.len() > 1 {
                let _ = write!(line, " (and {} more: `app verify-models` lists all)", refused.len() - 1);
            }
            let (policy, lock) = (models.setup().policy, models.setup().mounted_lock());
            if policy == Policy::Pinned && lock.exists() {
                let _ = write!(line, "; MODEL_POLICY is {policy}, so `{}` does not count", lock.display());
            }
            line
        }
    }
}

/// `verified 1 model (2 files, 22 kB) in 0.4 ms`: says only what `verify` asked for.
pub(crate) fn summary<'a>(pins: impl IntoIterator<Item = &'a Pin>, verify: Verify, since: Instant) -> String {
    let (mut models, mut files, mut size) = (0, 0, 0);
    for pin in pins {
        models += 1;
        files += pin.files().len();
        // Unverified, a size is whatever a lock says.
        size = pin.files().iter().fold(size, |sum: u64, file| sum.saturating_add(file.size));
    }
    let what = format!("{} ({}, {})", count(models, "model"), count(files, "file"), bytes(size));
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
