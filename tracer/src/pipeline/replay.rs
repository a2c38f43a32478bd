//! A trace out of recordings: the same inputs in the same order as they came live.

use std::{
    fs::File,
    io::{self, BufReader, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustc_hash::FxHashMap;

use super::{
    follow::{Follow, Followed, Naming, View},
    live::give_up_privileges,
};
use crate::{
    config::{Sampling, Trace},
    core::{
        finding::Tally,
        input::Input,
        tracker::{Limits, MergeKind},
    },
    problem::{one_line, tell},
    recording::{Ending, Metadata, Reader, Recorded, files},
    source::{clock::WallClock, privileges::Later},
};

/// Inputs between two looks at the clock.
const PROGRESS_EVERY: u64 = 65_536;

/// Inputs between two times that a view brings out what it has.
const FLUSH_EVERY: u64 = 4096;

/// What a file may ask for: more than any host has.
const MAX_CONNECTIONS: usize = 8 << 20;

/// A file and where it lies.
struct Part {
    path: PathBuf,
    length: u64,
    reader: Reader<Box<dyn Read>>,
}

/// What a replay has to say besides what is in the recording.
pub(super) struct Replayed {
    pub(super) followed: Followed,
    /// A file was damaged: what came after that is missing.
    pub(super) damage: Option<anyhow::Error>,
}

/// Replays recordings until they end, the view has enough or the time is over.
pub(super) fn run(trace: &Trace, view: &mut dyn View) -> Result<Replayed> {
    // What is read may be made to do harm.
    give_up_privileges(&Later::Files, trace.verbose, |_| ())?;
    let mut parts = open_all(&trace.from)?;
    keep_last_run(&mut parts, view.wants_one_run());
    let Some(first) = parts.first().map(|part| part.reader.metadata().clone()) else {
        bail!("no recording to read");
    };
    let max_connections = first.max_connections.clamp(1, MAX_CONNECTIONS);
    let limits = Limits { max_connections, fin_timeout_ns: first.fin_timeout_ns };
    let naming = Naming::recorded(WallClock::from_offset_ns(first.clock_offset_ns));
    let mut follow = Follow::new(trace.filters.clone(), limits, naming, view);
    follow.tally = (trace.sampling != Sampling::Never).then(Tally::default);
    let until = trace.duration.map(|duration| first.started_unix_ns().saturating_add(nanoseconds(duration)));
    // Whoever keeps time has the screen, and tells where it is.
    let total = if follow.view.keeps_time() { 0 } else { parts.iter().map(|part| part.length).sum() };
    let mut replay = Replay { follow, until_unix_ns: until, progress: Progress::new(total) };
    let mut damage = None;
    let mut before: Option<Metadata> = None;
    // What began later may be of a run beside this one, and none of its inputs is wanted.
    parts.retain(|part| until.is_none_or(|until| part.reader.metadata().started_unix_ns() <= until));
    for part in &mut parts {
        match replay.part(part, before.as_ref())? {
            PartEnd::Enough => break,
            PartEnd::Damaged(error) => {
                damage = Some(error.context(format!("{}", part.path.display())));
                break;
            }
            PartEnd::End => tell_if_cut(part),
        }
        before = Some(part.reader.metadata().clone());
    }
    let Replay { mut follow, progress, .. } = replay;
    drop(progress);
    if follow.view.keeps_time() {
        follow.hand_out_closed()?;
        follow.before(None)?;
    }
    Ok(Replayed { followed: follow.finish()?, damage })
}

/// A replay under way.
struct Replay<'a> {
    follow: Follow<'a>,
    /// The time that it goes to. Runs have different monotonic clocks, and the same wall time.
    until_unix_ns: Option<u64>,
    progress: Progress,
}

/// How the reading of a file came to its end.
enum PartEnd {
    /// There is no more in it that is wanted.
    End,
    /// More is not wanted, of this file or another.
    Enough,
    /// The rest cannot be read.
    Damaged(anyhow::Error),
}

/// What comes first in a file that goes on after something else.
#[derive(Default)]
struct Seam {
    /// Files before it are missing: its first dump is what repairs the picture.
    gap: bool,
    /// It begins in the middle of its run: what was lost by then is not of the replay.
    in_the_middle: bool,
}

impl Replay<'_> {
    /// Replays a file. An error is the view's; what is wrong with the file is in the end of the part.
    fn part(&mut self, part: &mut Part, before: Option<&Metadata>) -> Result<PartEnd> {
        let mut seam = self.join(part, before)?;
        let mut inputs = 0_u64;
        loop {
            match part.reader.read() {
                Err(error) => return Ok(PartEnd::Damaged(error)),
                Ok(None) => break,
                Ok(Some(Recorded::Cgroup { id, path })) => self.follow.learn_cgroup(id, path),
                Ok(Some(Recorded::Input(input))) => {
                    if self.is_after_end(&input) {
                        break;
                    }
                    if self.follow.view.keeps_time() {
                        self.follow.before(Some(input.mono_ns().unwrap_or(self.follow.now_ns)))?;
                        if self.follow.view.is_done() {
                            return Ok(PartEnd::Enough);
                        }
                    }
                    self.input(input, &mut seam)?;
                }
            }
            inputs += 1;
            // Out of a pipe the next one may be long in coming.
            if inputs.is_multiple_of(FLUSH_EVERY) || part.reader.has_to_read_on() {
                self.follow.view.flush()?;
                if self.follow.view.is_done() {
                    return Ok(PartEnd::Enough);
                }
            }
            if inputs.is_multiple_of(PROGRESS_EVERY) {
                self.progress.tell(part.reader.read_bytes());
            }
        }
        self.progress.done(part.length);
        Ok(PartEnd::End)
    }

    /// Makes ready for a file that comes after another, or for the first one of a run.
    fn join(&mut self, part: &mut Part, before: Option<&Metadata>) -> Result<Seam> {
        let metadata = part.reader.metadata().clone();
        let Some(before) = before.filter(|before| before.run == metadata.run) else {
            // Where a later version filters by more, first events of connections that are not in the recording show.
            let recorded = metadata.filters.parse().unwrap_or_default();
            self.follow.begin_run(WallClock::from_offset_ns(metadata.clock_offset_ns), recorded)?;
            self.follow.view.begins(&metadata)?;
            return Ok(Seam { gap: false, in_the_middle: metadata.part > 0 });
        };
        let gap = metadata.part.saturating_sub(before.part) != 1;
        if gap {
            let missing = metadata.part.saturating_sub(before.part).saturating_sub(1);
            tell(format_args!("{}: {missing} file(s) before it are missing", part.path.display()));
        } else {
            part.reader.goes_on();
        }
        Ok(Seam { gap, in_the_middle: false })
    }

    fn input(&mut self, mut input: Input, seam: &mut Seam) -> Result<()> {
        match &mut input {
            Input::DumpBegins(kind) if std::mem::take(&mut seam.gap) => *kind = MergeKind::Resync,
            Input::Loss(loss) if std::mem::take(&mut seam.in_the_middle) => self.follow.lost_before(*loss),
            _ => {}
        }
        self.follow.input(input)
    }

    fn is_after_end(&self, input: &Input) -> bool {
        let Some(until) = self.until_unix_ns else {
            return false;
        };
        input.mono_ns().is_some_and(|mono_ns| self.follow.naming.clock.unix_ns(mono_ns) > until)
    }
}

fn tell_if_cut(part: &Part) {
    if part.reader.ending() == Some(Ending::Cut) {
        tell(format_args!(
            "{}: it has no end mark: the recorder was killed, or is still writing; {} bytes of it were read",
            part.path.display(),
            part.reader.read_bytes()
        ));
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Opens the files, in the order of their runs.
fn open_all(paths: &[PathBuf]) -> Result<Vec<Part>> {
    let files = files::listed(paths)?;
    let several = files.len() > 1;
    let mut parts = Vec::new();
    for path in files {
        // Its recorder had come no further. That is no reason not to read the others.
        if several && path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0) {
            tell(format_args!("{}: it is empty: the recorder was killed, or had no room", path.display()));
            continue;
        }
        parts.push(open(path)?);
    }
    let mut began: FxHashMap<String, u64> = FxHashMap::default();
    for part in &parts {
        let metadata = part.reader.metadata();
        let started = metadata.started_unix_ns();
        began.entry(metadata.run.clone()).and_modify(|began| *began = started.min(*began)).or_insert(started);
    }
    // Run after run, also where two went on at the same time.
    parts.sort_by_cached_key(|part| {
        let Metadata { run, part, .. } = part.reader.metadata();
        (began.get(run).copied(), run.clone(), *part)
    });
    parts.dedup_by(|later, earlier| {
        let (later, earlier) = (later.reader.metadata(), earlier.reader.metadata());
        later.run == earlier.run && later.part == earlier.part
    });
    Ok(parts)
}

fn open(path: PathBuf) -> Result<Part> {
    let named = || format!("cannot read {}", path.display());
    let (length, from): (u64, Box<dyn Read>) = if path == Path::new("-") {
        if io::stdin().is_terminal() {
            bail!("a recording does not come from a terminal: give a file, or a pipe");
        }
        (0, Box::new(io::stdin()))
    } else {
        let file = File::open(&path).with_context(named)?;
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        (length, Box::new(BufReader::with_capacity(1 << 20, file)))
    };
    let reader = Reader::new(from).with_context(named)?;
    Ok(Part { path, length, reader })
}

/// Of several runs findings can be about one only.
fn keep_last_run(parts: &mut Vec<Part>, one_run: bool) {
    let Some(last) = parts.last().map(|part| part.reader.metadata().run.clone()) else {
        return;
    };
    let before = parts.len();
    if one_run {
        parts.retain(|part| part.reader.metadata().run == last);
    }
    if parts.len() < before {
        tell(format_args!(
            "{} file(s) are of earlier runs and left out: findings are of one run",
            before - parts.len()
        ));
    }
}

/// Says how far it is while it lives, where somebody is looking.
struct Progress {
    shown: bool,
    told: Instant,
    total: u64,
    done: u64,
}

impl Progress {
    /// How often.
    const EVERY: Duration = Duration::from_millis(500);

    fn new(total: u64) -> Self {
        Self { shown: false, told: Instant::now(), total, done: 0 }
    }

    fn tell(&mut self, in_part: u64) {
        if self.total == 0 || self.told.elapsed() < Self::EVERY || !io::stderr().is_terminal() {
            return;
        }
        let (read, total) = (self.done.saturating_add(in_part), self.total);
        self.told = Instant::now();
        self.shown = true;
        let _ =
            write!(io::stderr(), "\rread {} of {} MB ({} %)", read >> 20, total >> 20, read.min(total) * 100 / total);
    }

    fn done(&mut self, length: u64) {
        self.done = self.done.saturating_add(length);
    }
}

impl Drop for Progress {
    /// Takes the line away again, whatever comes after it.
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r{:40}\r", "");
        }
    }
}

/// Tells of a damage after everything before it has been shown.
pub(super) fn tell_damage(damage: Option<anyhow::Error>) -> Result<()> {
    match damage {
        None => Ok(()),
        Some(error) => bail!("{}; what is before it was read", one_line(&error)),
    }
}
