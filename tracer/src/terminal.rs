//! The terminal of a screen: raw mode, the alternate screen, keys, the mouse wheel, and giving all of it back, whatever
//! happens: an end in order, a panic of any thread, a signal.

use std::{
    io::{self, BufWriter, Stdout, Write},
    panic,
    sync::{
        Arc, Mutex, MutexGuard, Once, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use ratatui::{
    Terminal as Drawing,
    backend::CrosstermBackend,
    crossterm::{
        cursor::{Hide, Show},
        event::{
            self, DisableMouseCapture, EnableMouseCapture, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers,
            MouseEventKind,
        },
        execute, queue,
        terminal::{
            BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
            disable_raw_mode, enable_raw_mode,
        },
    },
    layout::Rect,
};
use signal_hook::{
    consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTSTP},
    flag,
    low_level::emulate_default_handler,
};

use crate::screen::{Key, State, draw::draw};

/// Whether the terminal is a screen now. Whoever writes to it or gives it back holds this.
static IS_SCREEN: Mutex<bool> = Mutex::new(false);

/// How long a panic waits for whoever is drawing; it may be the one who panics.
const PATIENCE: Duration = Duration::from_millis(100);

/// What somebody, or the system, did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Pressed a key or turned the wheel.
    Key(Key),
    /// Made the terminal as large as this.
    Resized((u16, u16)),
    /// Stopped the program and let it go on: the terminal may show anything.
    Continued,
    /// Wants the end (SIGINT, SIGTERM), or is gone (SIGHUP).
    End,
}

/// The terminal as a screen. It is given back when this is dropped.
pub struct Terminal {
    drawing: Drawing<CrosstermBackend<BufWriter<Stdout>>>,
    keys: Receiver<io::Result<Input>>,
    ends: Arc<AtomicBool>,
    stops: Arc<AtomicBool>,
    continues: Arc<AtomicBool>,
}

impl Terminal {
    /// Makes a screen of the terminal.
    pub fn open() -> Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                give_back(&mut patiently());
                before(info);
            }));
        });
        let flagged = |signals: &[i32]| -> io::Result<Arc<AtomicBool>> {
            let flag = Arc::default();
            for signal in signals {
                flag::register(*signal, Arc::clone(&flag))?;
            }
            Ok(flag)
        };
        let cannot = "cannot catch signals";
        let ends = flagged(&[SIGINT, SIGTERM, SIGHUP]).context(cannot)?;
        let stops = flagged(&[SIGTSTP]).context(cannot)?;
        let continues = flagged(&[SIGCONT]).context(cannot)?;
        let drawing = Drawing::new(CrosstermBackend::new(BufWriter::new(io::stdout())));
        let drawing = drawing.context("cannot tell the size of the terminal")?;
        let keys = take().context("cannot make a screen of the terminal").and_then(|()| read_keys());
        let keys = keys.inspect_err(|_| give_back(&mut lock()))?;
        Ok(Self { drawing, keys, ends, stops, continues })
    }

    /// Columns and lines.
    pub fn size(&self) -> Result<(u16, u16)> {
        let size = self.drawing.size().context("cannot tell the size of the terminal")?;
        Ok((size.width, size.height))
    }

    /// Shows a state.
    pub fn show(&mut self, state: &State) -> Result<()> {
        let is_screen = lock();
        // After a panic it is none any more.
        if !*is_screen {
            return Ok(());
        }
        let said = "cannot draw on the terminal";
        queue!(self.drawing.backend_mut(), BeginSynchronizedUpdate).context(said)?;
        self.drawing.draw(|frame| draw(state, frame.buffer_mut())).context(said)?;
        execute!(self.drawing.backend_mut(), EndSynchronizedUpdate).context(said)
    }

    /// Forgets what the terminal shows: the next state is drawn in whole.
    pub fn forget(&mut self) -> Result<()> {
        // Not `clear`: that asks the terminal where its cursor is, and the answer would come among the keys.
        let (width, height) = self.size()?;
        self.drawing.resize(Rect::new(0, 0, width, height)).context("cannot clear the terminal")
    }

    /// Waits so long for something to happen.
    pub fn next(&mut self, within: Duration) -> Result<Option<Input>> {
        let input = match self.keys.recv_timeout(within) {
            Ok(input) => Some(input.context("cannot read keys from the terminal")?),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Input::End),
        };
        if self.ends.swap(false, Ordering::Relaxed) {
            return Ok(Some(Input::End));
        }
        if self.stops.swap(false, Ordering::Relaxed) {
            self.stop()?;
            return Ok(Some(Input::Continued));
        }
        if self.continues.swap(false, Ordering::Relaxed) {
            // SIGSTOP gives no time to give the terminal back, and a shell has used it since.
            self.take_again()?;
            return Ok(Some(Input::Continued));
        }
        Ok(input)
    }

    /// Gives the terminal back and stops, as Ctrl-Z does; returns when the program goes on.
    pub fn stop(&mut self) -> Result<()> {
        give_back(&mut lock());
        emulate_default_handler(SIGTSTP).context("cannot stop")?;
        self.take_again()?;
        self.continues.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn take_again(&mut self) -> Result<()> {
        give_back(&mut lock());
        take().context("cannot make a screen of the terminal again")?;
        self.forget()
    }

    /// Takes the mouse, or leaves it to the terminal.
    pub fn capture_mouse(&mut self, capture: bool) -> Result<()> {
        let to = self.drawing.backend_mut();
        let done = if capture { execute!(to, EnableMouseCapture) } else { execute!(to, DisableMouseCapture) };
        done.context("cannot switch the mouse")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back(&mut lock());
    }
}

fn lock() -> MutexGuard<'static, bool> {
    IS_SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lock, or none when whoever has it does not let it go.
fn patiently() -> Option<MutexGuard<'static, bool>> {
    let until = Instant::now() + PATIENCE;
    loop {
        match IS_SCREEN.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => return None,
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn take() -> io::Result<()> {
    let mut is_screen = lock();
    enable_raw_mode()?;
    *is_screen = true;
    execute!(io::stdout(), EnterAlternateScreen, EnableMouseCapture, Hide)
}

/// Makes the terminal what it was. A terminal that is gone needs nothing any more.
fn give_back(is_screen: &mut impl IsScreen) {
    if is_screen.end() {
        let mut stdout = io::stdout();
        let _ = execute!(stdout, EndSynchronizedUpdate, DisableMouseCapture, LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
        let _ = stdout.flush();
    }
}

/// The lock, where it could be had.
trait IsScreen {
    /// It is none from now on; returns whether it was one.
    fn end(&mut self) -> bool;
}

impl IsScreen for MutexGuard<'static, bool> {
    fn end(&mut self) -> bool {
        std::mem::take(&mut **self)
    }
}

impl IsScreen for Option<MutexGuard<'static, bool>> {
    fn end(&mut self) -> bool {
        self.as_mut().is_none_or(IsScreen::end)
    }
}

/// Reads keys on a thread of its own, which nobody waits for: in the middle of a sequence, or when the terminal is gone,
/// reading does not come back.
fn read_keys() -> Result<Receiver<io::Result<Input>>> {
    let (sender, keys) = channel();
    let read = move || {
        loop {
            let read = event::read();
            let failed = read.is_err();
            let Some(input) = read.map(input).transpose() else {
                continue;
            };
            if sender.send(input).is_err() || failed {
                return;
            }
        }
    };
    thread::Builder::new().name("keys".to_owned()).spawn(read).context("cannot start a thread that reads keys")?;
    Ok(keys)
}

fn input(event: Event) -> Option<Input> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => key_of(key).map(Input::Key),
        Event::Mouse(mouse) => match mouse.kind {
            MouseEventKind::ScrollUp => Some(Input::Key(Key::WheelUp)),
            MouseEventKind::ScrollDown => Some(Input::Key(Key::WheelDown)),
            _ => None,
        },
        Event::Resize(width, height) => Some(Input::Resized((width, height))),
        _ => None,
    }
}

fn key_of(key: KeyEvent) -> Option<Key> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        KeyCode::Char(c) if control => Key::Ctrl(c.to_ascii_lowercase()),
        // What a terminal sends for Alt and a key is no text.
        KeyCode::Char(_) if key.modifiers.contains(KeyModifiers::ALT) => return None,
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::F(number) => Key::Function(number),
        _ => return None,
    })
}
