//! Reads the BPF ring buffer (`kernel/bpf/ringbuf.c`) through a window of it.
//!
//! A mapping of the whole buffer, twice as the kernel lays it out and libraries map it, would count as 128 MiB of this
//! process's memory on a host where nothing happens. The window moves on as it is read, which costs a few nanoseconds an
//! event. What the bytes mean is `decode`'s business.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::maps::{Map, MapData};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Before each record: its length with two flags, and something for the kernel.
const HEADER: usize = 8;
/// The record is being written (`BPF_RINGBUF_BUSY_BIT`).
const BUSY: u32 = 1 << 31;
/// It was given up (`BPF_RINGBUF_DISCARD_BIT`).
const DISCARD: u32 = 1 << 30;

/// How much is mapped at a time.
const WINDOW: usize = 1 << 20;

/// Records after which the kernel is told that their room is free.
const RELEASE_EVERY: u32 = 64;

/// A ring buffer.
pub(super) struct Ring {
    fd: OwnedFd,
    /// The page with the position up to which is read, which is ours to write.
    consumer: Mapping,
    /// The page with the position up to which is written.
    producer: Mapping,
    window: Option<(usize, Mapping)>,
    page: usize,
    /// Bytes of the buffer, a power of two.
    size: usize,
    position: u64,
}

/// Some pages of the ring buffer, unmapped at the end.
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory is this process's, whichever thread looks at it, and only the owner does.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `length` bytes from a page of the map on.
    fn new(fd: &OwnedFd, page: usize, first: usize, length: usize, writable: bool) -> io::Result<Self> {
        let access = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let offset = (first * page) as u64;
        // SAFETY: the kernel chooses a free place, so nothing that is there is replaced.
        let start = unsafe { mmap(ptr::null_mut(), length, access, MapFlags::SHARED, fd, offset) }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, length })
    }

    /// The position in its first bytes.
    fn position(&self) -> &AtomicU64 {
        // SAFETY: the page is mapped for as long as this is borrowed, aligned, and the kernel too uses its first eight
        // bytes as one number that is read and written at once.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().cast()) }
    }

    /// Some bytes of it; `None` beyond its end.
    fn bytes(&self, offset: usize, length: usize) -> Option<&[u8]> {
        if offset.checked_add(length)? > self.length {
            return None;
        }
        // SAFETY: within the mapping, which lives as long as the slice; the kernel writes a record no more once its
        // busy flag is gone, until we have given its room back.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset), length) })
    }

    /// The length and flags of the record that begins here.
    fn header(&self, offset: usize) -> Option<u32> {
        if !offset.is_multiple_of(HEADER) || offset.checked_add(HEADER)? > self.length {
            return None;
        }
        // SAFETY: within the mapping and aligned, as records are; the kernel takes the busy flag away at once.
        let header = unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(offset).cast()) };
        // What was written before the flag was taken away is seen after it.
        Some(header.load(Ordering::Acquire))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nobody borrows it any more. There is nothing to be done if it fails.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

impl Ring {
    /// Of a map of this size, a power of two of pages.
    pub(super) fn new(map: &Map, size: usize) -> io::Result<Self> {
        let Map::RingBuf(data) = map else {
            return Err(io::Error::other("not a ring buffer"));
        };
        let fd = MapData::fd(data).as_fd().try_clone_to_owned()?;
        let page = rustix::param::page_size();
        let consumer = Mapping::new(&fd, page, 0, page, true)?;
        let producer = Mapping::new(&fd, page, 1, page, false)?;
        let position = consumer.position().load(Ordering::Acquire);
        Ok(Self { fd, consumer, producer, window: None, page, size, position })
    }

    /// Hands over records, `limit` at most, in the order in which they were reserved; returns how many there were.
    pub(super) fn drain(&mut self, limit: usize, mut sink: impl FnMut(&[u8])) -> io::Result<usize> {
        let mut count = 0;
        let mut unreleased = 0;
        let result = loop {
            if count >= limit || self.position >= self.producer.position().load(Ordering::Acquire) {
                break Ok(count);
            }
            let (header, record) = match self.record() {
                Ok(Some(found)) => found,
                Ok(None) => break Ok(count),
                Err(error) => break Err(error),
            };
            if header & DISCARD == 0 {
                count += 1;
                sink(record);
            }
            self.position += (record.len() + HEADER).next_multiple_of(HEADER) as u64;
            unreleased += 1;
            if unreleased >= RELEASE_EVERY {
                unreleased = 0;
                self.consumer.position().store(self.position, Ordering::Release);
            }
        };
        self.consumer.position().store(self.position, Ordering::Release);
        result
    }

    /// The record at the position; `None` while it is being written.
    fn record(&mut self) -> io::Result<Option<(u32, &[u8])>> {
        let at = self.position as usize & (self.size - 1);
        let size = WINDOW.min(self.size);
        let first = at / size * size;
        if self.window.as_ref().is_none_or(|(mapped, _)| *mapped != first) {
            // First the old one goes: both are never there.
            self.window = None;
            // A record may reach beyond the window by a page: after the last one comes the first one again.
            let mapping = Mapping::new(&self.fd, self.page, 2 + first / self.page, size + self.page, false)?;
            self.window = Some((first, mapping));
        }
        let beyond = || io::Error::other("a record beyond the ring buffer's window");
        let (_, window) = self.window.as_ref().ok_or_else(beyond)?;
        let header = window.header(at - first).ok_or_else(beyond)?;
        if header & BUSY != 0 {
            return Ok(None);
        }
        let length = (header & !(BUSY | DISCARD)) as usize;
        let record = window.bytes(at - first + HEADER, length).ok_or_else(beyond)?;
        Ok(Some((header, record)))
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
