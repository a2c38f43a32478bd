//! `tracer check`: what of this machine a trace stands on, what each missing thing costs, and a connection of its own as
//! the proof. Nothing is decided here that a trace does not decide itself: both ask `source`.

use std::{
    fmt,
    io::{self, Write},
};

use anyhow::{Result, bail};

use crate::{
    output::wrapped,
    problem::one_line,
    source::{
        kernel::{self, Attachment, Trial, VMLINUX_BTF, Verdict, tracefs},
        netns,
        privileges::{self, Later},
        sock_diag::{self, Wanted},
    },
};

/// Before the texts: two columns.
const INDENT: usize = 30;
const WIDTH: usize = 110;

/// What is said of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grade {
    /// It is there.
    Works,
    /// A trace runs without it.
    Missing,
    /// It is needed, or it is wrong.
    Fails,
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Works => "works",
            Self::Missing => "missing",
            Self::Fails => "FAILS",
        })
    }
}

/// A line of the table.
#[derive(Debug)]
struct Row {
    what: &'static str,
    grade: Grade,
    /// What there is, or what its absence costs.
    says: String,
}

impl Row {
    fn new(what: &'static str, grade: Grade, says: impl Into<String>) -> Self {
        Self { what, grade, says: says.into() }
    }
}

/// Looks at everything, and writes a line for each; an error when no trace works.
pub fn run(buffer_bytes: u32, to: &mut impl Write) -> Result<()> {
    let mut rows = vec![kernel(), capabilities()];
    rows.extend(lacking());
    rows.extend([types(), tracefs_and_layout(), ring_buffer(buffer_bytes)]);
    let (typed, classic) = (Trial::of(Attachment::Btf), Trial::of(Attachment::Tracepoint));
    // What a trace without --attach does.
    let taken = if typed.is_ok() { &typed } else { &classic };
    let needed = if typed.is_ok() { Attachment::Btf } else { Attachment::Tracepoint };
    rows.push(way_in("typed tracepoint", &typed, needed == Attachment::Btf));
    rows.push(way_in("classic tracepoint", &classic, needed == Attachment::Tracepoint));
    rows.extend(taken.as_ref().ok().into_iter().flat_map(details));
    rows.push(lost_events());
    rows.extend(lists());
    write_rows(&rows, to)?;
    if let Some(row) = rows.iter().find(|row| row.grade == Grade::Fails) {
        bail!("no trace works here: {}: {}", row.what, row.says);
    }
    Ok(())
}

fn write_rows(rows: &[Row], to: &mut impl Write) -> io::Result<()> {
    for row in rows {
        for (number, line) in wrapped(&row.says, WIDTH - INDENT).iter().enumerate() {
            if number == 0 {
                writeln!(to, "{:<20}{:<10}{line}", row.what, row.grade)?;
            } else {
                writeln!(to, "{:INDENT$}{line}", "")?;
            }
        }
    }
    to.flush()
}

fn kernel() -> Row {
    let version = kernel::kernel_version().map_or_else(String::new, |(major, minor)| format!("Linux {major}.{minor}"));
    match kernel::check_kernel_version() {
        Ok(()) => Row::new("kernel", Grade::Works, version),
        Err(error) => Row::new("kernel", Grade::Fails, one_line(&error)),
    }
}

fn capabilities() -> Row {
    let missing = privileges::missing_for_bpf();
    if missing.is_empty() {
        return Row::new("capabilities", Grade::Works, "what loading BPF programs takes is there");
    }
    let says = format!("no BPF program without {}: run as root (sudo tracer check)", privileges::listed(missing));
    Row::new("capabilities", Grade::Fails, says)
}

/// Of those that a trace can do without.
fn lacking() -> impl Iterator<Item = Row> {
    let later = Later::Sockets { netns: Vec::new(), unlisted: true };
    later.missing().into_iter().map(|lost| Row::new("capabilities", Grade::Missing, lost))
}

fn types() -> Row {
    match kernel::read_types() {
        Ok(missing) if missing.is_empty() => Row::new("kernel types (BTF)", Grade::Works, VMLINUX_BTF),
        Ok(missing) => {
            let says = format!("{VMLINUX_BTF}; what comes of these stays empty: {}", missing.join(", "));
            Row::new("kernel types (BTF)", Grade::Missing, says)
        }
        Err(error) => {
            let says = format!(
                "{}: cookies, inodes, errors, bytes, namespaces and cgroups stay empty, and --netns and --cgroup are refused",
                one_line(&error)
            );
            Row::new("kernel types (BTF)", Grade::Missing, says)
        }
    }
}

fn tracefs_and_layout() -> Row {
    let format = match tracefs::read_format("sock", "inet_sock_set_state") {
        Ok(format) => format,
        Err(error) => {
            let says = format!("{}: no --attach tracepoint, which is the only way without the types", one_line(&error));
            return Row::new("tracefs", Grade::Missing, says);
        }
    };
    let missing: Vec<_> = tracefs::FIELDS.into_iter().filter(|name| format.field(name).is_none()).collect();
    if !missing.is_empty() {
        let says = format!("the record of sock:inet_sock_set_state has no {}", missing.join(", "));
        return Row::new("tracefs", Grade::Missing, says);
    }
    let at = tracefs::mount_point().unwrap_or_default();
    Row::new("tracefs", Grade::Works, format!("{}, and the record's layout is known", at.display()))
}

fn ring_buffer(bytes: u32) -> Row {
    match kernel::make_maps(bytes) {
        Ok(()) => Row::new("ring buffer", Grade::Works, format!("{} KiB", bytes / 1024)),
        Err(error) => Row::new("ring buffer", Grade::Fails, one_line(&error)),
    }
}

fn way_in(what: &'static str, trial: &Result<Trial>, is_needed: bool) -> Row {
    let bad = if is_needed { Grade::Fails } else { Grade::Missing };
    match trial {
        Err(error) => Row::new(what, bad, one_line(error)),
        Ok(trial) => match &trial.verdict {
            Verdict::Right { transitions, fields, families } => {
                let says = format!(
                    "a connection over loopback ({families}) was traced: {transitions} transitions, {fields} fields, all as they \
                     should be"
                );
                Row::new(what, Grade::Works, says)
            }
            Verdict::Impossible(error) => {
                let says = format!("attached, but not checked by a connection: {}", one_line(error));
                Row::new(what, Grade::Missing, says)
            }
            Verdict::Silent => Row::new(what, bad, "attached, but not all transitions of a connection came through"),
            Verdict::Wrong(wrong) => Row::new(what, bad, wrong.clone()),
        },
    }
}

/// What the way in that a trace takes cannot give here.
fn details(trial: &Trial) -> Vec<Row> {
    let mut rows = Vec::new();
    if trial.blind_to.is_empty() {
        rows.push(Row::new("resets", Grade::Works, "who resets a connection is seen"));
    } else {
        let says = format!("{}: who resets a connection is inferred", trial.blind_to.join(", "));
        rows.push(Row::new("resets", Grade::Missing, says));
    }
    rows.push(if trial.cookies {
        Row::new("cookies", Grade::Works, "each socket has one from its first transition on")
    } else {
        Row::new("cookies", Grade::Missing, "a socket has a cookie only once someone asks for it, as ss does")
    });
    rows
}

/// `recursion_misses`, in fdinfo since 5.12.
fn lost_events() -> Row {
    const WHAT: &str = "missed events";
    if kernel::kernel_version().is_some_and(|version| version < (5, 12)) {
        return Row::new(WHAT, Grade::Missing, "before Linux 5.12 it cannot be told how many events the kernel skips");
    }
    Row::new(WHAT, Grade::Works, "the kernel counts the events that it skips")
}

/// The kernel's lists of sockets, in this namespace and the others.
fn lists() -> Vec<Row> {
    let mut count = 0_u64;
    let own = netns::Namespace::own();
    let sock_diag = match own.and_then(|own| sock_diag::visit(&[own], Wanted::WITH_FILE, &mut |_| count += 1)) {
        Ok(_) => Row::new("sock_diag", Grade::Works, format!("{count} sockets here")),
        Err(error) => {
            let says = format!(
                "{}: connections that were there before are not known, and what is missed is not repaired",
                one_line(&error)
            );
            Row::new("sock_diag", Grade::Missing, says)
        }
    };
    let entered = netns::all().map(|all| {
        let entered = all.iter().filter(|namespace| namespace.enter(|| ()).is_ok()).count();
        (entered, all.len())
    });
    let namespaces = match entered {
        Ok((entered, all)) if entered == all => {
            Row::new("namespaces", Grade::Works, format!("{all}, all can be entered"))
        }
        Ok((entered, all)) => {
            let says =
                format!("{entered} of {all} can be entered: of the others it is not known what was there before");
            Row::new("namespaces", Grade::Missing, says)
        }
        Err(error) => Row::new("namespaces", Grade::Missing, one_line(&error)),
    };
    vec![sock_diag, namespaces]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_go_on_below_themselves() {
        let rows = [Row::new("kernel", Grade::Works, "Linux 6.1"), Row::new("x", Grade::Missing, "word ".repeat(30))];
        let mut text = Vec::new();
        write_rows(&rows, &mut text).expect("written");
        let text = String::from_utf8(text).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "kernel              works     Linux 6.1");
        assert!(lines[1].starts_with("x                   missing   word"));
        assert!(lines[2].starts_with(&format!("{:INDENT$}word", "")));
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH));
    }
}
