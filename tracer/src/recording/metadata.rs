//! What a recording says of the run that it comes from.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::problem::printable;

/// Version of the format. It changes when a reader of before would read something wrong; columns may be added without.
pub const VERSION: u32 = 1;

/// In the schema's metadata each key has this before it, so that others' keys are not in the way.
const PREFIX: &str = "tracer.";

/// The metadata of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// [`VERSION`].
    pub format: u32,
    /// Version of the program that wrote it.
    pub version: String,
    /// Name of the host.
    pub host: String,
    /// Release of its kernel.
    pub kernel: String,
    /// /proc/sys/kernel/random/boot_id: cookies and CLOCK_MONOTONIC begin anew with each boot.
    pub boot_id: String,
    /// The run, in which each file has its number.
    pub run: String,
    /// The file's number in its run, from 0.
    pub part: u64,
    /// Wall time at CLOCK_MONOTONIC zero, ns since 1970.
    pub clock_offset_ns: u64,
    /// When the file begins, CLOCK_MONOTONIC ns.
    pub started_ns: u64,
    /// `net.ipv4.tcp_fin_timeout`, ns.
    pub fin_timeout_ns: u64,
    /// Bound of the tracker.
    pub max_connections: usize,
    /// What was filtered, as options of the command line.
    pub filters: String,
}

impl Metadata {
    /// When the file begins, ns since 1970: the monotonic clocks of two boots have nothing to do with each other.
    #[must_use]
    pub const fn started_unix_ns(&self) -> u64 {
        self.clock_offset_ns.saturating_add(self.started_ns)
    }

    /// As keys and values of a schema.
    pub(super) fn to_schema(&self) -> BTreeMap<String, String> {
        let Ok(Value::Object(fields)) = serde_json::to_value(self) else {
            return BTreeMap::new();
        };
        let text = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        fields.into_iter().map(|(key, value)| (format!("{PREFIX}{key}"), text(value))).collect()
    }

    /// From keys and values of a schema.
    pub(super) fn from_schema(schema: &arrow_schema::Metadata) -> Result<Self> {
        let Some(format) = schema.get(&format!("{PREFIX}format")) else {
            bail!("not a recording of tracer");
        };
        let format: u32 = format.parse().context("its format version is no number")?;
        if format > VERSION {
            bail!("a recording of format version {format}, this is tracer for version {VERSION}: use a newer one");
        }
        let numbers =
            ["format", "part", "clock_offset_ns", "started_ns", "fin_timeout_ns", "max_connections"].as_slice();
        let mut fields = Map::new();
        for (key, text) in schema {
            if let Some(key) = key.strip_prefix(PREFIX) {
                let number = text.parse::<u64>().ok().filter(|_| numbers.contains(&key));
                fields.insert(key.to_owned(), number.map_or_else(|| Value::String(printable(text)), Value::from));
            }
        }
        serde_json::from_value(Value::Object(fields)).context("what it says of its run is damaged")
    }
}
