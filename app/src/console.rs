//! Everything this program prints. A log whose reader has gone away must not stop the service, so a failed write is
//! ignored.

use std::fmt::Display;
use std::io::{self, Write as _};

/// Writes one line to standard error, in one piece so that lines of several threads do not mix.
pub(crate) fn log(line: impl Display) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Writes one `error: …` line to standard error.
pub(crate) fn error(cause: impl Display) {
    log(format_args!("error: {cause}"));
}

/// Writes one line to standard output, for what was asked for by a flag.
pub(crate) fn answer(line: impl Display) {
    let _ = io::stdout().write_all(format!("{line}\n").as_bytes());
}
