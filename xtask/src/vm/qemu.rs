//! Other kernels in QEMU: guests, made ready one after the other and booted side by side.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    num::NonZero,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Args, Tested, Which, guest,
    kernels::{self, Release},
    programs::Programs,
    results::{self, Results},
};
use crate::{process, workspace};

/// Longer than any run takes in software on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// A computer that is ready to be switched on.
pub(super) struct Guest {
    release: &'static Release,
    command: Command,
    /// Where all of its console goes.
    log: PathBuf,
}

impl Guest {
    /// Makes ready: kernel, programs and all that they need there.
    pub(super) fn new(release: &'static Release, programs: &Programs, args: &Args) -> Result<Self> {
        let folder = workspace::target_dir()?.join("vm");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let qemu = release.machine.qemu()?;
        let mirror = args.mirror.as_deref();
        let busybox = kernels::busybox(release.machine, &folder, mirror)?;
        let kernel = kernels::fetch(release, &folder, mirror)?;
        let initramfs = folder.join(format!("{}.cpio", release.name));
        guest::write(&initramfs, &kernel, &busybox, programs, &args.args)?;
        let mut command = Command::new(qemu);
        // With a thread for each processor one may run into a breakpoint for ever that the kernel has taken away (QEMU 7.2).
        command.args(["-accel", "tcg,thread=single"]);
        command.args(["-m", "2048", "-smp", "2", "-nographic", "-no-reboot", "-net", "none"]);
        command.args(release.machine.qemu_args).arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initramfs);
        let console = release.machine.console;
        command.arg("-append").arg(format!("console={console} quiet panic=-1 mitigations=off nokaslr"));
        Ok(Self { release, command, log: folder.join(format!("{}.log", release.name)) })
    }

    /// Boots the guest and reads its console to the end.
    fn boot(self) -> Result<Results> {
        let Self { release, mut command, log } = self;
        let name = release.name;
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut guest = command.spawn().with_context(|| format!("cannot start {}", process::shown(&command)))?;
        let console = BufReader::new(guest.stdout.take().context("the guest's console")?);
        let (sender, lines) = channel();
        thread::spawn(move || {
            // Boot messages need not be text.
            for line in console.split(b'\n').map_while(Result::ok) {
                let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        });
        let mut whole = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let deadline = Instant::now() + PATIENCE;
        let mut said = Vec::new();
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    writeln!(whole, "{line}").with_context(|| format!("cannot write {}", log.display()))?;
                    let worth_showing = || results::is_worth_showing(&line).then_some(&*line);
                    if let Some(line) = line.strip_prefix(guest::SAYS).or_else(worth_showing) {
                        println!("{name:<10} {line}");
                    }
                    said.push(line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let _ = guest.kill();
                    let _ = guest.wait();
                    bail!(
                        "the guest did not end within {} minutes; its console is in {}",
                        PATIENCE.as_secs() / 60,
                        log.display()
                    );
                }
            }
        }
        let status = guest.wait().context("cannot wait for QEMU")?;
        ensure!(status.success(), "{status} from {}", process::shown(&command));
        Results::of(&said).with_context(|| format!("the guest's console is in {}", log.display()))
    }
}

/// Boots all of them, as many at a time as there are processors: each takes one.
pub(super) fn boot_all(guests: Vec<Guest>) -> Vec<Tested> {
    let at_a_time = thread::available_parallelism().map_or(1, NonZero::get);
    let (waiting, done) = (Mutex::new(VecDeque::from(guests)), Mutex::new(Vec::new()));
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while let Some(guest) = next() {
                    let begun = Instant::now();
                    let (which, results) = (Which::Debian(guest.release), guest.boot());
                    let tested = Tested { which, results, took: begun.elapsed() };
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(tested);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}
