//! Where facts come from: the kernel's tracepoints, its socket tables, /proc. Everything that reads the machine is
//! here; what it means is the core's business.

pub mod cgroups;
pub mod clock;
pub mod closed;
pub mod host;
pub mod kernel;
pub mod netns;
pub mod owners;
pub mod privileges;
pub mod sock_diag;
pub mod sysctl;
