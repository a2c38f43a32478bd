//! The words of the manual pages.

/// What is said of the program, or of a command, besides its options.
#[derive(Clone, Copy)]
pub(super) struct Page {
    /// The line after the name, where clap has none.
    pub(super) name: &'static str,
    pub(super) description: &'static [&'static str],
    /// What for, and what is typed.
    pub(super) examples: &'static [(&'static str, &'static str)],
}

pub(super) const PROGRAM: Page = Page {
    name: "follow every TCP connection of this host, and say which program leaks sockets",
    description: &[
        "Follows every TCP connection of a Linux host through the kernel's own state transitions, from the first SYN to \
         what is left after the close. Says which program leaks sockets and why, and which destination runs out of local \
         ports.",
        "A small BPF program reports each transition; everything else happens in this process. It needs Linux 5.8 or \
         later, and root or the capabilities below. tracer diagnose --snapshot and whatever reads a recording (--from) \
         need neither BPF nor root.",
        "Connections that were there before are found at the start, in all network namespaces. A run ends after \
         --duration, after --count records, at Ctrl-C, or when nobody reads its output any more. It ends with one line on \
         standard error that accounts for every event: \"seen N transitions, dropped N, missed N, repaired N\".",
    ],
    examples: &[
        ("What is wrong on this host?", "sudo tracer diagnose"),
        ("And what goes on there?", "sudo tracer watch"),
        ("The same at once, without BPF:", "sudo tracer diagnose --snapshot"),
        ("What does a finding mean, and what is to be done?", "tracer explain close_wait"),
        ("Every transition on port 5432, as it happens:", "sudo tracer log --port 5432"),
        (
            "Record here, look elsewhere:",
            "sudo tracer record --duration 10m host.arrows\ntracer diagnose --from host.arrows",
        ),
    ],
};

/// What is said of a command.
pub(super) fn of(command: &str) -> Page {
    match command {
        "watch" => WATCH,
        "log" => LOG,
        "connections" => CONNECTIONS,
        "diagnose" => DIAGNOSE,
        "record" => RECORD,
        "check" => CHECK,
        "explain" => EXPLAIN,
        "completions" => COMPLETIONS,
        "man" => MAN,
        _ => Page { name: "", description: &[], examples: &[] },
    }
}

const WATCH: Page = Page {
    name: "",
    description: &[
        "A screen to leave open while a server misbehaves: connections per state with their last minutes, rates and loss;          findings, down to the sockets and their descriptors; connections, sorted and filtered, each with its life as a          timeline; local ports that are left per destination; listeners; transitions as they come. The key ? lists the          keys, which are those of less and htop. tracer without a command opens it on a terminal.",
        "With --from it replays a recording: with a time bar, pause, single steps, speeds, and jumps to the findings. The          recording is read once before that, unless it comes out of a pipe.",
        "It draws in UTF-8, or in ASCII where the locale is no other; with as many colours as TERM and COLORTERM promise,          with none where NO_COLOR is set. The key e writes what is shown to a new file in the folder that it was started          in; for that, started as root in a folder that belongs to somebody else, it keeps CAP_DAC_OVERRIDE (and          CAP_FOWNER, where the folder is sticky).",
    ],
    examples: &[
        ("A web server, from the outside:", "sudo tracer watch --local-port 80,443"),
        ("Sockets are stuck after ten seconds:", "sudo tracer watch --close-wait-age 10s"),
        ("What happened last night:", "tracer watch --from /var/lib/tracer"),
    ],
};

const LOG: Page = Page {
    name: "",
    description: &[
        "A record for each change of a TCP socket's state, in the kernel's order and within a twentieth of a second. The \
         process is shown where the kernel acts for it, and nowhere else: most transitions happen in interrupts.",
        "Ports, address family and network namespace are filtered in the kernel, everything else here; a connection's \
         first event is not lost because its port was not known yet.",
        "Columns of the other formats are in docs/export.md; records only ever gain fields.",
    ],
    examples: &[
        ("Connections to a database, from the SYN on:", "sudo tracer log --remote-port 5432"),
        (
            "Whatever comes into CLOSE_WAIT, for a script:",
            "sudo tracer log --state CLOSE_WAIT --format jsonl | jq -r .comm",
        ),
        ("Out of a recording, one process alone:", "tracer log --from host.arrows --pid 4121"),
    ],
};

const CONNECTIONS: Page = Page {
    name: "",
    description: &[
        "A record for each connection when it ends: how it was opened and closed and by whom, how long it was in each \
         state, the bytes in and out, and what the kernel keeps of it afterwards. tracer explain has each word.",
        "With --open, those that are still there at the end of the run follow. Times are marked exact, at_least (it began \
         before the run) or unknown (an event was missed).",
    ],
    examples: &[
        ("The next hundred that end:", "sudo tracer connections --count 100"),
        (
            "A minute of a network, for DuckDB:",
            "sudo tracer connections --address 10.0.0.0/8 --duration 1m --format parquet -o net.parquet",
        ),
        ("All that are open now:", "sudo tracer connections --open --duration 0s"),
    ],
};

const DIAGNOSE: Page = Page {
    name: "",
    description: &[
        "Watches, then reports what is wrong: sockets stuck in CLOSE_WAIT with the cause, destinations that use up the \
         local ports, a full TIME_WAIT table, descriptors of connections that are long over, listeners that do not accept, \
         peers that do not close, connects that fail, resets, churn, and ports blocked after a restart.",
        "Each finding names the process, its container or unit, the sockets and descriptors, how sure it is and what to \
         do. --snapshot takes the kernel's lists as they are: at once, without BPF, and without root for what you may see; \
         rates, failures and resets are not known then.",
    ],
    examples: &[
        ("A minute instead of ten seconds:", "sudo tracer diagnose --duration 1m"),
        ("For a cron job that is to speak up:", "sudo tracer diagnose --fail-on warning --format json -o report.json"),
        ("What a recording shows:", "tracer diagnose --from /var/lib/tracer"),
    ],
};

const RECORD: Page = Page {
    name: "",
    description: &[
        "Writes everything that a trace is fed with, so that log, connections and diagnose with --from say what they would \
         have said live, with any filter and wherever you like. A recording is an Arrow IPC stream with zstd, which pyarrow \
         and polars open as it is.",
        "--rotate-size and --rotate-every make a row of numbered files: trace.arrows becomes trace.000000.arrows, \
         trace.000001.arrows and so on. Each can be read alone, and --from takes the folder. --keep deletes the oldest. Files \
         can be read by their owner alone.",
        "The unit tracer-record.service does this all the time, into /var/lib/tracer; it is not enabled by itself. \
         Started as root in a folder that belongs to somebody else, a run that rotates keeps CAP_DAC_OVERRIDE (and \
         CAP_FOWNER, where the folder is sticky) for the files to come.",
    ],
    examples: &[
        ("Ten minutes:", "sudo tracer record --duration 10m host.arrows"),
        ("The last two days, by the hour:", "sudo tracer record --rotate-every 1h --keep 48 /srv/trace.arrows"),
        ("All the time:", "sudo systemctl enable --now tracer-record\nsudo tracer diagnose --from /var/lib/tracer"),
    ],
};

const CHECK: Page = Page {
    name: "",
    description: &[
        "Looks at everything that a trace stands on, and prints a line for each: works, missing with what that costs, or \
         FAILS. The last word have the tracepoints themselves: each is attached, a connection over loopback is made and \
         reset, and what is reported of it is compared field by field with what the program knows of it.",
        "Each trace begins with that connection, too. Where a field is wrong, as after a change of the kernel that this program \
         does not know, nothing is traced.",
        "The status is 0 when a trace works, whatever it has to go without, and 2 when none does.",
    ],
    examples: &[("Before it is rolled out:", "sudo tracer check")],
};

const EXPLAIN: Page = Page {
    name: "",
    description: &[
        "Explains every word that the other commands print: states, findings, causes, ways to open and to close, and what \
         qualifies a time. Without a topic it lists them. The text is that of docs/states.md and docs/findings.md.",
    ],
    examples: &[
        ("A state:", "tracer explain CLOSE_WAIT"),
        ("A cause that diagnose has named:", "tracer explain eof_read_not_closed"),
    ],
};

const COMPLETIONS: Page = Page {
    name: "",
    description: &[
        "Prints a script that lets a shell complete commands, options and topics. The Debian package brings \
                    those of bash, zsh and fish.",
    ],
    examples: &[
        ("For this bash:", "source <(tracer completions bash)"),
        ("For fish, from now on:", "tracer completions fish > ~/.config/fish/completions/tracer.fish"),
    ],
};

const MAN: Page = Page {
    name: "",
    description: &["Prints a manual page as roff source: that of the program, or of a command."],
    examples: &[("Without installing it:", "tracer man record | man -l -")],
};

pub(super) const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "Fine; also when the run was ended by SIGINT or SIGTERM, or its reader went away."),
    ("1", "tracer diagnose found something at or above --fail-on."),
    ("2", "An error, told in one line on standard error."),
];

pub(super) const ENVIRONMENT: &[(&str, &str)] =
    &[("NO_COLOR", "When set and not empty, reports have no colour (no-color.org).")];

pub(super) const FILES: &[(&str, &str)] = &[
    (
        "/sys/kernel/btf/vmlinux",
        "The kernel's types, which tell where in its memory everything is. Without them only states, \
      addresses, ports and times are known.",
    ),
    ("/sys/kernel/tracing", "tracefs, for the classic tracepoints: without the types, or with --attach tracepoint."),
    ("/run/netns, /run/docker/netns", "Names of network namespaces."),
    ("/var/lib/tracer", "Where tracer-record.service puts its recordings."),
];

pub(super) const CAPABILITIES: &[&str] = &[
    "Root has all that it takes. Anybody else needs CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN) to load the programs. Once \
     they are attached, every capability is given up for good but those of the following that the run still needs: a run that \
     only reads a recording keeps CAP_DAC_READ_SEARCH alone, log and connections do without CAP_NET_ADMIN, and with --netns \
     self without CAP_SYS_ADMIN too. Before Linux 5.19 CAP_BPF may have to stay, to read the counters of loss. --verbose says \
     what is kept. What is missing is told on standard error, and the run goes on:",
];

pub(super) const SEE_ALSO: &[&str] = &[
    "tracer",
    "tracer-log",
    "tracer-connections",
    "tracer-diagnose",
    "tracer-record",
    "tracer-check",
    "tracer-explain",
    "ss(8)",
    "tcp(7)",
    "capabilities(7)",
    "systemd.service(5)",
];

pub(super) const DOCUMENTS: &[&str] =
    &["The documents are in /usr/share/doc/tracer: states.md, findings.md, export.md, \
                                        kernel.md, performance.md, service.md."];
