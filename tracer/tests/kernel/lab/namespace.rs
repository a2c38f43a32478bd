//! A network namespace for each scenario.

use std::{fs, os::unix::fs::MetadataExt, panic, path::Path, thread};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{child, net};

use super::THREAD;

/// Runs something on a thread in a network namespace of its own. Threads and processes started there inherit it.
pub(crate) fn in_new_namespace<T: Send>(inside: impl FnOnce() -> T + Send) -> T {
    child::start_nursery();
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(THREAD.to_owned());
        let entered = thread.spawn_scoped(scope, || {
            enter_new_namespace();
            inside()
        });
        match entered.expect("a thread").join() {
            Ok(result) => result,
            Err(panic) => panic::resume_unwind(panic),
        }
    })
}

/// The mount namespace is for tracefs: what is mounted here leaves no trace on the machine.
fn enter_new_namespace() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .expect("a network namespace of its own (these tests need root)");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    if !Path::new("/sys/kernel/tracing/events").is_dir() {
        mount(Some("tracefs"), "/sys/kernel/tracing", Some("tracefs"), MsFlags::empty(), none)
            .expect("tracefs at /sys/kernel/tracing");
    }
    net::bring_up("lo");
}

/// The inode number of the current thread's network namespace.
pub(crate) fn own_netns() -> u32 {
    let inode = fs::metadata("/proc/thread-self/ns/net").expect("the namespace's file").ino();
    u32::try_from(inode).expect("a namespace's inode number")
}
