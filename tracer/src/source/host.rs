//! Which host this is.

use anyhow::{Context, Result};
use nix::sys::utsname::uname;

/// A host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Release of its kernel.
    pub kernel: String,
}

impl Host {
    /// This one.
    pub fn this() -> Result<Self> {
        let uname = uname().context("cannot tell the host's name")?;
        Ok(Self {
            name: uname.nodename().to_string_lossy().into_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
        })
    }
}
