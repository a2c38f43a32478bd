//! Work that is left to another thread, which takes it piece by piece: whoever hands it over goes on at once, until so
//! many pieces wait that the other is too slow.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

/// A thread that works behind this one.
#[derive(Debug)]
pub(crate) struct Behind<J, T> {
    jobs: Option<SyncSender<J>>,
    thread: Option<JoinHandle<io::Result<T>>>,
    waiting: Arc<AtomicUsize>,
}

/// The pieces as they come to the thread.
pub(crate) struct Jobs<J> {
    received: Receiver<J>,
    waiting: Arc<AtomicUsize>,
}

impl<J> Iterator for Jobs<J> {
    type Item = J;

    fn next(&mut self) -> Option<J> {
        let job = self.received.recv().ok()?;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(job)
    }
}

impl<J: Send + 'static, T: Send + 'static> Behind<J, T> {
    /// Starts it; so many pieces may wait.
    pub(crate) fn start(
        name: &str,
        may_wait: usize,
        work: impl FnOnce(Jobs<J>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, received) = sync_channel(may_wait);
        let waiting = Arc::new(AtomicUsize::new(0));
        let received = Jobs { received, waiting: Arc::clone(&waiting) };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || work(received))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), waiting })
    }

    /// Hands a piece over. Where the thread has ended for an error, this is the error.
    pub(crate) fn send(&mut self, job: J) -> io::Result<()> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        match self.jobs.as_ref().map(|jobs| jobs.send(job)) {
            Some(Ok(())) => Ok(()),
            _ => self.outcome().and(Err(gone())),
        }
    }

    /// How many pieces wait for their turn; none for a thread that has ended, which the next call tells of.
    pub(crate) fn waiting(&self) -> usize {
        let works = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        if works { self.waiting.load(Ordering::Relaxed) } else { 0 }
    }

    /// Looks whether the thread has ended for an error, where nothing is to be handed over.
    pub(crate) fn check(&mut self) -> io::Result<()> {
        match &self.thread {
            Some(thread) if !thread.is_finished() => Ok(()),
            _ => self.outcome().and(Err(gone())),
        }
    }

    /// Waits until everything is done.
    pub(crate) fn finish(mut self) -> io::Result<T> {
        self.outcome()
    }

    fn outcome(&mut self) -> io::Result<T> {
        self.jobs = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(io::Error::other("the thread that writes failed")),
            None => Err(gone()),
        }
    }
}

/// Said where the error itself was told before.
pub(super) fn gone() -> io::Error {
    io::Error::other("nothing can be written any more")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_done_in_order() {
        let collect = |jobs: Jobs<u32>| Ok(jobs.collect::<Vec<_>>());
        let mut behind = Behind::start("test", 2, collect).expect("a thread");
        (0..100).for_each(|job| behind.send(job).expect("taken"));
        assert!(behind.waiting() <= 3, "two, and one that is handed over");
        assert_eq!(behind.finish().expect("the result"), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn an_error_of_the_thread_is_told_once() {
        let fail = |mut jobs: Jobs<u32>| -> io::Result<()> {
            let _ = jobs.next();
            Err(io::ErrorKind::BrokenPipe.into())
        };
        let mut behind = Behind::start("test", 1, fail).expect("a thread");
        behind.check().expect("nothing has failed yet");
        behind.send(0).expect("taken");
        let error = std::iter::repeat_with(|| behind.check()).find_map(Result::err).expect("an error");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(behind.send(0).expect_err("gone").kind(), io::ErrorKind::Other);
        assert_eq!(behind.finish().expect_err("gone").kind(), io::ErrorKind::Other);
    }

    #[test]
    fn nothing_waits_for_a_thread_that_is_gone() {
        let (fail, told_to) = sync_channel(0);
        let work = move |jobs: Jobs<u32>| -> io::Result<()> {
            let _ = told_to.recv();
            drop(jobs);
            Err(io::ErrorKind::StorageFull.into())
        };
        let mut behind = Behind::start("test", 1, work).expect("a thread");
        behind.send(0).expect("there is room");
        assert_eq!(behind.waiting(), 1);
        fail.send(()).expect("it listens");
        let error = std::iter::repeat_with(|| behind.check()).find_map(Result::err).expect("an error");
        assert_eq!((error.kind(), behind.waiting()), (io::ErrorKind::StorageFull, 0));
    }
}
