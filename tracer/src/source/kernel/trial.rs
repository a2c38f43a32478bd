//! The programs attached for a moment, to see that they work and that what they report is true.

use anyhow::{Result, bail};

use tracer_ebpf::Layout;

use super::{
    Attachment, Known, Options, explain_denied,
    layout::{KernelTypes, VMLINUX_BTF},
    load::{self, Loaded},
    self_test::{self, Verdict},
};
use crate::{core::filter::SocketFilter, problem::one_line};

/// Room for what else happens on the host meanwhile: some thousands of events.
const BUFFER_BYTES: u32 = 1 << 20;

/// What came of it.
#[derive(Debug)]
pub struct Trial {
    /// How the programs were attached.
    pub attachment: Attachment,
    /// Whether what they report is true.
    pub verdict: Verdict,
    /// Whether members of the kernel's structs are known.
    pub details: bool,
    /// Those that this kernel has not.
    pub missing: Vec<&'static str>,
    /// Whether sockets are given cookies.
    pub cookies: bool,
    /// Which RSTs cannot be seen, and why.
    pub blind_to: Vec<String>,
}

impl Trial {
    /// Of one way in, with the programs for resets.
    pub fn of(attachment: Attachment) -> Result<Self> {
        let types = match KernelTypes::read(VMLINUX_BTF.as_ref()) {
            Err(error) if attachment == Attachment::Btf => return Err(error),
            types => types,
        };
        let mut loaded = load(types.as_ref().ok(), attachment).map_err(explain_denied)?;
        let blind_to = loaded.attach_resets().into_iter();
        let blind_to = blind_to.map(|(what, error)| format!("{what} ({})", one_line(&error))).collect();
        Ok(Self { blind_to, ..Self::with(loaded)? })
    }

    /// Of one way in, with the transitions alone: the rest may be missing.
    pub(super) fn new(types: Option<&KernelTypes>, attachment: Attachment) -> Result<Self> {
        Self::with(load(types, attachment)?)
    }

    fn with(mut loaded: Loaded) -> Result<Self> {
        let known = Known::from(&loaded.layout);
        let mut ring = loaded.take_ring(&options(loaded.attachment))?;
        Ok(Self {
            attachment: loaded.attachment,
            verdict: self_test::run(&mut ring, known),
            details: known.details,
            cookies: loaded.layout.cookie_helper != 0 && loaded.attachment == Attachment::Btf,
            missing: loaded.missing,
            blind_to: Vec::new(),
        })
    }

    /// An error when something is reported wrongly; a line when nothing can be said.
    pub fn doubt(&self) -> Result<Option<String>> {
        match &self.verdict {
            Verdict::Right { .. } => Ok(None),
            Verdict::Wrong(wrong) => bail!(
                "this kernel is not understood, and nothing wrong is to be printed: of a connection of the tracer's own, \
                 {wrong} (tracer check tells more)"
            ),
            Verdict::Impossible(error) => {
                Ok(Some(format!("not checked by a connection of the tracer's own ({})", one_line(error))))
            }
            Verdict::Silent => Ok(Some(
                "of a connection of the tracer's own not all transitions came through: others may be missing, too"
                    .to_owned(),
            )),
        }
    }
}

/// Reads the kernel's types: the members of structs that this kernel has not.
pub fn read_types() -> Result<Vec<&'static str>> {
    Ok(KernelTypes::read(VMLINUX_BTF.as_ref())?.resolve(&mut Layout::UNKNOWN.clone()))
}

/// Whether the maps can be made, with a ring buffer of this size that is no danger.
pub fn make_maps(buffer_bytes: u32) -> Result<()> {
    load::refuse_sleeping_ring(KernelTypes::read(VMLINUX_BTF.as_ref()).ok().as_ref())?;
    let options = Options { buffer_bytes, ..options(Attachment::Btf) };
    load::make_maps(&options, Layout::UNKNOWN).map(drop).map_err(explain_denied)
}

fn load(types: Option<&KernelTypes>, attachment: Attachment) -> Result<Loaded> {
    Loaded::new(&options(attachment), types, attachment)
}

fn options(attachment: Attachment) -> Options {
    Options { buffer_bytes: BUFFER_BYTES, filter: SocketFilter::default(), attachment: Some(attachment) }
}
