//! The only file that prints. stdout carries data: one digest or reference, or one JSON document. Everything else goes
//! to stderr: status lines with Cargo's 12-column verbs, progress bars on a terminal, errors.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::error::Failure;

/// What goes to stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// One line that other programs can take, such as a digest.
    #[default]
    Human,
    /// One JSON document.
    Json,
}

/// Whether stderr has colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Where and how much is printed.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "four independent decisions, taken once")]
pub struct Console {
    format: Format,
    quiet: bool,
    verbose: bool,
    color: bool,
    bars: bool,
}

impl Console {
    /// Decides everything about printing, once.
    #[must_use]
    pub fn new(format: Format, quiet: bool, verbose: bool, color: Color, no_color: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let color = match color {
            Color::Auto => terminal && !no_color,
            Color::Always => true,
            Color::Never => false,
        };
        Self { format, quiet, verbose, color, bars: terminal && !quiet }
    }

    /// Whether stdout is to carry JSON.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether there are colours.
    #[must_use]
    pub fn has_colors(&self) -> bool {
        self.color
    }

    /// Whether details were asked for.
    #[must_use]
    pub fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// A line such as `   Verifying digits (2 files, 21 kB)`.
    pub fn status(&self, verb: &str, message: impl AsRef<str>) {
        if !self.quiet {
            self.line("32;1", &format!("{verb:>12}"), message.as_ref());
        }
    }

    /// A status line that only `-v` shows.
    pub fn detail(&self, verb: &str, message: impl FnOnce() -> String) {
        if self.verbose {
            self.line("36;1", &format!("{verb:>12}"), &message());
        }
    }

    /// Something that is not wrong enough to stop.
    pub fn warn(&self, message: &str, help: Option<&str>) {
        if self.quiet {
            return;
        }
        self.line("33;1", "warning:", message);
        if let Some(help) = help {
            self.line("36;1", "  help:", help);
        }
    }

    /// Prints a failure: message, causes, details, help.
    pub fn error(&self, failure: &Failure) {
        self.line("31;1", "error:", &failure.message);
        for cause in failure.causes() {
            for (index, line) in cause.trim_end().lines().enumerate() {
                self.line("", if index == 0 { "  caused by:" } else { "            " }, line);
            }
        }
        for line in failure.details.iter().flat_map(|detail| detail.lines()) {
            self.line("", " ", line);
        }
        if let Some(help) = &failure.help {
            self.line("36;1", "  help:", help);
        }
        match &failure.document {
            Some(document) => self.json(document),
            None => self.json(&serde_json::json!({ "ok": false, "error": failure.to_json() })),
        }
    }

    #[expect(clippy::print_stderr, reason = "this is the file that prints")]
    fn line(&self, style: &str, lead: &str, message: &str) {
        let message = printable(message);
        if self.color && !style.is_empty() {
            eprintln!("\x1b[{style}m{lead}\x1b[0m {message}");
        } else {
            eprintln!("{lead} {message}");
        }
    }

    /// The one line of data of a command, unless JSON is wanted.
    pub fn data(&self, line: &str) {
        if !self.is_json() {
            self.out(line);
        }
    }

    /// The one JSON document of a command, if JSON is wanted.
    pub fn json(&self, document: &impl Serialize) {
        if self.is_json() {
            // Our own values: numbers, texts and lists of them always serialise.
            self.out(&serde_json::to_string_pretty(document).unwrap_or_default());
        }
    }

    /// A text for stdout as it is, in both formats: what a command was asked to print.
    pub fn out(&self, text: &str) {
        // A closed pipe (`… | head -n 1`) is the reader's decision, not an error.
        let _ = writeln!(io::stdout().lock(), "{text}");
    }

    /// A bar over `total` bytes, or the seconds where nothing is counted; one plain line where there is no terminal.
    #[must_use]
    pub fn progress(&self, verb: &str, message: &str, total: u64) -> Progress {
        if !self.bars {
            self.status(verb, message);
            return Progress(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let bytes = "[{bar:24}] {bytes}/{total_bytes} {bytes_per_sec}";
        bar.set_style(self.style(if total == 0 { ELAPSED } else { bytes }));
        bar.set_prefix(verb.to_owned());
        bar.set_message(printable(message).into_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Progress(bar)
    }

    fn style(&self, middle: &str) -> ProgressStyle {
        let color = if self.color { ".green.bold" } else { "" };
        // The templates are our own; without one there is a bar all the same.
        ProgressStyle::with_template(&format!("{{prefix:>12{color}}} {middle} {{wide_msg}}"))
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ")
    }

    /// The steps of a work that sends `total` bytes first.
    #[must_use]
    pub fn steps(&self, verb: &str, message: &str, total: u64) -> Steps {
        Steps { console: *self, bar: self.progress(verb, message, total) }
    }

    /// What a program that is followed prints, as it prints it.
    pub fn follow(&self, bytes: &[u8]) {
        // A closed stderr is the reader's decision, not an error.
        let _ = io::stderr().lock().write_all(bytes);
    }
}

/// The steps of a long work that somebody else does: one line for each that is done, and on a terminal a last line for
/// what is being done. Threads share it.
#[derive(Debug)]
pub struct Steps {
    console: Console,
    bar: Progress,
}

impl Steps {
    /// So many bytes more were sent. When all are, time is what there is to show.
    pub fn add(&self, bytes: u64) {
        self.bar.add(bytes);
        if self.bar.0.length() == Some(self.bar.0.position()) {
            self.bar.0.set_style(self.console.style(ELAPSED));
        }
    }

    /// A step was begun.
    pub fn now(&self, message: &str) {
        self.bar.0.reset_elapsed();
        self.newest(message);
    }

    /// A step is done.
    pub fn done(&self, verb: &str, message: &str) {
        self.bar.0.suspend(|| self.console.status(verb, message));
    }

    /// A line that a step printed: the newest is there to see on a terminal, and `-v` keeps all.
    pub fn detail(&self, step: &str, line: &str) {
        if self.console.is_verbose() {
            self.bar.0.suspend(|| self.console.detail("|", || line.to_owned()));
        }
        self.newest(&format!("{step} {}", line.trim_start()));
    }

    /// What there is to see on a terminal now.
    pub fn newest(&self, message: &str) {
        self.bar.0.set_message(printable(message).into_owned());
    }

    /// What a program prints for people, as it prints it.
    pub fn follow(&self, bytes: &[u8]) {
        self.bar.0.suspend(|| self.console.follow(bytes));
    }
}

const ELAPSED: &str = "{elapsed:>4}";

/// The progress of one long work. Threads share it.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// So many bytes more are done.
    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// A writer to `out` whose bytes count.
    pub fn counting<W: Write>(&self, out: W) -> Counting<'_, W> {
        Counting { progress: self, out }
    }
}

/// A writer that moves the progress.
#[derive(Debug)]
pub struct Counting<'a, W> {
    progress: &'a Progress,
    out: W,
}

impl<W: Write> Write for Counting<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.progress.add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Control characters escaped: names and messages from outside cannot move the cursor or colour the log.
fn printable(text: &str) -> Cow<'_, str> {
    let hostile = |c: char| {
        (c.is_control() && c != '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(hostile) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hostile(c) { safe.extend(c.escape_unicode()) } else { safe.push(c) }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("plain é\ttab"), "plain é\ttab");
        assert_eq!(printable("a\x1b[31mb\r"), "a\\u{1b}[31mb\\u{d}");
        assert_eq!(printable("a\u{202e}b"), "a\\u{202e}b");
    }
}
