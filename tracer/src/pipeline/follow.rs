//! A trace as it is followed: inputs go to the tracker, and what comes of them to a view. Where the inputs come from, the
//! kernel (`live`) or a recording (`replay`), makes no difference here.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use rustc_hash::FxHashMap;

use super::held::{Annotated, Gate};
use crate::{
    config::Filters,
    core::{
        connection::Connection,
        filter::{SocketFilter, Verdict},
        finding::{self, Facts, Finding, NamespaceCounters, Tally, Thresholds},
        input::{Counters, Input, Loss},
        state::State,
        tracker::{Annotation, Effects, Limits, Tracker},
        transition::Event,
    },
    output::report::LossRecord,
    recording::Metadata,
    source::{cgroups::Cgroups, clock::WallClock},
};

/// What a command does with a trace.
pub(super) trait View {
    /// A transition that passed the filters.
    fn transition(&mut self, _transition: &Annotated, _naming: &mut Naming) -> Result<()> {
        Ok(())
    }

    /// A connection that ended and passed the filters.
    fn ended(&mut self, _connection: &Connection, _naming: &mut Naming) -> Result<()> {
        Ok(())
    }

    /// An event as the tracker took it, and each one that it repaired, whatever the filters on owner and state say.
    fn heard(&mut self, _event: &Event, _annotation: &Annotation, _naming: &mut Naming) -> Result<()> {
        Ok(())
    }

    /// An input that is no event.
    fn input(&mut self, _input: &Input, _naming: &mut Naming) -> Result<()> {
        Ok(())
    }

    /// What comes now is of this run.
    fn begins(&mut self, _metadata: &Metadata) -> Result<()> {
        Ok(())
    }

    /// There is a new sample for the findings.
    fn sampled(&mut self, _known: &mut Known<'_>) -> Result<()> {
        Ok(())
    }

    /// Brings out what is buffered; called several times a second.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    /// Likewise for what is shown while the trace goes on; only live.
    fn look(&mut self, _known: &mut Known<'_>) -> Result<()> {
        Ok(())
    }

    /// Whether it shows recordings, in its own time.
    fn keeps_time(&self) -> bool {
        false
    }

    /// A recording goes on at this moment once this returns; `None` is its end. Only where the view keeps time.
    fn before(&mut self, _next_ns: Option<u64>, _known: &mut Known<'_>) -> Result<()> {
        Ok(())
    }

    /// Whether it has all that it wants.
    fn is_done(&self) -> bool {
        false
    }

    /// Whether it still has much to do with what it was given: what can wait had better do so.
    fn is_behind(&self) -> bool {
        false
    }

    /// Whether what it makes can be about one run only.
    fn wants_one_run(&self) -> bool {
        false
    }

    /// The folder in which it will make files while the trace runs.
    fn folder(&self) -> Option<&Path> {
        None
    }

    /// Whether it goes on in a place of its own from here, which has to begin with all that is known (the next file of a
    /// recording).
    fn begins_anew(&mut self) -> Result<bool> {
        Ok(false)
    }
}

/// Wall time and names of cgroups.
pub(super) struct Naming {
    /// Turns the events' time into wall time.
    pub(super) clock: WallClock,
    cgroups: Names,
}

enum Names {
    /// This host's.
    Live(Cgroups),
    /// Those that a recording has told so far.
    Recorded(FxHashMap<u64, Arc<str>>),
}

impl Naming {
    /// Of this host, now.
    pub(super) fn live() -> Self {
        Self { clock: WallClock::now(), cgroups: Names::Live(Cgroups::new()) }
    }

    /// Of a recording, which tells the names.
    pub(super) fn recorded(clock: WallClock) -> Self {
        Self { clock, cgroups: Names::Recorded(FxHashMap::default()) }
    }

    /// Time has passed: names may have changed.
    fn grow_old(&mut self) {
        if let Names::Live(cgroups) = &mut self.cgroups {
            cgroups.grow_old();
        }
    }

    /// The name of a cgroup.
    pub(super) fn cgroup(&mut self, id: u64) -> Option<Arc<str>> {
        match &mut self.cgroups {
            Names::Live(cgroups) => cgroups.name(id),
            Names::Recorded(paths) => paths.get(&id).cloned(),
        }
    }
}

/// What is known at a moment, for a view that shows it while the trace goes on.
pub(super) struct Known<'a> {
    pub(super) tracker: &'a Tracker,
    pub(super) filters: &'a Filters,
    pub(super) naming: &'a mut Naming,
    pub(super) loss: LossRecord,
    /// The latest time that was heard of, CLOCK_MONOTONIC ns.
    pub(super) now_ns: u64,
    pub(super) facts: Option<&'a Facts>,
    tally: Option<&'a Tally>,
    began: Option<&'a Counters>,
}

impl Known<'_> {
    /// Judges by the last sample; `None` when there is none.
    pub(super) fn findings(&self, thresholds: &Thresholds) -> Option<Vec<Finding>> {
        let (mut facts, tally) = (self.facts?.clone(), self.tally?);
        set_window(&mut facts, self.began);
        Some(findings(self.tracker, tally, &facts, self.filters, thresholds))
    }
}

/// A trace under way.
pub(super) struct Follow<'a> {
    pub(super) filters: Filters,
    pub(super) view: &'a mut dyn View,
    pub(super) naming: Naming,
    pub(super) tracker: Tracker,
    /// What is counted for the findings; only where they are wanted.
    pub(super) tally: Option<Tally>,
    effects: Effects,
    gate: Gate,
    loss: Loss,
    /// What had happened before the beginning, where that is in the middle of a run.
    loss_before: Loss,
    /// Transitions that came in.
    delivered: u64,
    /// What was lost of the runs before this one.
    earlier: LossRecord,
    began: Option<Counters>,
    facts: Option<Box<Facts>>,
    /// The latest time that was heard of, CLOCK_MONOTONIC ns.
    pub(super) now_ns: u64,
}

/// A trace that has come to its end, with everything that was learned.
pub(super) struct Followed {
    /// The connections.
    pub(super) tracker: Tracker,
    /// What happened to the events.
    pub(super) loss: LossRecord,
    /// The end, CLOCK_MONOTONIC ns.
    pub(super) ended_ns: u64,
    /// Times and names.
    pub(super) naming: Naming,
    /// How long was watched before the facts were sampled, ns.
    pub(super) window_ns: u64,
    tally: Tally,
    facts: Option<Box<Facts>>,
}

impl<'a> Follow<'a> {
    pub(super) fn new(filters: Filters, limits: Limits, naming: Naming, view: &'a mut dyn View) -> Self {
        Self {
            gate: Gate::new(filters.socket.clone(), SocketFilter::default()),
            filters,
            view,
            naming,
            tracker: Tracker::new(limits),
            tally: None,
            effects: Effects::default(),
            loss: Loss::default(),
            loss_before: Loss::default(),
            delivered: 0,
            earlier: LossRecord::default(),
            began: None,
            facts: None,
            now_ns: 0,
        }
    }

    /// What comes now is of another run, which was filtered by this: nothing that was known before is of any use.
    pub(super) fn begin_run(&mut self, clock: WallClock, recorded: SocketFilter) -> Result<()> {
        self.hand_out_closed()?;
        self.earlier = self.losses();
        self.tracker = Tracker::new(self.tracker.limits());
        self.gate = Gate::new(self.filters.socket.clone(), recorded);
        self.naming = Naming::recorded(clock);
        if !self.filters.recorded_cgroups.is_empty() {
            // An id that no cgroup has, until the recording tells which they are.
            self.filters.owner.cgroups = vec![u64::MAX];
        }
        (self.loss, self.loss_before, self.delivered) = (Loss::default(), Loss::default(), 0);
        (self.began, self.facts, self.now_ns) = (None, None, 0);
        Ok(())
    }

    /// So much had happened to events before those that come now.
    pub(super) fn lost_before(&mut self, loss: Loss) {
        self.loss_before = loss;
    }

    /// Of this run and those before it.
    fn losses(&self) -> LossRecord {
        let (now, before) = (self.loss, self.loss_before);
        let dropped = now.dropped.saturating_sub(before.dropped);
        LossRecord {
            seen: self.earlier.seen.saturating_add(self.seen(dropped)),
            dropped: self.earlier.dropped.saturating_add(dropped),
            missed: self.earlier.missed.saturating_add(now.missed.saturating_sub(before.missed)),
            repaired: self.earlier.repaired.saturating_add(self.tracker.counts().repaired),
        }
    }

    /// A recording tells the name of a cgroup.
    pub(super) fn learn_cgroup(&mut self, id: u64, path: Arc<str>) {
        let Names::Recorded(paths) = &mut self.naming.cgroups else {
            return;
        };
        let wanted = |below: &PathBuf| Path::new(path.as_ref()).starts_with(below);
        // Each file of a rotated recording tells it again.
        let is_new = paths.insert(id, Arc::clone(&path)).is_none_or(|before| before != path);
        if is_new && self.filters.recorded_cgroups.iter().any(wanted) {
            self.filters.owner.cgroups.push(id);
        }
    }

    /// Takes an input in.
    pub(super) fn input(&mut self, input: Input) -> Result<()> {
        if let Input::Event(event) = &input {
            return self.event(event);
        }
        let input = self.wanted_part(input);
        let is_sample = matches!(input, Input::Facts(_));
        self.view.input(&input, &mut self.naming)?;
        match input {
            Input::Event(_) => {}
            Input::Now(now_ns) => {
                self.now_ns = self.now_ns.max(now_ns);
                self.naming.grow_old();
                self.tracker.advance(now_ns, &mut self.effects);
            }
            Input::Forget(socket) => {
                self.tracker.forget_socket(socket);
            }
            Input::DumpBegins(kind) => self.tracker.snapshot_begins(kind),
            Input::DumpFailed => self.tracker.snapshot_failed(),
            Input::DumpPart(part) => self.tracker.merge_part(&part, &mut self.effects),
            Input::Dump(rest) => self.tracker.merge(&rest, &mut self.effects),
            Input::MiniSockets(snapshot) => self.tracker.merge_minis(&snapshot),
            Input::Loss(loss) => self.loss = loss,
            Input::Counters(counters) => {
                self.began.get_or_insert(counters);
            }
            Input::Facts(facts) => {
                self.now_ns = self.now_ns.max(facts.now_ns);
                self.facts = Some(facts);
            }
        }
        self.pass_on_repaired()?;
        self.pass_on_ended()?;
        if is_sample { self.show_known(|view, known| view.sampled(known)) } else { Ok(()) }
    }

    /// Lets the view look at what is known.
    pub(super) fn look(&mut self) -> Result<()> {
        self.show_known(|view, known| view.look(known))
    }

    /// Lets a view that keeps time wait for the moment when a recording goes on.
    pub(super) fn before(&mut self, next_ns: Option<u64>) -> Result<()> {
        self.show_known(|view, known| view.before(next_ns, known))
    }

    fn show_known(&mut self, show: impl FnOnce(&mut dyn View, &mut Known<'_>) -> Result<()>) -> Result<()> {
        let mut known = Known {
            loss: self.losses(),
            tracker: &self.tracker,
            filters: &self.filters,
            naming: &mut self.naming,
            now_ns: self.now_ns,
            facts: self.facts.as_deref(),
            tally: self.tally.as_ref(),
            began: self.began.as_ref(),
        };
        show(self.view, &mut known)
    }

    /// Takes an event in.
    pub(super) fn event(&mut self, event: &Event) -> Result<()> {
        self.now_ns = self.now_ns.max(event.mono_ns());
        self.delivered += u64::from(matches!(event, Event::Transition(_)));
        if let Event::Transition(transition) = event
            && self.gate.rules_out(transition)
        {
            // Its first events may have passed while a port was still 0; the kernel leaves the rest out.
            if self.tracker.forget_socket(transition.socket) {
                self.view.input(&Input::Forget(transition.socket), &mut self.naming)?;
            }
            return Ok(());
        }
        let annotation = self.tracker.event(event, &mut self.effects);
        if !self.effects.repaired.is_empty() {
            self.pass_on_repaired()?;
        }
        self.show(event, &annotation)?;
        self.pass_on_ended()
    }

    /// Hands out every connection that has closed, without waiting for what may follow.
    pub(super) fn hand_out_closed(&mut self) -> Result<()> {
        self.tracker.flush(&mut self.effects);
        self.pass_on_repaired()?;
        self.pass_on_ended()
    }

    /// The end.
    pub(super) fn finish(mut self) -> Result<Followed> {
        self.hand_out_closed()?;
        self.view.flush()?;
        let mut facts = self.facts.take();
        if let Some(facts) = &mut facts {
            set_window(facts, self.began.as_ref());
        }
        Ok(Followed {
            loss: self.losses(),
            tracker: self.tracker,
            ended_ns: self.now_ns,
            naming: self.naming,
            window_ns: facts.as_ref().map_or(0, |facts| facts.window_ns),
            tally: self.tally.unwrap_or_default(),
            facts,
        })
    }

    /// What the programs said. A recording may begin or end in the middle of a run: there it is what is in it.
    fn seen(&self, dropped: u64) -> u64 {
        match self.naming.cgroups {
            Names::Live(_) => self.loss.seen,
            Names::Recorded(_) => self.delivered.saturating_add(dropped),
        }
    }

    fn show(&mut self, event: &Event, annotation: &Annotation) -> Result<()> {
        self.view.heard(event, annotation, &mut self.naming)?;
        let Event::Transition(transition) = event else {
            return Ok(());
        };
        let (view, filters, naming) = (&mut self.view, &self.filters, &mut self.naming);
        let mut result = Ok(());
        self.gate.pass(transition, annotation, &mut |annotated| {
            if result.is_ok() && !view.is_done() && wanted_transition(filters, annotated) {
                result = view.transition(annotated, naming);
            }
        });
        result
    }

    fn pass_on_repaired(&mut self) -> Result<()> {
        for transition in std::mem::take(&mut self.effects.repaired) {
            let annotation = self.tracker.annotation(transition.socket);
            self.show(&Event::Transition(transition), &annotation)?;
        }
        Ok(())
    }

    fn pass_on_ended(&mut self) -> Result<()> {
        for connection in self.effects.ended.drain(..) {
            if wanted_connection(&self.filters, &connection) && !self.view.is_done() {
                if let Some(tally) = &mut self.tally {
                    tally.count(&connection);
                }
                self.view.ended(&connection, &mut self.naming)?;
            }
        }
        Ok(())
    }

    /// What the filters leave of an input. Listeners stay in dumps: they tell who serves a port.
    fn wanted_part(&self, mut input: Input) -> Input {
        let (filter, owner) = (&self.filters.socket, &self.filters.owner);
        match &mut input {
            Input::DumpPart(snapshot) | Input::Dump(snapshot) => snapshot.sockets.retain(|socket| {
                socket.state == State::LISTEN || filter.verdict(&socket.tuple, socket.state) != Verdict::No
            }),
            Input::MiniSockets(snapshot) => {
                snapshot.sockets.retain(|socket| filter.verdict(&socket.tuple, socket.state) != Verdict::No);
            }
            Input::Facts(facts) => {
                facts.sockets.retain(|socket| {
                    filter.verdict(&socket.tuple, socket.state) != Verdict::No && owner.matches_cgroup(socket.cgroup)
                });
                facts.closed.retain(|socket| filter.verdict(&socket.tuple, State::CLOSE) == Verdict::Yes);
            }
            _ => {}
        }
        input
    }
}

impl Followed {
    /// Judges by the last sample; `None` when there is none.
    pub(super) fn findings(&self, filters: &Filters, thresholds: &Thresholds) -> Option<Vec<Finding>> {
        let facts = self.facts.as_ref()?;
        Some(findings(&self.tracker, &self.tally, facts, filters, thresholds))
    }
}

/// The window that a sample is judged by: since the counters at the beginning.
fn set_window(facts: &mut Facts, began: Option<&Counters>) {
    facts.window_ns = began.map_or(0, |began| facts.now_ns.saturating_sub(began.now_ns));
    for (netns, namespace) in &mut facts.namespaces {
        // Of a namespace that came later everything counts; without a window nothing has moved.
        namespace.counters = began.map_or_else(NamespaceCounters::default, |began| {
            namespace.counters.since(began.namespaces.get(netns).copied().unwrap_or_default())
        });
    }
}

fn findings(
    tracker: &Tracker,
    tally: &Tally,
    facts: &Facts,
    filters: &Filters,
    thresholds: &Thresholds,
) -> Vec<Finding> {
    let mut findings = finding::detect(tracker, tally, facts, thresholds);
    findings.retain(|finding| filters.owner.matches_process(finding.process.as_ref()));
    findings
}

fn wanted_transition(filters: &Filters, (transition, annotation): &Annotated) -> bool {
    let states = &filters.states;
    (states.is_empty() || states.contains(&transition.old) || states.contains(&transition.new))
        && (filters.owner.is_empty() || filters.owner.matches(annotation.process.as_ref(), annotation.cgroup))
}

/// Whether a connection passes the filters.
pub(super) fn wanted_connection(filters: &Filters, connection: &Connection) -> bool {
    let state = if connection.ended_ns.is_some() { State::CLOSE } else { State::ESTABLISHED };
    filters.socket.verdict(&connection.tuple, state) == Verdict::Yes
        && (filters.states.is_empty() || filters.states.iter().any(|state| connection.was_in(*state)))
        && filters.owner.matches(connection.process.as_ref(), connection.cgroup)
}
