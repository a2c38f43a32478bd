//! What the trace and the screen hand each other: a picture one way, wishes the other. Neither waits for the other.

use std::{
    io::Write,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    output::file::{Contents, Output},
    screen::{
        About, Action, Ask, Picture, State,
        export::{Export, export},
        keys::Replay,
    },
    terminal::{Input, Terminal},
};

/// How long the screen waits for a key before it looks for a picture.
const KEYS_FOR: Duration = Duration::from_millis(50);

/// Keys that are taken in before the screen is drawn: whoever pastes something sees one result.
const KEYS_AT_ONCE: usize = 100;

/// Between the two threads.
#[derive(Debug, Default)]
pub(super) struct Desk {
    picture: Mutex<Option<Box<Picture>>>,
    /// What the recording turned out to be about.
    about: Mutex<Option<About>>,
    ask: Mutex<Ask>,
    replay: Mutex<Vec<Replay>>,
    /// There is something new to ask or to tell.
    has_wishes: AtomicBool,
    ended: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// Either side has come to its end.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether there is room for a picture.
    pub(super) fn is_free(&self) -> bool {
        lock(&self.picture).is_none()
    }

    pub(super) fn put(&self, picture: Picture) {
        *lock(&self.picture) = Some(Box::new(picture));
    }

    pub(super) fn tell(&self, about: About) {
        *lock(&self.about) = Some(about);
    }

    /// What is wished for since the last time; `None` when nothing has changed.
    pub(super) fn wishes(&self) -> Option<(Ask, Vec<Replay>)> {
        let has_wishes = self.has_wishes.load(Ordering::Relaxed) && self.has_wishes.swap(false, Ordering::Acquire);
        has_wishes.then(|| (lock(&self.ask).clone(), std::mem::take(&mut *lock(&self.replay))))
    }

    fn ask(&self, ask: Ask) {
        let mut known = lock(&self.ask);
        if *known != ask {
            *known = ask;
            self.has_wishes.store(true, Ordering::Release);
        }
    }

    fn order(&self, order: Replay) {
        lock(&self.replay).push(order);
        self.has_wishes.store(true, Ordering::Release);
    }
}

/// The screen's side: reads keys and draws, until somebody wants the end or the trace has come to it.
pub(super) fn show(desk: &Desk, mut terminal: Terminal, mut state: State) -> Result<()> {
    terminal.show(&state)?;
    while !desk.has_ended() {
        let mut changed = false;
        let mut within = KEYS_FOR;
        for _ in 0..KEYS_AT_ONCE {
            let Some(input) = terminal.next(within)? else {
                break;
            };
            changed = true;
            within = Duration::ZERO;
            match input {
                Input::Key(key) => {
                    let action = state.key(key);
                    act(action, desk, &mut terminal, &mut state)?;
                }
                Input::Resized(size) => state.resize(size),
                Input::Continued => state.resize(terminal.size()?),
                Input::End => desk.end(),
            }
            if desk.has_ended() {
                return Ok(());
            }
        }
        if let Some(about) = lock(&desk.about).take() {
            state.about = about;
        }
        if let Some(picture) = lock(&desk.picture).take() {
            state.take(*picture);
            changed = true;
        }
        desk.ask(state.ask());
        if changed {
            terminal.show(&state)?;
        }
    }
    Ok(())
}

fn act(action: Action, desk: &Desk, terminal: &mut Terminal, state: &mut State) -> Result<()> {
    match action {
        Action::Draw => {}
        Action::Quit => desk.end(),
        Action::Suspend => {
            terminal.stop()?;
            state.resize(terminal.size()?);
        }
        Action::Redraw => terminal.forget()?,
        Action::Mouse(capture) => terminal.capture_mouse(capture)?,
        Action::Replay(order) => desk.order(order),
        Action::Export(format) => {
            let written = export(state, format).map_err(anyhow::Error::from).and_then(write);
            state.message = Some(written.unwrap_or_else(|error| crate::problem::one_line(&error)));
        }
    }
    Ok(())
}

/// Into a new file where the program was started.
fn write(export: Export) -> Result<String> {
    let Export { name, ending, text, rows } = export;
    // Twice within a second, or while the screen stands still.
    let names = (1..).map(|number| match number {
        1 => format!("{name}.{ending}"),
        number => format!("{name}-{number}.{ending}"),
    });
    let name = names.into_iter().find(|name| !Path::new(name).exists()).unwrap_or_default();
    let mut output = Output::open(Some(name.as_ref()), Contents::Lines, false)?;
    output.write_all(&text).and_then(|()| output.flush()).context("cannot export")?;
    Ok(format!("{rows} row(s) written to {name}"))
}
