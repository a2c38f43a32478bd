//! Who holds a socket: inode → (process, descriptor), by a look through /proc/PID/fd.
//!
//! That costs a system call for each descriptor of the host, so it is done once at start-up and then only when something
//! is flagged, never for each event.

use std::{fs, io::ErrorKind, os::unix::ffi::OsStrExt, path::Path};

use procfs::process::{LimitValue, Process as ProcProcess};
use rustc_hash::FxHashSet;

use crate::core::{
    connection::{Process, ProcessSource},
    finding::{DescriptorUsage, Holder},
    transition::Comm,
};

/// The holders of all sockets that can be seen; there may be a million.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    processes: Vec<(u32, Comm)>,
    /// Sorted by inode.
    descriptors: Vec<Descriptor>,
    /// Processes whose descriptors could not be read, for want of privilege.
    pub denied: usize,
}

/// A descriptor of a socket.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    inode: u64,
    /// Its place among the processes.
    process: u32,
    fd: i32,
}

impl Owners {
    /// Looks through every process.
    #[must_use]
    pub fn scan() -> Self {
        let mut owners = Self::default();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                owners.scan_process(pid, &entry.path());
            }
        }
        // A stable sort: of one socket they stay in the order of the processes.
        owners.descriptors.sort_by_key(|descriptor| descriptor.inode);
        owners
    }

    fn scan_process(&mut self, pid: u32, folder: &Path) {
        let descriptors = match fs::read_dir(folder.join("fd")) {
            Ok(descriptors) => descriptors,
            Err(error) => {
                // Any other error: the process is gone.
                self.denied += usize::from(error.kind() == ErrorKind::PermissionDenied);
                return;
            }
        };
        let process = self.processes.len() as u32;
        let found = self.descriptors.len();
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else {
                continue;
            };
            let Some(inode) = socket_inode(target.as_os_str().as_bytes()) else {
                continue;
            };
            let Some(fd) = descriptor.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            self.descriptors.push(Descriptor { inode, process, fd });
        }
        if self.descriptors.len() > found {
            self.processes.push((pid, read_comm(folder)));
        }
    }

    /// All descriptors of a socket, over all processes that share it.
    pub fn of(&self, inode: u64) -> impl Iterator<Item = Holder> + '_ {
        let first = self.descriptors.partition_point(|descriptor| descriptor.inode < inode);
        let its = self.descriptors[first..].iter().take_while(move |descriptor| descriptor.inode == inode);
        its.map(|descriptor| self.holder(*descriptor))
    }

    /// Every socket that somebody holds, by its inode, with one of its holders.
    pub fn sockets(&self) -> impl Iterator<Item = (u64, Holder)> + '_ {
        let sockets = self.descriptors.chunk_by(|one, next| one.inode == next.inode);
        sockets.map(|its| (its[0].inode, self.holder(its[0])))
    }

    /// Inodes of all sockets that a dump does not list.
    #[must_use]
    pub fn unlisted(&self, listed: &FxHashSet<u64>) -> FxHashSet<u64> {
        self.sockets().map(|(inode, _)| inode).filter(|inode| !listed.contains(inode)).collect()
    }

    fn holder(&self, Descriptor { process, fd, .. }: Descriptor) -> Holder {
        let (pid, comm) = self.processes[process as usize];
        Holder { pid, comm, fd }
    }

    /// One process that holds the socket: the one with the lowest id, which for a forking server is the parent.
    #[must_use]
    pub fn process_of(&self, inode: u64) -> Option<Process> {
        if inode == 0 {
            return None;
        }
        let holder = self.of(inode).min_by_key(|holder| holder.pid)?;
        Some(Process { pid: holder.pid, comm: holder.comm, source: ProcessSource::Holder })
    }
}

/// `socket:[12345]`.
fn socket_inode(target: &[u8]) -> Option<u64> {
    let digits = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn read_comm(folder: &Path) -> Comm {
    let name = fs::read(folder.join("comm")).unwrap_or_default();
    let mut bytes = [0; 16];
    let name = name.strip_suffix(b"\n").unwrap_or(&name);
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name[..length]);
    Comm::new(bytes)
}

/// How many descriptors a process has open, and how many it may have (soft RLIMIT_NOFILE).
#[must_use]
pub fn descriptor_usage(pid: u32) -> Option<DescriptorUsage> {
    let process = ProcProcess::new(i32::try_from(pid).ok()?).ok()?;
    let used = process.fd_count().ok()? as u64;
    let limit = process.limits().ok().and_then(|limits| match limits.max_open_files.soft_limit {
        LimitValue::Value(limit) => Some(limit),
        LimitValue::Unlimited => None,
    });
    Some(DescriptorUsage { used, limit })
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::{fd::AsRawFd, unix::fs::MetadataExt},
    };

    use super::*;

    #[test]
    fn a_socket_of_this_process_is_found_with_its_descriptor() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let path = format!("/proc/self/fd/{}", listener.as_raw_fd());
        let inode = fs::metadata(path).expect("its inode").ino();
        let owners = Owners::scan();
        let mine: Vec<_> = owners.of(inode).filter(|holder| holder.pid == std::process::id()).collect();
        assert_eq!(mine.len(), 1);
        assert_eq!(mine[0].fd, listener.as_raw_fd());
        assert_eq!(owners.process_of(inode).map(|process| process.pid), Some(std::process::id()));
    }

    #[test]
    fn only_sockets_have_socket_inodes() {
        assert_eq!(socket_inode(b"socket:[12]"), Some(12));
        assert_eq!(socket_inode(b"/tmp/socket:[12]"), None);
        assert_eq!(socket_inode(b"socket:[x]"), None);
        assert_eq!(socket_inode(b"pipe:[12]"), None);
    }

    #[test]
    fn descriptors_are_counted_against_their_limit() {
        let DescriptorUsage { used, limit } = descriptor_usage(std::process::id()).expect("this process");
        assert!(used > 0);
        assert!(limit.is_none_or(|limit| limit >= used));
        assert_eq!(descriptor_usage(u32::MAX), None);
    }
}
