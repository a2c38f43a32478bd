//! The side of the trace: counts what passes, and makes pictures of what is known.

use std::{
    collections::VecDeque,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use rustc_hash::FxHashMap;

use super::{
    desk::{self, Desk},
    player::{Due, Player},
    tables::{self, Names},
};
use crate::{
    config::Watch,
    core::{
        connection::{Closing, Connection},
        endpoint::Tuple,
        finding::{Failed, Finding},
        state::State as TcpState,
    },
    output::records::LogRecord,
    pipeline::{
        follow::{Known, Naming, View},
        held::Annotated,
    },
    problem::Held,
    recording::Metadata,
    screen::{
        About, Ask, Picture, State, View as Shown,
        history::{Arrivals, History},
        picture::{LOG_ROWS, Progress},
    },
    source::clock::thread_cpu,
    terminal::Terminal,
};

/// How often there is a picture of a live trace, and of a replay, which may be faster than life.
const LIVE_EVERY: Duration = Duration::from_secs(1);
const REPLAY_EVERY: Duration = Duration::from_millis(250);

/// Pictures cost a fiftieth of a core at most, those that keys ask for a quarter.
const SPARING: u32 = 50;
const SPARING_WHEN_ASKED: u32 = 4;

/// Inputs of a replay that does not wait between two looks at the clock.
const LOOK_EVERY: u32 = 256;

/// Makes pictures of a trace.
pub(super) struct WatchView<'a> {
    config: &'a Watch,
    about: About,
    held: &'a Held,
    desk: Arc<Desk>,
    screen: Option<JoinHandle<Result<()>>>,
    /// The beginning of all that is timed here.
    started: Instant,
    began_ns: Option<u64>,
    ask: Ask,
    /// The next picture is made then, or sooner for a key.
    due: Duration,
    due_when_asked: Duration,
    is_asked: bool,
    player: Option<Player>,
    at_end: bool,
    unlooked: u32,
    goes_back: bool,
    history: History,
    pub(super) arrivals: Arrivals,
    findings: Option<Arc<[Finding]>>,
    sampled_ns: u64,
    log: VecDeque<Annotated>,
    log_left_out: u64,
    pub(super) workloads: FxHashMap<u64, Names>,
    /// The end of the connection that somebody looks at.
    pub(super) ended: Option<Connection>,
}

impl<'a> WatchView<'a> {
    pub(super) fn new(config: &'a Watch, about: About, held: &'a Held) -> Self {
        Self {
            config,
            about,
            held,
            desk: Arc::default(),
            screen: None,
            started: Instant::now(),
            began_ns: None,
            ask: Ask::default(),
            due: Duration::ZERO,
            due_when_asked: Duration::ZERO,
            is_asked: true,
            player: None,
            at_end: false,
            unlooked: 0,
            goes_back: false,
            history: History::default(),
            arrivals: Arrivals::default(),
            findings: None,
            sampled_ns: 0,
            log: VecDeque::new(),
            log_left_out: 0,
            workloads: FxHashMap::default(),
            ended: None,
        }
    }

    /// Whether the recording is to be read again from its beginning.
    pub(super) fn goes_back(&mut self) -> bool {
        let goes_back = std::mem::take(&mut self.goes_back) && !self.desk.has_ended();
        if goes_back {
            (self.history, self.arrivals) = (History::default(), Arrivals::default());
            (self.findings, self.sampled_ns) = (None, 0);
            (self.log_left_out, self.at_end) = (0, false);
            self.log.clear();
            self.workloads.clear();
            self.ended = None;
        }
        goes_back
    }

    /// Ends the screen, if it does not end by itself.
    pub(super) fn close(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.desk.end();
        match self.screen.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(anyhow!("the screen has failed, please report it with the lines above")),
        }
    }

    /// The screen opens when there is something to show: an error before that is told on the terminal as it was.
    fn open(&mut self) -> Result<()> {
        if self.screen.is_some() {
            return Ok(());
        }
        let terminal = Terminal::open()?;
        let state = State::new(self.about.clone(), self.config.abilities, terminal.size()?);
        let desk = Arc::clone(&self.desk);
        let thread = thread::Builder::new().name("screen".to_owned());
        self.screen = Some(thread.spawn(move || {
            let result = desk::show(&desk, terminal, state);
            desk.end();
            result
        })?);
        Ok(())
    }

    /// Takes over what the screen wants; returns false when a replay has to begin anew for that.
    fn take_wishes(&mut self, now_ns: u64) -> bool {
        // A thread that has panicked ends nothing by itself.
        if self.screen.as_ref().is_some_and(JoinHandle::is_finished) {
            self.desk.end();
        }
        let Some((ask, orders)) = self.desk.wishes() else {
            return true;
        };
        let here = self.started.elapsed();
        self.is_asked = true;
        if ask.opened != self.ask.opened {
            self.ended = None;
        }
        self.ask = ask;
        let Some(player) = &mut self.player else {
            return true;
        };
        for order in orders {
            if !player.order(order, now_ns, here) {
                self.goes_back = true;
            }
        }
        !self.goes_back
    }

    /// Puts a picture on the desk when it is time for one and the last one has been taken.
    fn show(&mut self, now_ns: u64, known: &mut Known<'_>) {
        let here = self.started.elapsed();
        let is_due = here >= self.due || (self.is_asked && here >= self.due_when_asked);
        if !is_due || !self.desk.is_free() {
            return;
        }
        self.is_asked = false;
        let begun = thread_cpu();
        let picture = self.picture(now_ns, known);
        self.desk.put(picture);
        let took = thread_cpu().saturating_sub(begun);
        let every = if self.player.is_some() { REPLAY_EVERY } else { LIVE_EVERY };
        self.due = here + every.max(took * SPARING);
        self.due_when_asked = here + took * SPARING_WHEN_ASKED;
    }

    fn picture(&mut self, now_ns: u64, known: &mut Known<'_>) -> Picture {
        let began_ns = *self.began_ns.get_or_insert(now_ns);
        let ask = std::mem::take(&mut self.ask);
        let opened = ask.opened.and_then(|cookie| self.opened(cookie, now_ns, known));
        let (states, connections, per_port) = self.connections(&ask, now_ns, known);
        let listeners = self.listeners(&ask, &per_port, now_ns, known);
        self.history.at(now_ns).states = states;
        self.arrivals.tidy(now_ns);
        let picture = Picture {
            now_ns,
            began_ns,
            clock: known.naming.clock,
            loss: known.loss,
            let_go: known.tracker.counts().evicted,
            states,
            listening: listeners.all,
            history: self.history.seconds(),
            findings: self.findings.clone(),
            sampled_ns: self.sampled_ns,
            connections,
            destinations: (ask.view == Shown::Destinations).then(|| tables::destinations(&ask, now_ns, known)),
            listeners: (ask.view == Shown::Listeners).then_some(listeners),
            log: self.log.drain(..).map(|annotated| log_record(&annotated, known.naming)).collect(),
            log_left_out: std::mem::take(&mut self.log_left_out),
            opened,
            replay: self.player.map(|player| Progress {
                speed: player.speed(),
                paused: player.is_paused(),
                seeking: player.is_seeking() && !self.at_end,
                at_end: self.at_end,
            }),
            notes: self.held.so_far(),
        };
        self.ask = ask;
        picture
    }
}

fn log_record((transition, annotation): &Annotated, naming: &mut Naming) -> LogRecord {
    let cgroup = naming.cgroup(annotation.cgroup);
    LogRecord::new(transition, annotation, cgroup, naming.clock)
}

impl View for WatchView<'_> {
    fn begins(&mut self, metadata: &Metadata) -> Result<()> {
        self.began_ns = Some(metadata.started_ns);
        if let Some(recording) = self.about.recording.as_mut().filter(|recording| recording.is_pipe) {
            recording.began_ns = metadata.started_ns;
            (self.about.host, self.about.kernel) = (metadata.host.clone(), metadata.kernel.clone());
            self.desk.tell(self.about.clone());
        }
        if self.player.is_none() {
            self.player = Some(Player::new(metadata.started_ns, self.started.elapsed()));
        }
        Ok(())
    }

    fn transition(&mut self, annotated: &Annotated, _naming: &mut Naming) -> Result<()> {
        let (transition, annotation) = annotated;
        if let Some(player) = &mut self.player {
            player.stepped();
        }
        if self.log.len() >= LOG_ROWS {
            self.log.pop_front();
            self.log_left_out += 1;
        }
        self.log.push_back(*annotated);
        let was_opening = matches!(transition.old, TcpState::SYN_SENT | TcpState::SYN_RECV);
        if was_opening && transition.new == TcpState::ESTABLISHED {
            self.history.at(transition.mono_ns).opens += 1;
            if transition.old == TcpState::SYN_RECV {
                let Tuple { netns, local, .. } = annotation.tuple.unwrap_or(transition.tuple);
                self.arrivals.count(netns, local, transition.mono_ns);
            }
        }
        Ok(())
    }

    fn ended(&mut self, connection: &Connection, _naming: &mut Naming) -> Result<()> {
        let second = self.history.at(connection.ended_ns.unwrap_or_default());
        if Failed::of(connection).is_some() {
            second.failures += 1;
        } else {
            second.closes += 1;
        }
        second.resets += u32::from(connection.closing.is_some_and(Closing::is_reset));
        if self.ask.opened == Some(connection.socket.cookie) {
            self.ended = Some(connection.clone());
        }
        Ok(())
    }

    fn sampled(&mut self, known: &mut Known<'_>) -> Result<()> {
        self.findings = known.findings(&self.config.thresholds).map(Arc::from);
        self.sampled_ns = known.facts.map_or(0, |facts| facts.now_ns);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.open()
    }

    fn look(&mut self, known: &mut Known<'_>) -> Result<()> {
        self.take_wishes(known.now_ns);
        self.show(known.now_ns, known);
        Ok(())
    }

    fn keeps_time(&self) -> bool {
        self.about.recording.is_some()
    }

    fn before(&mut self, next_ns: Option<u64>, known: &mut Known<'_>) -> Result<()> {
        /// The longest that a key waits.
        const NAP: Duration = Duration::from_millis(20);
        self.open()?;
        loop {
            if let (Some(next_ns), Some(player)) = (next_ns, &self.player)
                && self.unlooked < LOOK_EVERY
                && player.rushes(next_ns)
            {
                self.unlooked += 1;
                return Ok(());
            }
            self.unlooked = 0;
            if self.goes_back || !self.take_wishes(known.now_ns) || self.desk.has_ended() {
                return Ok(());
            }
            let here = self.started.elapsed();
            let Some(player) = &mut self.player else {
                return Ok(());
            };
            let due = next_ns.map_or(Due::Never, |next_ns| player.due(next_ns, here));
            let now_ns = player.position_ns(next_ns.unwrap_or(known.now_ns), here).max(known.now_ns);
            self.at_end = next_ns.is_none();
            self.show(now_ns, known);
            match due {
                Due::Now => return Ok(()),
                Due::In(left) => thread::sleep(left.min(NAP)),
                Due::Never => thread::sleep(NAP),
            }
        }
    }

    fn folder(&self) -> Option<&Path> {
        // Where exports go.
        Some(Path::new("."))
    }

    fn is_done(&self) -> bool {
        self.desk.has_ended() || self.goes_back
    }

    fn wants_one_run(&self) -> bool {
        true
    }
}

impl Drop for WatchView<'_> {
    fn drop(&mut self) {
        // What failed has been told, or something else is being told already.
        let _ = self.end();
    }
}
