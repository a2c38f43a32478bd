//! How problems are told: one line that names what failed and what to do.

use std::{
    fmt::Display,
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

/// What is told while a screen is open, the latest last; `None` while there is none.
static HELD: Mutex<Option<Vec<String>>> = Mutex::new(None);

/// How much of it is kept.
const MOST_HELD: usize = 100;

/// Tells something on stderr that is not part of the output. Where stderr is closed there is nobody to tell.
pub fn tell(message: impl Display) {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    match held.as_mut() {
        Some(held) => {
            let message = message.to_string();
            held.retain(|earlier| *earlier != message);
            if held.len() >= MOST_HELD {
                held.remove(0);
            }
            held.push(message);
        }
        None => drop(writeln!(io::stderr(), "tracer: {message}")),
    }
}

/// As long as this lives, what is told waits: it would be written across a screen. Then it goes to stderr.
pub struct Held(());

/// Keeps what is told.
#[must_use]
pub fn hold() -> Held {
    HELD.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default();
    Held(())
}

impl Held {
    /// What was told since.
    #[must_use]
    pub fn so_far(&self) -> Vec<String> {
        HELD.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let held = HELD.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.unwrap_or_default().iter().for_each(tell);
    }
}

/// Whether the reader of our output has gone, which is no problem at all.
#[must_use]
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json = cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(io::ErrorKind::BrokenPipe)
    })
}

/// The whole chain of causes on one line; of a cause with many lines (the verifier's log) the first.
#[must_use]
pub fn one_line(error: &anyhow::Error) -> String {
    let mut told: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text = text.split(" Verifier output:").next().unwrap_or(&text);
        let line = printable(text.lines().next().unwrap_or_default().trim());
        // Wrapped errors often repeat their source in their own text.
        if !told.iter().any(|earlier| earlier.contains(&line)) {
            told.push(line);
        }
    }
    told.join(": ")
}

/// clap's message without its usage block, on one line.
#[must_use]
pub fn usage_line(rendered: &str) -> String {
    let message = rendered.strip_prefix("error: ").unwrap_or(rendered);
    let parts: Vec<&str> = message
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    format!("{} (see --help)", printable(&parts.join(" ")))
}

/// Text from outside, without control characters: it goes to terminals.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_chain_is_one_line_without_repetition() {
        let error = anyhow!("no such file").context("cannot read x: no such file").context("starting");
        assert_eq!(one_line(&error), "starting: cannot read x: no such file");
        let verifier = anyhow!("the syscall failed. Verifier output: 0: R1=ctx()\n1: r2").context("cannot load");
        assert_eq!(one_line(&verifier), "cannot load: the syscall failed.");
    }

    #[test]
    fn a_usage_error_is_one_line() {
        let rendered = "error: invalid value 'x' for '--format <FORMAT>'\n  [possible values: table, jsonl]\n\n\
                        For more information, try '--help'.\n";
        assert_eq!(
            usage_line(rendered),
            "invalid value 'x' for '--format <FORMAT>' [possible values: table, jsonl] (see --help)"
        );
    }

    #[test]
    fn a_closed_pipe_is_recognised_wherever_it_comes_from() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_closed_pipe(&anyhow!(pipe()).context("writing")));
        assert!(!is_closed_pipe(&anyhow!("something else")));
    }
}
