//! Running a scenario, and when one that failed is run again.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
};

use tracer::{core::filter::SocketFilter, source::kernel::Attachment};

use super::{Lab, namespace::in_new_namespace};

/// Runs a scenario once for each attachment, each time in a new namespace, on a thread of its own.
///
/// The kernel skips a BPF program that interrupts itself and counts that (`recursion_misses`). A scenario that failed
/// while this happened says nothing: it is run again. So is one of whose events some came while a stranger's process was
/// current, in softirq: there are kernels on which BPF programs do not run in some processes' contexts, which is not
/// counted (docs/kernel.md, "Lost events"). One that failed with nothing missed has failed.
pub(crate) fn run(attachments: &[Attachment], scenario: impl Fn(&mut Lab) + Send + Sync) {
    run_with(attachments, SocketFilter::default(), scenario);
}

/// Likewise, with a filter in force besides the namespace.
pub(crate) fn run_with(attachments: &[Attachment], filter: SocketFilter, scenario: impl Fn(&mut Lab) + Send + Sync) {
    const TRIES: usize = 5;
    for attachment in attachments {
        for attempt in 1.. {
            match attempt_in_new_namespace(*attachment, &filter, &scenario) {
                Ok(()) => {
                    // `cargo xtask vm` counts these.
                    println!("passed with {attachment:?}");
                    break;
                }
                Err(failure) if (failure.missed > 0 || failure.strangers > 0) && attempt < TRIES => {
                    let Failure { missed, strangers, .. } = failure;
                    eprintln!("{missed} events were missed, {strangers} came in strangers' contexts: once more");
                }
                Err(failure) => {
                    eprintln!("with {attachment:?}");
                    panic::resume_unwind(failure.panic)
                }
            }
        }
    }
}

struct Failure {
    panic: Box<dyn Any + Send>,
    /// Events that the kernel counted as missed.
    missed: u64,
    /// Events that came in the context of a process that has nothing to do with the test.
    strangers: usize,
}

fn attempt_in_new_namespace(
    attachment: Attachment,
    filter: &SocketFilter,
    scenario: &(impl Fn(&mut Lab) + Send + Sync),
) -> Result<(), Failure> {
    in_new_namespace(|| {
        let mut lab = Lab::new(attachment, filter.clone());
        panic::catch_unwind(AssertUnwindSafe(|| {
            scenario(&mut lab);
            lab.finish();
        }))
        .map_err(|panic| {
            let loss = lab.loss();
            Failure { panic, missed: loss.missed + loss.resets_lost, strangers: lab.events_in_strangers_contexts() }
        })
    })
}
