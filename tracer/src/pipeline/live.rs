//! The live trace: kernel → tracker → a view.

use std::time::{Duration, Instant as Stopwatch};

use anyhow::{Context, Result, bail};
use rustc_hash::FxHashMap;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, sleep_until},
};

use super::{
    dump::{DumpTask, End, Handed},
    facts::{Asked, Sampler},
    follow::{Follow, Followed, Naming, View},
    visits::{DRAIN_EVERY, Visits},
};
use crate::{
    config::{Sampling, Trace},
    core::{
        filter::SocketFilter,
        finding::{Facts, Tally},
        input::{Counters, Input, Loss},
        snapshot::Snapshot,
        tracker::{Limits, MergeKind},
    },
    memory,
    problem::{one_line, tell},
    source::{
        clock::{monotonic_ns, thread_cpu},
        kernel::{self, Kernel, Options, VMLINUX_BTF},
        netns::{self, Namespace},
        privileges::{Later, Reduced},
        sock_diag::{self, Wanted},
        sysctl,
    },
};

/// How often the loss counters are looked at; after a loss the picture is right again one snapshot later.
const CHECK_LOSS_EVERY: Duration = Duration::from_millis(500);

/// How often the number of mini-sockets is compared with the kernel's. After a look that took long the next one is later:
/// it is to cost a hundredth of a core at most.
const CHECK_MINIS_EVERY: Duration = Duration::from_secs(5);

/// How far the two may be apart: mini-sockets end within the kernel's timer granularity, not exactly.
const MINIS_TOLERANCE: u64 = 64;

/// Events that are taken from the ring buffer before signals and timers get their turn.
const BATCH: usize = 65_536;

/// The first sample of facts comes soon: a recording that is cut off early has findings all the same.
const FIRST_SAMPLE_AFTER: Duration = Duration::from_secs(1);

/// Runs a trace until its time is over, the view has enough, or SIGINT or SIGTERM come.
pub(super) fn run(trace: &Trace, view: &mut dyn View) -> Result<Followed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let result = runtime.block_on(Live::new(trace, view).run());
    // A dump that is under way on another thread is of no use any more.
    runtime.shutdown_background();
    result
}

/// Says what is missing for what comes later, and keeps nothing but that and what `more` adds.
pub(super) fn give_up_privileges(later: &Later, verbose: bool, more: impl FnOnce(&mut Reduced)) -> Result<()> {
    later.missing().into_iter().for_each(tell);
    let mut reduced = Reduced::to(later)?;
    more(&mut reduced);
    let kept = reduced.for_good()?;
    if verbose {
        tell(format_args!("keeps {kept}"));
    }
    Ok(())
}

/// The bounds of a live trace's tracker.
pub(super) fn limits(trace: &Trace) -> Limits {
    Limits { max_connections: trace.max_connections, fin_timeout_ns: sysctl::fin_timeout_ns() }
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

/// The mini-sockets of the namespaces that have more or fewer of them than expected.
fn dump_differing(wanted: &[u32], expected: &FxHashMap<u32, u64>) -> Result<Snapshot> {
    let differs = |namespace: &Namespace| {
        let expected = expected.get(&namespace.inum).copied().unwrap_or(0);
        let found = namespace.enter(sysctl::mini_socket_count).ok().flatten();
        found.is_some_and(|found| found.abs_diff(expected) > MINIS_TOLERANCE.max(expected / 20))
    };
    let differing: Vec<Namespace> = namespaces(wanted)?.into_iter().filter(differs).collect();
    if differing.is_empty() {
        return Ok(Snapshot::default());
    }
    sock_diag::dump(&differing, Wanted::MINI_SOCKETS)
}

/// A dump of the mini-sockets alone, under way on another thread, and how long it took.
type MinisTask = JoinHandle<(Result<Snapshot>, Duration)>;

/// Likewise a sample of facts, and what CPU time it took.
type SampleTask = JoinHandle<(Result<Facts>, Duration)>;

/// What the dump under way hands over next; where there is none, nothing ever.
async fn next_of(dump: &mut Option<DumpTask>) -> Handed {
    match dump {
        Some(dump) => dump.next().await,
        None => std::future::pending().await,
    }
}

struct Live<'a> {
    trace: &'a Trace,
    follow: Follow<'a>,
    sampler: Sampler,
    last_loss: Loss,
    /// Whether it was told that connections, and that mini-sockets, had to be let go.
    let_go_told: [bool; 2],
    dump: Option<DumpTask>,
    minis: Option<MinisTask>,
    minis_at: Stopwatch,
    sample: Option<SampleTask>,
    sample_at: Stopwatch,
    /// Another dump is needed after the one under way.
    resync_wanted: bool,
    visits: Visits,
}

impl<'a> Live<'a> {
    fn new(trace: &'a Trace, view: &'a mut dyn View) -> Self {
        let mut follow = Follow::new(trace.filters.clone(), limits(trace), Naming::live(), view);
        follow.tally = (trace.sampling != Sampling::Never).then(Tally::default);
        Self {
            trace,
            follow,
            sampler: Sampler { netns: trace.filters.socket.netns.clone(), ..Sampler::default() },
            last_loss: Loss::default(),
            let_go_told: [false; 2],
            dump: None,
            minis: None,
            minis_at: Stopwatch::now(),
            sample: None,
            sample_at: Stopwatch::now() + FIRST_SAMPLE_AFTER,
            resync_wanted: false,
            visits: Visits::new(Instant::now()),
        }
    }

    async fn run(mut self) -> Result<Followed> {
        let options = Options {
            buffer_bytes: self.trace.buffer_bytes,
            filter: self.trace.filters.socket.clone(),
            attachment: self.trace.attachment,
        };
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        // Before the programs are there: whoever waits for them is sure that what happens from then on counts.
        let counters = self.counters()?;
        let mut kernel = Kernel::attach(&options)?;
        if !kernel.has_details() && !self.trace.filters.owner.cgroups.is_empty() {
            bail!("--cgroup needs the kernel's type information ({VMLINUX_BTF}), which is not there");
        }
        for note in kernel.notes() {
            tell(note);
        }
        // Before the first input, which a recorder writes on a thread of its own.
        self.give_up_privileges(&kernel)?;
        let started_ns = monotonic_ns();
        self.sampler.started_ns = Some(started_ns);
        if let Some(counters) = counters {
            self.follow.input(Input::Counters(Counters { now_ns: started_ns, ..counters }))?;
        }
        self.begin_dump(MergeKind::StartUp)?;
        // A duration that no clock can add is none at all.
        let until = self.trace.duration.and_then(|duration| Instant::now().checked_add(duration));
        let mut check_loss = ticks(CHECK_LOSS_EVERY);
        let mut check_minis = ticks(CHECK_MINIS_EVERY);
        self.follow.view.flush()?;
        while !self.follow.view.is_done() {
            tokio::select! {
                biased;
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => break,
                _ = check_loss.tick() => {
                    self.check(&kernel)?;
                    // Time passes on a quiet host, too.
                    self.drain(&mut kernel).await?;
                }
                _ = check_minis.tick() => self.check_minis(),
                handed = next_of(&mut self.dump), if !self.follow.view.is_behind() => {
                    self.take_dumped(handed, &mut kernel)?;
                }
                () = sleep_until(self.visits.next.unwrap_or_else(Instant::now)), if self.visits.next.is_some() => {
                    self.drain(&mut kernel).await?;
                }
                result = kernel.woken() => {
                    result.context("cannot wait for the ring buffer")?;
                    if self.visits.wake() {
                        self.drain(&mut kernel).await?;
                    }
                }
            }
        }
        self.finish(kernel).await
    }

    /// Keeps what dumps, samples and the files of a recording take.
    fn give_up_privileges(&self, kernel: &Kernel) -> Result<()> {
        let netns = self.trace.filters.socket.netns.clone();
        let later = Later::Sockets { netns, unlisted: self.trace.sampling != Sampling::Never };
        give_up_privileges(&later, self.trace.verbose, |reduced| {
            reduced.keep_for_maps(|| kernel.loss().is_ok());
            if let Some(folder) = self.follow.view.folder() {
                reduced.keep_for_files_in(folder);
            }
        })
    }

    /// Takes what is in the ring buffer, then whatever else has become ready.
    async fn drain(&mut self, kernel: &mut Kernel) -> Result<()> {
        let taken = self.take_batch(kernel, BATCH)?;
        if self.minis.as_ref().is_some_and(JoinHandle::is_finished) {
            self.merge_minis().await?;
        }
        if self.sample.as_ref().is_some_and(JoinHandle::is_finished) {
            self.take_sample().await?;
        }
        let is_waited_for = self.dump.is_some() || self.minis.is_some() || self.sample.is_some();
        self.visits.drained(Instant::now(), taken > 0 || is_waited_for);
        if taken < BATCH {
            // Only a buffer that was empty says that nothing of the time before now is still to come.
            self.follow.input(Input::Now(monotonic_ns()))?;
        }
        self.follow.look()?;
        self.follow.view.flush()
    }

    /// Takes up to `limit` events; returns how many there were.
    fn take_batch(&mut self, kernel: &mut Kernel, limit: usize) -> Result<usize> {
        let mut result = Ok(());
        let taken = kernel.drain(limit, |event| {
            if result.is_ok() {
                result = self.follow.event(&event);
            }
        })?;
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

    /// The counters of now, for the findings.
    fn counters(&self) -> Result<Option<Counters>> {
        (self.trace.sampling != Sampling::Never).then(|| self.sampler.counters()).transpose()
    }

    /// Dumps all sockets on another thread, so that the ring buffer is drained meanwhile.
    fn begin_dump(&mut self, kind: MergeKind) -> Result<()> {
        self.follow.input(Input::DumpBegins(kind))?;
        self.dump = Some(DumpTask::begin(kind, self.trace.filters.socket.netns.clone()));
        Ok(())
    }

    fn take_dumped(&mut self, handed: Handed, kernel: &mut Kernel) -> Result<()> {
        // What happened before these sockets were read is in the buffer by now, and has to be known first.
        self.take_all(kernel)?;
        let end = match handed {
            Handed::Part(part) => return self.follow.input(Input::DumpPart(part)),
            Handed::End(end) => end,
        };
        self.dump = None;
        match end {
            Ok(End { rest, unlisted }) => {
                self.sampler.unlisted.extend(unlisted);
                self.follow.input(Input::Dump(rest))?;
                memory::give_back();
            }
            Err(error) => {
                self.follow.input(Input::DumpFailed)?;
                tell(format_args!("{}: connections that were there before are not known", one_line(&error)));
            }
        }
        if std::mem::take(&mut self.resync_wanted) {
            self.begin_dump(MergeKind::Resync)?;
        }
        Ok(())
    }

    /// The dump under way, if there is one, to its end.
    async fn take_dump(&mut self, kernel: &mut Kernel) -> Result<()> {
        while self.dump.is_some() {
            tokio::select! {
                handed = next_of(&mut self.dump), if !self.follow.view.is_behind() => {
                    self.take_dumped(handed, kernel)?;
                }
                () = sleep(DRAIN_EVERY) => self.take_all(kernel)?,
            }
        }
        Ok(())
    }

    /// What is to be looked at now and then.
    fn check(&mut self, kernel: &Kernel) -> Result<()> {
        if self.lost_something(kernel)? {
            if self.dump.is_some() {
                self.resync_wanted = true;
            } else {
                self.begin_dump(MergeKind::Resync)?;
            }
        }
        let tracker = &self.follow.tracker;
        let too_many = [("connections", tracker.counts().evicted), ("mini-sockets", tracker.mini_sockets().not_kept())];
        for (told, (what, let_go)) in self.let_go_told.iter_mut().zip(too_many) {
            if let_go > 0 && !std::mem::replace(told, true) {
                let most = self.trace.max_connections;
                tell(format_args!("more than {most} {what}: some are let go (--max-connections)"));
            }
        }
        if self.dump.is_none() && self.follow.view.begins_anew()? {
            self.follow.input(Input::Loss(self.last_loss))?;
            if let Some(counters) = self.counters()? {
                self.follow.input(Input::Counters(counters))?;
            }
            self.begin_dump(MergeKind::Anew)?;
        }
        // Both look through all descriptors of the host: one after the other.
        let is_starting = self.dump.as_ref().is_some_and(|dump| dump.kind == MergeKind::StartUp);
        let is_due = self.trace.sampling.period().is_some() && Stopwatch::now() >= self.sample_at;
        if is_due && !is_starting && self.sample.is_none() {
            self.begin_sample();
        }
        Ok(())
    }

    /// Samples facts on another thread.
    fn begin_sample(&mut self) {
        let (sampler, asked) = (self.sampler.clone(), Asked::new(self.follow.tally.as_ref(), &self.follow.tracker));
        self.sample = Some(tokio::task::spawn_blocking(move || {
            let begun = thread_cpu();
            (sampler.sample(&asked), thread_cpu().saturating_sub(begun))
        }));
    }

    async fn take_sample(&mut self) -> Result<()> {
        let Some(sample) = self.sample.take() else {
            return Ok(());
        };
        let (facts, took) = sample.await.context("the thread that samples facts failed")?;
        // After a sample that took long the next one is later: it is to cost a hundredth of a core at most.
        self.sample_at = Stopwatch::now() + self.trace.sampling.period().unwrap_or_default().max(took * 100);
        match facts {
            Ok(facts) => {
                memory::give_back();
                self.follow.input(Input::Facts(Box::new(facts)))
            }
            Err(error) => {
                tell(one_line(&error));
                Ok(())
            }
        }
    }

    /// Whether events were lost since the last look; what was dropped is told at once.
    fn lost_something(&mut self, kernel: &Kernel) -> Result<bool> {
        let loss = kernel.loss()?;
        let dropped = loss.dropped - self.last_loss.dropped;
        if dropped > 0 {
            tell(format_args!("{dropped} transitions dropped, the ring buffer was full: try a larger --buffer"));
        }
        let lost = dropped > 0 || loss.missed != self.last_loss.missed;
        if loss != self.last_loss {
            self.last_loss = loss;
            self.follow.input(Input::Loss(loss))?;
        }
        Ok(lost)
    }

    /// Compares the number of mini-sockets with the kernel's, which is cheap, and dumps them only where they differ.
    fn check_minis(&mut self) {
        // With a filter on more than the namespace the two numbers are not about the same.
        let whole = SocketFilter { netns: self.trace.filters.socket.netns.clone(), ..SocketFilter::default() };
        let is_busy = self.minis.is_some() || self.dump.is_some();
        if is_busy || self.trace.filters.socket != whole || Stopwatch::now() < self.minis_at {
            return;
        }
        let minis = self.follow.tracker.mini_sockets();
        let wanted_netns = self.trace.filters.socket.netns.clone();
        let expected = minis.counts();
        self.minis = Some(tokio::task::spawn_blocking(move || {
            let begun = Stopwatch::now();
            (dump_differing(&wanted_netns, &expected), begun.elapsed())
        }));
    }

    async fn merge_minis(&mut self) -> Result<()> {
        let Some(dump) = self.minis.take() else {
            return Ok(());
        };
        let Ok((snapshot, took)) = dump.await else {
            return Ok(());
        };
        let begun = Stopwatch::now();
        // A namespace that is gone meanwhile is no trouble: its mini-sockets went with it.
        if let Some(snapshot) = snapshot.ok().filter(|snapshot| !snapshot.complete_netns.is_empty()) {
            self.follow.input(Input::MiniSockets(snapshot))?;
        }
        self.minis_at = begun + CHECK_MINIS_EVERY.max((took + begun.elapsed()) * 100);
        Ok(())
    }

    /// Everything that was seen is shown, and the programs are detached.
    async fn finish(mut self, mut kernel: Kernel) -> Result<Followed> {
        // First of all, and whatever else there is to do: it is told at once.
        let lost_something = self.lost_something(&kernel)?;
        let resync = self.trace.final_snapshot || self.resync_wanted || lost_something;
        self.resync_wanted = false;
        self.take_dump(&mut kernel).await?;
        if resync {
            self.begin_dump(MergeKind::Resync)?;
            self.take_dump(&mut kernel).await?;
        }
        self.take_all(&mut kernel)?;
        self.follow.input(Input::Loss(kernel.loss()?))?;
        self.follow.input(Input::Now(monotonic_ns()))?;
        if self.trace.sampling.is_at_end() {
            // The counts that a sample goes by have to be complete.
            self.follow.hand_out_closed()?;
            let asked = Asked::new(self.follow.tally.as_ref(), &self.follow.tracker);
            let facts = self.sampler.sample(&asked)?;
            self.follow.input(Input::Facts(Box::new(facts)))?;
        }
        self.follow.finish()
    }
}
