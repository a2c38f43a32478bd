//! What the guest boots into: an initramfs with the programs, the modules, and a script that runs the tests.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{Programs, TEST_ARGS, kernels::Kernel};

/// Begins a line of the script's own.
pub(super) const SAYS: &str = "guest: ";

/// Writes it.
pub(super) fn write(to: &Path, kernel: &Kernel, busybox: &Path, programs: &Programs, args: &[String]) -> Result<()> {
    let cannot = || format!("cannot write {}", to.display());
    let mut archive = Archive { to: BufWriter::new(File::create(to).with_context(cannot)?), number: 0 };
    let folders = ["bin", "dev", "proc", "sys", "tmp", "run", "modules"].map(Path::new);
    let libraries = || programs.libraries.iter().map(|path| path.strip_prefix("/").unwrap_or(path));
    let theirs = libraries().flat_map(|path| path.ancestors().skip(1)).filter(|path| path.parent().is_some());
    // A folder comes before what is in it.
    for folder in theirs.chain(folders).collect::<BTreeSet<_>>() {
        archive.add(&folder.to_string_lossy(), FOLDER | 0o755, &[]).with_context(cannot)?;
    }
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    archive.add("bin/busybox", FILE | 0o755, &read(busybox)?).with_context(cannot)?;
    archive.add("bin/sh", LINK | 0o777, b"busybox").with_context(cannot)?;
    archive.add("bin/kernel-tests", FILE | 0o755, &read(&programs.tests)?).with_context(cannot)?;
    archive.add("bin/tracer", FILE | 0o755, &read(&programs.tracer)?).with_context(cannot)?;
    for (name, path) in libraries().zip(&programs.libraries) {
        archive.add(&name.to_string_lossy(), FILE | 0o755, &read(path)?).with_context(cannot)?;
    }
    for (number, module) in kernel.modules.iter().enumerate() {
        archive.add(&format!("modules/{number}.ko"), FILE | 0o644, &read(module)?).with_context(cannot)?;
    }
    archive.add("init", FILE | 0o755, script(args).as_bytes()).with_context(cannot)?;
    archive.end().with_context(cannot)
}

fn script(args: &[String]) -> String {
    let args = TEST_ARGS.map(str::to_owned).iter().chain(args).map(|arg| format!(" '{arg}'")).collect::<String>();
    format!(
        "#!/bin/sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tracefs tracefs /sys/kernel/tracing
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for module in /modules/*.ko; do insmod $module; done
ip link set lo up
echo \"{SAYS}Linux $(uname -r)\"
sed 's/^/format: /' /sys/kernel/tracing/events/sock/inet_sock_set_state/format
tracer check 2>&1 | sed 's/^/{SAYS}/'
mount -t tmpfs tmpfs /sys/kernel/btf
echo '{SAYS}without the kernel types:'
tracer check 2>&1 | sed 's/^/{SAYS}/'
umount /sys/kernel/btf
kernel-tests{args}
poweroff -f
"
    )
}

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive as the kernel takes it (`newc`, Documentation/driver-api/early-userspace/buffer-format.rst).
struct Archive<W> {
    to: W,
    number: u32,
}

impl<W: Write> Archive<W> {
    fn add(&mut self, name: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.number += 1;
        let size = u32::try_from(contents.len()).map_err(io::Error::other)?;
        let (links, name_size) = (1, name.len() as u32 + 1);
        // ino, mode, uid, gid, nlink, mtime, filesize, four numbers of devices, namesize, check
        let fields = [self.number, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        write!(self.to, "070701")?;
        for field in fields {
            write!(self.to, "{field:08x}")?;
        }
        write!(self.to, "{name}\0")?;
        self.pad(6 + 8 * fields.len() + name.len() + 1)?;
        self.to.write_all(contents)?;
        self.pad(contents.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.to.write_all(&[0; 3][..length.next_multiple_of(4) - length])
    }

    fn end(mut self) -> io::Result<()> {
        self.add("TRAILER!!!", 0, &[])?;
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_aligned_and_ends_with_its_trailer() {
        let mut bytes = Vec::new();
        let mut archive = Archive { to: &mut bytes, number: 0 };
        archive.add("init", FILE | 0o755, b"hello").expect("added");
        archive.end().expect("ended");
        assert!(bytes.starts_with(b"07070100000001000081ed"));
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..124], b"hello\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.len().is_multiple_of(4) && bytes.windows(10).any(|part| part == b"TRAILER!!!"));
    }
}
