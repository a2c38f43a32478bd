//! `tracer watch`: a trace that somebody looks at.
//!
//! The trace has a thread of its own, which never waits for the terminal: about once a second, or when a key asks for
//! something else, it makes a picture, unless the one before has not been taken yet. The other thread reads keys and draws.
//!
//! - `desk`: what the two threads hand each other
//! - `view`: the side of the trace
//! - `tables`: the rows of its pictures
//! - `player`: the time of a replay
//! - `index`: a recording is read once before it is shown: for its end, and where findings come up

mod desk;
mod index;
mod player;
mod tables;
mod view;

use std::path::Path;

use anyhow::Result;

use self::view::WatchView;
use super::{
    commands::close,
    live,
    replay::{self, Replayed},
};
use crate::{
    config::Watch,
    problem,
    screen::{About, picture::Recording},
    source::host::Host,
};

/// `tracer watch`.
pub fn watch(config: &Watch) -> Result<()> {
    // From here on: what is told belongs on the screen, or after it.
    let held = problem::hold();
    let Replayed { followed, damage } = if config.trace.from.is_empty() {
        let Host { name, kernel } = Host::this()?;
        let about = About { host: name, kernel, filters: config.filtered.clone(), recording: None };
        let mut view = WatchView::new(config, about, &held);
        let followed = live::run(&config.trace, &mut view);
        view.close()?;
        Replayed { followed: followed?, damage: None }
    } else {
        let mut view = WatchView::new(config, recorded(config)?, &held);
        let replayed = loop {
            let replayed = replay::run(&config.trace, &mut view);
            if replayed.is_err() || !view.goes_back() {
                break replayed;
            }
        };
        view.close()?;
        replayed?
    };
    drop(held);
    close(followed.loss);
    replay::tell_damage(damage)
}

/// What is known of recordings before they are shown.
fn recorded(config: &Watch) -> Result<About> {
    let names: Vec<String> = config.trace.from.iter().map(|path| path.display().to_string()).collect();
    let name = problem::printable(&names.join(" "));
    if config.trace.from.iter().any(|path| path == Path::new("-")) {
        let recording = Recording { name: "standard input".to_owned(), is_pipe: true, ..Recording::default() };
        return Ok(About { filters: config.filtered.clone(), recording: Some(recording), ..About::default() });
    }
    index::read(config, name)
}
