//! Many connections, one after the other, while something else happens.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    harness::eventually,
    net::{self, close_in_order, pair},
};

/// What each end of a connection goes through that its client closes first.
pub(crate) const CLIENT: [&str; 5] = ["SYN_SENT", "ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE"];
pub(crate) const SERVER: [&str; 5] = ["SYN_RECV", "ESTABLISHED", "CLOSE_WAIT", "LAST_ACK", "CLOSE"];

/// Connections that are made by a thread.
#[derive(Default)]
pub(crate) struct Load {
    /// The cookies of both ends, client and server, of each that was begun, in order.
    made: Mutex<Vec<[u64; 2]>>,
    done: AtomicBool,
    is_over: AtomicBool,
}

impl Load {
    /// Makes connections, with a pause after each, while `work` runs, or until it asks for their end.
    pub(crate) fn beside<R>(pause: Duration, work: impl FnOnce(&Self) -> R) -> R {
        let load = Self::default();
        thread::scope(|scope| {
            let _end = End(&load);
            scope.spawn(|| {
                let listener = net::listen();
                while !load.done.load(Ordering::Relaxed) {
                    let ends = pair(&listener);
                    let cookies = [net::cookie(&ends.0), net::cookie(&ends.1)];
                    load.made.lock().unwrap_or_else(PoisonError::into_inner).push(cookies);
                    close_in_order(ends);
                    thread::sleep(pause);
                }
                load.is_over.store(true, Ordering::Relaxed);
            });
            work(&load)
        })
    }

    pub(crate) fn made(&self) -> Vec<[u64; 2]> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The one that is being made is made: nothing has happened that is not known.
    pub(crate) fn await_next(&self) {
        let count = self.made().len();
        eventually("one more", || self.is_over.load(Ordering::Relaxed) || self.made().len() > count);
    }

    /// No more from here on, but for the one that is being made.
    pub(crate) fn end(&self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Also when the test fails.
struct End<'a>(&'a Load);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
