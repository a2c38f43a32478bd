//! The `format` files of tracefs: where the fields of a classic tracepoint's record are.
//!
//! The layout changes between kernels (`protocol` was one byte before 5.6; RT kernels and RHEL 9.3 insert
//! `common_preempt_lazy_count`), so it is always read, never assumed.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// One field of a tracepoint's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Offset from the start of the record, bytes.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
}

/// The fields of one tracepoint.
#[derive(Clone, Debug, Default)]
pub struct Format(Vec<(String, Field)>);

impl Format {
    /// Understands the text of a `format` file; lines that are no fields are passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let field = |line: &str| {
            let mut parts = line.trim().strip_prefix("field:")?.split(';').map(str::trim);
            let declaration = parts.next()?;
            let number = |part: Option<&str>, key: &str| part?.strip_prefix(key)?.trim().parse::<u32>().ok();
            let offset = number(parts.next(), "offset:")?;
            let size = number(parts.next(), "size:")?;
            let name = declaration.rsplit([' ', '*']).next()?;
            let name = name.split('[').next()?;
            Some((name.to_owned(), Field { offset, size }))
        };
        Self(text.lines().filter_map(field).collect())
    }

    /// The field of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<Field> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, field)| *field)
    }
}

/// What the programs read of the classic tracepoint's record.
pub const FIELDS: [&str; 11] = [
    "skaddr", "oldstate", "newstate", "sport", "dport", "family", "protocol", "saddr", "daddr", "saddr_v6", "daddr_v6",
];

/// Where tracefs may be mounted.
const MOUNT_POINTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Where tracefs is mounted, if it is.
#[must_use]
pub fn mount_point() -> Option<PathBuf> {
    MOUNT_POINTS.into_iter().map(PathBuf::from).find(|path| path.join("events").is_dir())
}

/// Reads the format of a tracepoint.
pub fn read_format(category: &str, name: &str) -> Result<Format> {
    let Some(root) = mount_point() else {
        let is_closed = |path: &&&str| {
            let events = fs::metadata(Path::new(path).join("events"));
            events.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
        };
        if let Some(path) = MOUNT_POINTS.iter().find(is_closed) {
            bail!("{path} may not be looked into: the classic tracepoints take root, or CAP_DAC_READ_SEARCH");
        }
        bail!("tracefs is not mounted: mount -t tracefs tracefs /sys/kernel/tracing");
    };
    read_format_below(&root, category, name)
}

fn read_format_below(root: &Path, category: &str, name: &str) -> Result<Format> {
    let path = root.join("events").join(category).join(name).join("format");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Format::parse(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX_6_18: &str = "name: inet_sock_set_state
ID: 1573
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;
\tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;
\tfield:__u16 protocol;\toffset:30;\tsize:2;\tsigned:0;
\tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;

print fmt: \"family=%s\"
";

    #[test]
    fn fields_are_found_by_name() {
        let format = Format::parse(LINUX_6_18);
        assert_eq!(format.field("skaddr"), Some(Field { offset: 8, size: 8 }));
        assert_eq!(format.field("protocol"), Some(Field { offset: 30, size: 2 }));
        assert_eq!(format.field("saddr"), Some(Field { offset: 32, size: 4 }));
        assert_eq!(format.field("dport"), None);
    }

    #[test]
    fn layouts_that_are_shifted_or_older_are_taken_as_they_are() {
        let rt = LINUX_6_18.replace("offset:16", "offset:24");
        assert_eq!(Format::parse(&rt).field("oldstate"), Some(Field { offset: 24, size: 4 }));
        let before_5_6 =
            LINUX_6_18.replace("__u16 protocol;\toffset:30;\tsize:2", "__u8 protocol;\toffset:30;\tsize:1");
        assert_eq!(Format::parse(&before_5_6).field("protocol"), Some(Field { offset: 30, size: 1 }));
    }

    #[test]
    fn nonsense_has_no_fields() {
        assert_eq!(Format::parse("field:;offset:x;\n\u{0}field").field(""), None);
    }
}
