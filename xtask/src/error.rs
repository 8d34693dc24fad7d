//! A failure as the user meets it: what was tried, why it did not work, what to do next, and the exit code.
//! It does not print; `console` does.

use std::error::Error;
use std::fmt;

use serde_json::{Value, json};

/// The result of every stage.
pub type Result<T> = std::result::Result<T, Failure>;

/// What kind of failure it is. The number is the `code` in JSON output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The command line or Cargo.toml asks for something that does not exist.
    Usage = 2,
    /// models.lock or a generated file disagrees with the declaration, or cannot be read as a lock.
    Lock = 3,
    /// Bytes disagree with models.lock.
    Integrity = 4,
    /// A file or folder of this machine cannot be read or written.
    Io = 6,
    /// An engine cannot be reached, or fails at what it is asked to do.
    Engine = 7,
    /// It could be done, and is refused.
    Policy = 8,
    /// A program that was called (cargo, git) failed.
    Program = 9,
}

impl Kind {
    /// 1 where a check found a disagreement, 2 where it could not be told or done.
    #[must_use]
    pub fn exit(self) -> u8 {
        match self {
            Self::Lock | Self::Integrity => 1,
            Self::Usage | Self::Io | Self::Engine | Self::Policy | Self::Program => 2,
        }
    }
}

/// A failure.
#[derive(Debug)]
pub struct Failure {
    /// What kind it is.
    pub kind: Kind,
    /// What was tried and did not work: a lower-case sentence, objects in backticks.
    pub message: String,
    /// Lines that belong to it, such as one for each finding.
    pub details: Vec<String>,
    /// Why, from the inside out.
    pub cause: Option<Box<dyn Error + Send + Sync>>,
    /// One next step, as a command where there is one.
    pub help: Option<String>,
    /// What a command prints in JSON beside the error.
    pub document: Option<Value>,
}

impl Failure {
    /// A failure with this message and nothing else.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), details: Vec::new(), cause: None, help: None, document: None }
    }

    /// Adds the next step.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds lines that belong to it.
    #[must_use]
    pub fn details(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(lines);
        self
    }

    /// Adds why it happened.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Adds the JSON document of the command, which gets the error in its key `error`.
    #[must_use]
    pub fn document(mut self, mut document: Value) -> Self {
        document["error"] = self.to_json();
        self.document = Some(document);
        self
    }

    /// The failure in JSON output.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "code": self.kind as u8, "message": self.message, "causes": self.causes(), "details": self.details, "help": self.help,
        })
    }

    /// The causes, outermost first.
    #[must_use]
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = self.cause.as_deref().map(|cause| cause as &dyn Error);
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        causes
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes().iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl Error for Failure {}

/// Turns errors of libraries and of the system into failures.
pub trait OrFail<T> {
    /// Says what was tried when the error came.
    fn or_fail(self, kind: Kind, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> OrFail<T> for std::result::Result<T, E> {
    fn or_fail(self, kind: Kind, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Failure::new(kind, message()).because(error))
    }
}
