//! The live trace: kernel → tracker → a view.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustc_hash::FxHashSet;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until},
};

use super::held::Annotated;
use crate::{
    config::{Filters, Trace},
    core::{
        connection::Connection,
        filter::{SocketFilter, Verdict},
        snapshot::Snapshot,
        state::State,
        tracker::{Effects, Limits, MergeKind, Tracker},
        transition::Event,
    },
    output::report::LossRecord,
    pipeline::held::Gate,
    problem::{one_line, tell},
    source::{
        clock::monotonic_ns,
        kernel::{self, Kernel, Loss, Options, VMLINUX_BTF},
        netns::{self, Namespace},
        owners::Owners,
        sock_diag::{self, Wanted},
        sysctl,
    },
};

/// How often the ring buffer is drained when nothing asks for it sooner: also the longest that a line is late.
const DRAIN_EVERY: Duration = Duration::from_millis(50);

/// How often the loss counters are looked at; after a loss the picture is right again one snapshot later.
const CHECK_LOSS_EVERY: Duration = Duration::from_millis(500);

/// How often the number of mini-sockets is compared with the kernel's.
const CHECK_MINIS_EVERY: Duration = Duration::from_secs(5);

/// How far the two may be apart: mini-sockets end within the kernel's timer granularity, not exactly.
const MINIS_TOLERANCE: u64 = 64;

/// Events that are taken from the ring buffer before signals and timers get their turn.
const BATCH: usize = 65_536;

/// What a command does with a trace.
pub(super) trait View {
    /// A transition that passed the filters.
    fn transition(&mut self, transition: &Annotated) -> Result<()>;
    /// A connection that ended and passed the filters.
    fn ended(&mut self, connection: &Connection) -> Result<()>;
    /// Brings out what is buffered; called several times a second.
    fn flush(&mut self) -> Result<()>;
    /// Whether it has all that it wants.
    fn is_done(&self) -> bool;
}

/// A trace that has come to its end, with everything that was learned.
pub(super) struct Finished {
    /// The connections.
    pub(super) tracker: Tracker,
    /// Inodes of sockets that somebody held at the beginning and that no list had then.
    pub(super) unlisted: FxHashSet<u64>,
    /// The namespaces that were traced.
    pub(super) namespaces: Vec<Namespace>,
    /// What happened to the events.
    pub(super) loss: LossRecord,
    /// How long was watched, ns.
    pub(super) window_ns: u64,
}

/// Runs a trace until its time is over, the view has enough, or SIGINT or SIGTERM come.
pub(super) fn run(trace: &Trace, view: &mut dyn View) -> Result<Finished> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let result = runtime.block_on(Live::new(trace, view).run());
    // A dump that is under way on another thread is of no use any more.
    runtime.shutdown_background();
    result
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The namespaces to look into: all, or those that are asked for.
pub(super) fn namespaces(wanted: &[u32]) -> Result<Vec<Namespace>> {
    let mut namespaces = netns::all()?;
    namespaces.retain(|namespace| wanted.is_empty() || wanted.contains(&namespace.inum));
    Ok(namespaces)
}

fn wanted_transition(filters: &Filters, (transition, annotation): &Annotated) -> bool {
    let states = &filters.states;
    (states.is_empty() || states.contains(&transition.old) || states.contains(&transition.new))
        && (filters.owner.is_empty() || filters.owner.matches(annotation.process.as_ref(), annotation.cgroup))
}

pub(super) fn wanted_connection(filters: &Filters, connection: &Connection) -> bool {
    let state = if connection.ended_ns.is_some() { State::CLOSE } else { State::ESTABLISHED };
    filters.socket.verdict(&connection.tuple, state) == Verdict::Yes
        && (filters.states.is_empty() || filters.states.iter().any(|state| connection.was_in(*state)))
        && filters.owner.matches(connection.process.as_ref(), connection.cgroup)
}

/// A dump under way on another thread.
type Dump = JoinHandle<Result<(Snapshot, Owners)>>;

struct Live<'a> {
    trace: &'a Trace,
    view: &'a mut dyn View,
    tracker: Tracker,
    effects: Effects,
    gate: Gate,
    started_ns: u64,
    last_loss: Loss,
    evicted_told: bool,
    snapshot: Option<(MergeKind, Dump)>,
    minis: Option<JoinHandle<Result<Snapshot>>>,
    unlisted: FxHashSet<u64>,
    /// Another snapshot is needed after the one under way.
    resync_wanted: bool,
}

impl<'a> Live<'a> {
    fn new(trace: &'a Trace, view: &'a mut dyn View) -> Self {
        let limits = Limits { max_connections: trace.max_connections, fin_timeout_ns: sysctl::fin_timeout_ns() };
        Self {
            trace,
            view,
            tracker: Tracker::new(limits),
            effects: Effects::default(),
            gate: Gate::new(trace.filters.socket.clone()),
            started_ns: 0,
            last_loss: Loss::default(),
            evicted_told: false,
            snapshot: None,
            minis: None,
            unlisted: FxHashSet::default(),
            resync_wanted: false,
        }
    }

    async fn run(mut self) -> Result<Finished> {
        let options = Options {
            buffer_bytes: self.trace.buffer_bytes,
            filter: self.trace.filters.socket.clone(),
            attachment: self.trace.attachment,
        };
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        let mut kernel = Kernel::attach(&options)?;
        if !kernel.has_details() && !self.trace.filters.owner.cgroups.is_empty() {
            bail!("--cgroup needs the kernel's type information ({VMLINUX_BTF}), which is not there");
        }
        for note in kernel.notes() {
            tell(note);
        }
        self.started_ns = monotonic_ns();
        self.begin_snapshot(MergeKind::StartUp);
        // A duration that no clock can add is none at all.
        let until = self.trace.duration.and_then(|duration| Instant::now().checked_add(duration));
        let mut drain = ticks(DRAIN_EVERY);
        let mut check_loss = ticks(CHECK_LOSS_EVERY);
        let mut check_minis = ticks(CHECK_MINIS_EVERY);
        self.view.flush()?;
        while !self.view.is_done() {
            tokio::select! {
                biased;
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => break,
                _ = check_loss.tick() => self.check_loss(&kernel)?,
                _ = check_minis.tick() => self.check_minis(),
                _ = drain.tick() => self.drain(&mut kernel).await?,
                result = kernel.filling() => {
                    result.context("cannot wait for the ring buffer")?;
                    self.drain(&mut kernel).await?;
                }
            }
        }
        self.finish(kernel).await
    }

    /// Takes what is in the ring buffer, then whatever else has become ready.
    async fn drain(&mut self, kernel: &mut Kernel) -> Result<()> {
        let taken = self.take_batch(kernel, BATCH)?;
        if self.snapshot.as_ref().is_some_and(|(_, dump)| dump.is_finished()) {
            self.merge_snapshot(kernel).await?;
        }
        if self.minis.as_ref().is_some_and(JoinHandle::is_finished) {
            self.merge_minis().await;
        }
        if taken < BATCH {
            // Only a buffer that was empty says that nothing of the time before now is still to come.
            self.tracker.advance(monotonic_ns(), &mut self.effects);
            self.pass_on_ended()?;
        }
        self.view.flush()
    }

    /// Takes up to `limit` events; returns how many there were.
    fn take_batch(&mut self, kernel: &mut Kernel, limit: usize) -> Result<usize> {
        let mut result = Ok(());
        let taken = kernel.drain(limit, |event| {
            if result.is_ok() {
                result = self.take(&event);
            }
        });
        result.map(|()| taken)
    }

    /// Takes all that is in the ring buffer by now; more may come in meanwhile, but no more than it holds is older.
    fn take_all(&mut self, kernel: &mut Kernel) -> Result<()> {
        let mut left = kernel::records_in(self.trace.buffer_bytes) as usize;
        while left > 0 {
            let taken = self.take_batch(kernel, left.min(BATCH))?;
            if taken == 0 {
                break;
            }
            left -= taken;
        }
        Ok(())
    }

    fn take(&mut self, event: &Event) -> Result<()> {
        if let Event::Transition(transition) = event
            && self.gate.rules_out(transition)
        {
            // Its first events may have passed while a port was still 0; the kernel leaves the rest out.
            self.tracker.forget_socket(transition.socket);
            return Ok(());
        }
        let annotation = self.tracker.event(event, &mut self.effects);
        if !self.effects.repaired.is_empty() {
            self.pass_on_repaired()?;
        }
        if let Event::Transition(transition) = event {
            self.show(&(*transition, annotation))?;
        }
        self.pass_on_ended()
    }

    fn show(&mut self, (transition, annotation): &Annotated) -> Result<()> {
        let (view, filters) = (&mut self.view, &self.trace.filters);
        let mut result = Ok(());
        self.gate.pass(transition, annotation, &mut |annotated| {
            if result.is_ok() && !view.is_done() && wanted_transition(filters, annotated) {
                result = view.transition(annotated);
            }
        });
        result
    }

    fn pass_on_repaired(&mut self) -> Result<()> {
        for transition in std::mem::take(&mut self.effects.repaired) {
            let annotation = self.tracker.annotation(transition.socket);
            self.show(&(transition, annotation))?;
        }
        Ok(())
    }

    fn pass_on_ended(&mut self) -> Result<()> {
        for connection in self.effects.ended.drain(..) {
            if wanted_connection(&self.trace.filters, &connection) && !self.view.is_done() {
                self.view.ended(&connection)?;
            }
        }
        Ok(())
    }

    /// Dumps all sockets on another thread, so that the ring buffer is drained meanwhile.
    fn begin_snapshot(&mut self, kind: MergeKind) {
        self.tracker.snapshot_begins();
        let wanted_netns = self.trace.filters.socket.netns.clone();
        let dump = tokio::task::spawn_blocking(move || {
            let snapshot = sock_diag::dump(&namespaces(&wanted_netns)?, Wanted::ALL)?;
            // Later on events tell who holds what is new.
            let owners = if kind == MergeKind::StartUp { Owners::scan() } else { Owners::default() };
            Ok((snapshot, owners))
        });
        self.snapshot = Some((kind, dump));
    }

    async fn merge_snapshot(&mut self, kernel: &mut Kernel) -> Result<()> {
        let Some((kind, dump)) = self.snapshot.take() else {
            return Ok(());
        };
        match dump.await.context("the snapshot's thread failed").flatten() {
            Ok((mut snapshot, owners)) => {
                // What happened before the dump's end is in the buffer by now, and has to be known first.
                self.take_all(kernel)?;
                if kind == MergeKind::StartUp {
                    self.unlisted = owners.unlisted(&snapshot.inodes());
                }
                self.keep_wanted(&mut snapshot);
                let holder = |inode| owners.process_of(inode);
                self.tracker.merge(&snapshot, kind, &holder, &mut self.effects);
                self.pass_on_repaired()?;
            }
            Err(error) => {
                self.tracker.snapshot_failed();
                tell(format_args!("{}: connections that were there before are not known", one_line(&error)));
            }
        }
        if std::mem::take(&mut self.resync_wanted) {
            self.begin_snapshot(MergeKind::Resync);
        }
        Ok(())
    }

    /// Leaves out what the filters rule out; listeners stay, they tell who serves a port.
    fn keep_wanted(&self, snapshot: &mut Snapshot) {
        let filter = &self.trace.filters.socket;
        snapshot.sockets.retain(|socket| {
            socket.state == State::LISTEN || filter.verdict(&socket.tuple, socket.state) != Verdict::No
        });
    }

    fn check_loss(&mut self, kernel: &Kernel) -> Result<()> {
        if self.lost_something(kernel)? {
            if self.snapshot.is_some() {
                self.resync_wanted = true;
            } else {
                self.begin_snapshot(MergeKind::Resync);
            }
        }
        let evicted = self.tracker.counts().evicted;
        if evicted > 0 && !self.evicted_told {
            self.evicted_told = true;
            tell(format_args!(
                "more than {} connections: some are let go (--max-connections)",
                self.trace.max_connections
            ));
        }
        Ok(())
    }

    /// Whether events were lost since the last look; what was dropped is told at once.
    fn lost_something(&mut self, kernel: &Kernel) -> Result<bool> {
        let loss = kernel.loss()?;
        let dropped = loss.dropped - self.last_loss.dropped;
        if dropped > 0 {
            tell(format_args!("{dropped} transitions dropped, the ring buffer was full: try a larger --buffer"));
        }
        let lost = dropped > 0 || loss.missed != self.last_loss.missed;
        self.last_loss = loss;
        Ok(lost)
    }

    /// Compares the number of mini-sockets with the kernel's, which is cheap, and dumps them only where they differ.
    fn check_minis(&mut self) {
        // With a filter on more than the namespace the two numbers are not about the same.
        let whole = SocketFilter { netns: self.trace.filters.socket.netns.clone(), ..SocketFilter::default() };
        if self.minis.is_some() || self.snapshot.is_some() || self.trace.filters.socket != whole {
            return;
        }
        let minis = self.tracker.mini_sockets();
        let wanted_netns = self.trace.filters.socket.netns.clone();
        let expected = minis.counts();
        self.minis = Some(tokio::task::spawn_blocking(move || {
            let off = |namespace: &Namespace| {
                let expected = expected.get(&namespace.inum).copied().unwrap_or(0);
                let found = namespace.enter(sysctl::mini_socket_count).ok().flatten();
                found.is_some_and(|found| found.abs_diff(expected) > MINIS_TOLERANCE.max(expected / 20))
            };
            let off: Vec<Namespace> = namespaces(&wanted_netns)?.into_iter().filter(off).collect();
            if off.is_empty() {
                return Ok(Snapshot::default());
            }
            sock_diag::dump(&off, Wanted::MINI_SOCKETS)
        }));
    }

    async fn merge_minis(&mut self) {
        let Some(dump) = self.minis.take() else {
            return;
        };
        // A namespace that is gone meanwhile is no trouble: its mini-sockets went with it.
        if let Ok(Ok(mut snapshot)) = dump.await {
            self.keep_wanted(&mut snapshot);
            self.tracker.merge_minis(&snapshot);
        }
    }

    /// Everything that was seen is shown, and the programs are detached.
    async fn finish(mut self, mut kernel: Kernel) -> Result<Finished> {
        let window_ns = monotonic_ns() - self.started_ns;
        let resync = self.trace.final_snapshot || self.resync_wanted || self.lost_something(&kernel)?;
        if resync || self.snapshot.is_some() {
            self.resync_wanted = resync;
            self.merge_snapshot(&mut kernel).await?;
        }
        if resync && self.snapshot.is_none() {
            self.begin_snapshot(MergeKind::Resync);
        }
        // The last one: whatever is lost from here on is not of this run.
        self.resync_wanted = false;
        self.merge_snapshot(&mut kernel).await?;
        self.take_all(&mut kernel)?;
        self.tracker.flush(&mut self.effects);
        self.pass_on_repaired()?;
        self.pass_on_ended()?;
        self.view.flush()?;
        let Loss { seen, dropped, missed, resets_lost: _ } = kernel.loss()?;
        let repaired = self.tracker.counts().repaired;
        Ok(Finished {
            tracker: self.tracker,
            unlisted: self.unlisted,
            namespaces: namespaces(&self.trace.filters.socket.netns)?,
            loss: LossRecord { seen, dropped, missed, repaired },
            window_ns,
        })
    }
}
