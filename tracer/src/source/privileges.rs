//! Capabilities: what a run goes without where it lacks one, and giving up those that it needs no more.
//!
//! They belong to threads, and a thread begins with those of the one that starts it. So they are given up while there is
//! one thread. What needs a privilege later is listed in [`Later`]; whoever adds a call that needs one adds it there.

use std::{fmt::Write, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result};
use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    process::geteuid,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};

use super::netns::Namespace;

/// What a run does after its start that may take a privilege.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Later {
    /// It reads files, and nothing of the kernel.
    Files,
    /// It looks for sockets in the kernel's lists and in the descriptors of processes.
    Sockets {
        /// The namespaces that it looks into; none for all.
        netns: Vec<u32>,
        /// It also asks sockets that are in no list.
        unlisted: bool,
    },
}

/// What the tracer may come to use, with what is missing without it.
pub const USES: [(CapabilitySet, &str); 4] = [
    (
        CapabilitySet::SYS_PTRACE,
        "who holds the sockets of other users, and namespaces that have no name, are not known",
    ),
    (CapabilitySet::DAC_READ_SEARCH, "who holds the sockets of other users is not known"),
    (
        CapabilitySet::SYS_ADMIN,
        "what was there before is known in this network namespace only, and what is missed in others is not repaired",
    ),
    (CapabilitySet::NET_ADMIN, "descriptors of connections that are over are taken to be in their process's namespace"),
];

impl Later {
    /// The capabilities that it makes use of, as far as they are there.
    fn uses(&self) -> CapabilitySet {
        let Self::Sockets { netns, unlisted } = self else {
            return CapabilitySet::DAC_READ_SEARCH;
        };
        // PTRACE_MODE_READ for /proc/PID/fd and ns, ATTACH for pidfd_getfd; the folders are closed to other users.
        let mut uses = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
        let own = Namespace::own().map(|own| own.inum);
        let only_own = matches!((&own, &netns[..]), (Ok(own), [one]) if own == one);
        if *unlisted || !only_own {
            // setns(). What is unlisted is looked for in all namespaces.
            uses |= CapabilitySet::SYS_ADMIN;
        }
        if *unlisted {
            // SIOCGSKNS.
            uses |= CapabilitySet::NET_ADMIN;
        }
        uses
    }

    /// What it goes without for want of privilege, a line for each capability.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        if *self == Self::Files {
            return Vec::new();
        }
        let missing = self.uses() - effective();
        if missing == self.uses() && geteuid().as_raw() != 0 {
            let missing = listed(missing);
            return vec![format!("without {missing}: this network namespace only, and holders of this user only")];
        }
        let uses = USES.iter().filter(|(capability, _)| missing.contains(*capability));
        uses.map(|(capability, lost)| format!("without {}: {lost}", listed(*capability))).collect()
    }
}

/// What the calling thread may do now.
#[must_use]
pub fn effective() -> CapabilitySet {
    capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective)
}

/// The capabilities that loading BPF programs takes and the calling thread lacks.
#[must_use]
pub fn missing_for_bpf() -> CapabilitySet {
    let effective = effective();
    let wanted = CapabilitySet::BPF | CapabilitySet::PERFMON;
    // Which was all there was before 5.8, and still counts.
    if effective.contains(CapabilitySet::SYS_ADMIN) { CapabilitySet::empty() } else { wanted - effective }
}

/// Capabilities on their way out: those that nobody asked to keep do nothing any more, but can still be kept.
#[must_use = "only `for_good` gives them up"]
pub struct Reduced {
    before: CapabilitySets,
    kept: CapabilitySet,
}

impl Reduced {
    /// To what comes later. To be called while the process has one thread.
    pub fn to(later: &Later) -> Result<Self> {
        let before = capabilities(None).context("cannot ask for the capabilities")?;
        let reduced = Self { before, kept: before.permitted & later.uses() };
        set_capabilities(None, CapabilitySets { effective: reduced.kept, ..before }).context(CANNOT_GIVE_UP)?;
        Ok(reduced)
    }

    /// Keeps what it takes to make files in a folder, and to delete them there, if it takes anything: that of root in the
    /// folder of somebody else.
    pub fn keep_for_files_in(&mut self, folder: &Path) {
        if accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_err() {
            self.kept |= self.before.permitted & CapabilitySet::DAC_OVERRIDE;
        }
        const STICKY: u32 = 0o1000;
        let is_others = |of: std::fs::Metadata| of.mode() & STICKY != 0 && of.uid() != geteuid().as_raw();
        if folder.metadata().is_ok_and(is_others) {
            self.kept |= self.before.permitted & CapabilitySet::FOWNER;
        }
    }

    /// Keeps what reading a BPF map takes if it takes anything: before 5.19, where users may not use BPF at all.
    pub fn keep_for_maps(&mut self, can_read: impl FnOnce() -> bool) {
        if !can_read() {
            self.kept |= self.before.permitted & CapabilitySet::BPF;
        }
    }

    /// Gives up all others, also for what this process might execute; returns what is kept, as a list.
    pub fn for_good(self) -> Result<String> {
        let Self { before, kept } = self;
        set_no_new_privs(true).context(CANNOT_GIVE_UP)?;
        clear_ambient_capability_set().context(CANNOT_GIVE_UP)?;
        if before.permitted.contains(CapabilitySet::SETPCAP) {
            let effective = kept | CapabilitySet::SETPCAP;
            set_capabilities(None, CapabilitySets { effective, ..before }).context(CANNOT_GIVE_UP)?;
            let all = (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
            // Those that this kernel does not have are an error.
            for other in all.filter(|one| !kept.contains(*one) && capability_is_in_bounding_set(*one) == Ok(true)) {
                remove_capability_from_bounding_set(other).context(CANNOT_GIVE_UP)?;
            }
        }
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
        set_capabilities(None, sets).context(CANNOT_GIVE_UP)?;
        Ok(listed(kept))
    }
}

const CANNOT_GIVE_UP: &str = "cannot give up capabilities";

/// `CAP_BPF and CAP_PERFMON`.
#[must_use]
pub fn listed(capabilities: CapabilitySet) -> String {
    let names: Vec<_> = capabilities.iter_names().map(|(name, _)| name).collect();
    let mut list = String::new();
    for (at, name) in names.iter().enumerate() {
        let before = if at == 0 {
            ""
        } else if at + 1 == names.len() {
            " and "
        } else {
            ", "
        };
        // Writing to a string does not fail.
        let _ = write!(list, "{before}CAP_{name}");
    }
    if list.is_empty() { "no capability".to_owned() } else { list }
}
