"""Opens what the tracer writes in pyarrow, DuckDB and polars: python3 check.py TRACER DOCUMENT, as root, in a new network
namespace, where known traffic (traffic.py) is recorded and exported. DOCUMENT is docs/export.md, whose commands, queries
and programs are run as they stand there.
"""

import collections
import contextlib
import csv
import datetime
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import duckdb
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import traffic

TRACER, DOCUMENT = (pathlib.Path(arg).resolve() for arg in sys.argv[1:])
PATIENCE = 60
TIME = pa.timestamp("ns", "UTC")
SHOWN_HOSTILE = re.sub(r"[\x00-\x1f]", "\ufffd", traffic.HOSTILE)

LOG = {
    "v": pa.uint8(), "time": TIME, "mono_ns": pa.uint64(), "cookie": pa.uint64(), "netns": pa.uint32(),
    "local_addr": pa.string(), "local_port": pa.uint16(), "remote_addr": pa.string(), "remote_port": pa.uint16(),
    "old_state": pa.string(), "new_state": pa.string(), "in_state_ns": pa.uint64(), "pid": pa.uint32(),
    "comm": pa.string(), "uid": pa.uint32(), "inode": pa.uint64(), "cgroup": pa.string(), "error": pa.string(),
    "origin": pa.string(),
}
LOG_NULLABLE = {"cookie", "netns", "in_state_ns", "pid", "comm", "uid", "inode", "cgroup", "error"}


def struct(**fields):
    return pa.struct([pa.field(name, kind, nullable=False) for name, kind in fields.items()])


CONNECTIONS = {
    "v": pa.uint8(), "cookie": pa.uint64(), "netns": pa.uint32(), "local_addr": pa.string(), "local_port": pa.uint16(),
    "remote_addr": pa.string(), "remote_port": pa.uint16(), "opened": TIME, "ended": TIME, "duration_ns": pa.uint64(),
    "open": pa.string(), "close": pa.string(), "after_close": pa.string(),
    "states": struct(state=pa.string(), ns=pa.uint64(), certainty=pa.string()),
    "bytes_in": pa.uint64(), "bytes_out": pa.uint64(),
    "process": struct(pid=pa.uint32(), comm=pa.string(), source=pa.string()), "cgroup": pa.string(), "gap": pa.bool_(),
}
CONNECTIONS_NULLABLE = {"cookie", "netns", "opened", "ended", "close", "bytes_in", "bytes_out", "process", "cgroup"}

ACCEPTED = (
    traffic.LEAKS + traffic.SHOPPERS + traffic.SHOPPERS6 + traffic.HOSTILES + traffic.SLOW + traffic.RESETS + traffic.IDLE
)


def blocks(language):
    """The document's blocks in a language, each with the heading above it."""
    found, heading = [], None
    text = DOCUMENT.read_text()
    for match in re.finditer(r"^#+ (?P<heading>[^\n]*)$|^```(?P<language>\w+)\n(?P<code>.*?)^```$", text, re.M | re.S):
        heading = match["heading"] or heading
        if match["language"] == language:
            found.append((heading, match["code"]))
    return found


def until(what, done):
    begun = time.monotonic()
    while not done():
        if time.monotonic() - begun > PATIENCE:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.05)


def rows_so_far(path):
    """Kinds of the rows of a recording that is being written."""
    try:
        with pa.ipc.open_stream(path) as stream:
            return [kind for batch in stream for kind in batch.column("kind").to_pylist()]
    except (OSError, pa.ArrowInvalid):
        return []


def nanoseconds(text):
    """RFC 3339 with nine decimals, as ns since 1970."""
    whole, decimals = text.removesuffix("Z").split(".")
    seconds = datetime.datetime.fromisoformat(whole + "+00:00").timestamp()
    return int(seconds) * 10**9 + int(decimals)


def rows(table):
    """Rows of an Arrow table, times as ns since 1970."""
    columns = {
        name: (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
        for name, column in zip(table.column_names, table.columns)
    }
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def from_json(line, types):
    record = json.loads(line)
    return {name: nanoseconds(v) if v is not None and types[name] == TIME else v for name, v in record.items()}


def from_csv(record, types):
    def value(text, kind):
        if text == "":
            return None
        if kind == TIME:
            return nanoseconds(text)
        return text if kind == pa.string() else json.loads(text)

    return {name: value(text, types[name]) for name, text in record.items()}


def count(source, *params):
    return duckdb.execute(f"SELECT count(*) FROM {source}", params).fetchall()[0][0]


def tracer(*args):
    done = subprocess.run([TRACER, *args], capture_output=True, check=True, text=True)
    return done.stdout, done.stderr


class Export(unittest.TestCase):
    maxDiff = 4000

    @classmethod
    def setUpClass(cls):
        traffic_program = pathlib.Path(traffic.__file__)
        with contextlib.ExitStack() as ended:
            world = subprocess.Popen(
                [sys.executable, traffic_program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            ended.callback(world.wait)
            ended.callback(world.stdin.close)
            ended.callback(world.stdout.close)
            assert world.stdout.readline() == "ready\n", "no traffic"
            recorder = subprocess.Popen(
                [TRACER, "record", "host.arrows", "--netns", "self"], stderr=subprocess.PIPE, text=True
            )
            ended.callback(recorder.kill)
            until("the first dump of sockets", lambda: "dump" in rows_so_far("host.arrows"))
            world.stdin.write("go\n")
            world.stdin.flush()
            assert world.stdout.readline() == "done\n", "no traffic"
            recorder.send_signal(signal.SIGINT)
            _, cls.told = recorder.communicate(timeout=PATIENCE)
            assert recorder.returncode == 0, cls.told

        path = f"{TRACER.parent}:{os.environ['PATH']}"
        for _, commands in blocks("sh"):
            subprocess.run(["sh", "-eu"], input=commands, check=True, text=True, env={**os.environ, "PATH": path})
        for command, options in [("log", []), ("connections", ["--open"])]:
            for form in ["csv", "jsonl", "arrow"]:
                tracer(command, "--from", "host.arrows", *options, "--format", form, "-o", f"{command}.{form}")
        cls.recording = pa.ipc.open_stream("host.arrows").read_all()
        cls.transitions = cls.recording.filter(pc.equal(cls.recording["kind"], "transition"))

    def lines(self, command, types):
        return [from_json(line, types) for line in pathlib.Path(f"{command}.jsonl").read_text().splitlines()]

    def test_counts(self):
        seen = int(re.search(r"^seen (\d+) transitions, dropped 0, missed 0, repaired 0$", self.told, re.M)[1])
        counted, told_again = tracer("log", "--from", "host.arrows", "--format", "jsonl")
        self.assertEqual(told_again, self.told)
        self.assertEqual(counted.count("\n"), seen)
        self.assertEqual(len(self.transitions), seen)
        self.assertEqual(pq.read_metadata("log.parquet").num_rows, seen)
        for reader in ["'log.parquet'", "read_csv('log.csv')", "read_json('log.jsonl')"]:
            self.assertEqual(count(reader), seen)
        for frame in [
            polars.read_parquet("log.parquet"), polars.read_ipc_stream("log.arrow"), polars.read_csv("log.csv"),
            polars.read_ipc_stream("host.arrows").filter(polars.col("kind") == "transition"),
        ]:
            self.assertEqual(frame.height, seen)
        connections = 2 * ACCEPTED + traffic.REFUSED
        for reader in ["'connections.parquet'", "read_csv('connections.csv')", "read_json('connections.jsonl')"]:
            self.assertEqual(count(reader), connections)

    def check_schema(self, schema, types, nullable):
        states = types.get("states")
        for name, kind in types.items():
            kind = pa.list_(pa.field("item", states, nullable=False)) if name == "states" else kind
            found = schema.field(name)
            if name == "states":
                self.assertEqual(found.type.value_type, states)
            else:
                self.assertEqual(found.type, kind, name)
            self.assertEqual(found.nullable, name in nullable, name)

    def test_types(self):
        for command, types, nullable in [
            ("log", LOG, LOG_NULLABLE), ("connections", CONNECTIONS, CONNECTIONS_NULLABLE)
        ]:
            for schema in [pq.read_schema(f"{command}.parquet"), pa.ipc.open_stream(f"{command}.arrow").schema]:
                self.assertEqual(schema.names, list(types))
                self.check_schema(schema, types, nullable)
        names = self.recording.schema.names
        self.assertEqual(names[: 1 + len(LOG)], ["kind", *LOG])
        # What is no transition leaves most of the log's columns empty.
        self.check_schema(self.recording.schema, LOG, set(LOG))

        types = dict(duckdb.sql("SELECT column_name, column_type FROM (DESCRIBE FROM 'connections.parquet')").fetchall())
        self.assertEqual(types["states"], "STRUCT(state VARCHAR, ns UBIGINT, certainty VARCHAR)[]")
        self.assertEqual(types["process"], 'STRUCT(pid UINTEGER, comm VARCHAR, "source" VARCHAR)')
        self.assertEqual((types["cookie"], types["remote_port"], types["gap"]), ("UBIGINT", "USMALLINT", "BOOLEAN"))
        self.assertTrue(types["opened"].startswith("TIMESTAMP"), types["opened"])
        self.assertEqual(polars.read_parquet_schema("log.parquet")["time"], polars.Datetime("ns", "UTC"))

    def check_rows(self, found, expected, name):
        """One by one: unittest takes minutes to tell long lists apart."""
        self.assertEqual(len(found), len(expected), name)
        for one, other in zip(found, expected):
            self.assertEqual(one, other, name)

    def test_values_are_the_same_in_each_format(self):
        for command, types in [("log", LOG), ("connections", CONNECTIONS)]:
            expected = self.lines(command, types)
            self.assertTrue(expected)
            for name, found in [
                ("parquet", rows(pq.read_table(f"{command}.parquet"))),
                ("arrow", rows(pa.ipc.open_stream(f"{command}.arrow").read_all())),
            ]:
                self.check_rows(found, expected, name)
            with open(f"{command}.csv", newline="") as file:
                self.check_rows([from_csv(record, types) for record in csv.DictReader(file)], expected, "csv")
        self.check_rows(rows(self.transitions.select(list(LOG))), self.lines("log", LOG), "recording")

    def test_a_hostile_name_is_the_same_everywhere(self):
        for reader in ["'log.parquet'", "read_csv('log.csv')", "read_json('log.jsonl')"]:
            named = f"{reader} WHERE comm = $1 AND new_state = 'SYN_SENT'"
            self.assertEqual(count(named, SHOWN_HOSTILE), traffic.HOSTILES)
        for command in ["log", "connections"]:
            for form in ["csv", "jsonl", "table"]:
                text, _ = tracer(command, "--from", "host.arrows", "--format", form)
                self.assertIsNone(re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text), f"{command} {form}")

    def test_metadata_says_which_run_it_was(self):
        about = {key.decode(): value.decode() for key, value in self.recording.schema.metadata.items()}
        self.assertEqual((about["tracer.host"], about["tracer.kernel"]), (os.uname().nodename, os.uname().release))
        self.assertEqual(about["tracer.boot_id"], pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        self.assertEqual(about["tracer.filters"], f"--netns {os.stat('/proc/self/ns/net').st_ino}")
        self.assertEqual(about["tracer.version"], tracer("--version")[0].split()[1])
        self.assertEqual((about["tracer.format"], about["tracer.part"]), ("1", "0"))

    def test_nobody_else_may_read_it(self):
        for file in pathlib.Path().iterdir():
            if file.suffix in {".arrow", ".arrows", ".parquet", ".csv", ".jsonl"}:
                self.assertEqual(file.stat().st_mode & 0o777, 0o600, file)

    def test_the_questions_of_the_document(self):
        answers = dict(QUESTIONS)
        asked = blocks("sql")
        self.assertEqual([heading for heading, _ in asked], list(answers), "each question has its answer here")
        for heading, query in asked:
            with self.subTest(heading):
                answers[heading](self, rows(duckdb.sql(query).to_arrow_table()))

    def test_the_programs_of_the_document(self):
        programs = blocks("python")
        self.assertEqual(len(programs), 2)
        for _, program in programs:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(program, DOCUMENT, "exec"), {})
            self.assertIn("transition" if "duckdb" in program else "SYN_SENT", printed.getvalue())

    def leaks(self, answer):
        self.assertEqual([(row["comm"], row["stuck"]) for row in answer], [("leaky_srv", traffic.LEAKS)])
        self.assertGreater(answer[0]["oldest_s"], 1)

    def kept_ports(self, answer):
        destinations = {(row["remote_addr"], row["remote_port"]): (row["time_wait"], row["at_once"]) for row in answer}
        expected = {
            (traffic.V4, traffic.WEB_PORT): traffic.SHOPPERS + traffic.HOSTILES,
            (traffic.V6, traffic.WEB_PORT): traffic.SHOPPERS6,
            (traffic.V4, traffic.SLOW_PORT): traffic.SLOW,
        }
        self.assertEqual(destinations, {destination: (count, count) for destination, count in expected.items()})

    def handshakes(self, answer):
        self.assertEqual(len(answer), 20)
        self.assertEqual((answer[0]["comm"], answer[0]["remote_port"]), ("slow_dialer", traffic.SLOW_PORT))
        self.assertGreater(answer[0]["ms"], 900)
        self.assertLess(answer[1]["ms"], 900)

    def resets(self, answer):
        found = {(row["close"], row["comm"]): (row["connections"], row["peers"]) for row in answer}
        sent, received = ("reset_sent", "resetter"), ("reset_received", "victim_srv")
        self.assertEqual(found, {sent: (traffic.RESETS, 1), received: (traffic.RESETS, 1)})

    def failures(self, answer):
        found = [(row["comm"], row["remote_port"], row["close"], row["attempts"]) for row in answer]
        self.assertEqual(found, [("refused_one", traffic.CLOSED_PORT, "refused", traffic.REFUSED)])

    def churn(self, answer):
        found = {(row["comm"], row["remote_port"]): (row["connections"], row["bytes_out"]) for row in answer}
        hello = len("hello")
        self.assertEqual(found, {
            ("shopper", traffic.WEB_PORT): (traffic.SHOPPERS, hello * traffic.SHOPPERS),
            ("shopper6", traffic.WEB_PORT): (traffic.SHOPPERS6, hello * traffic.SHOPPERS6),
            ("visitor", traffic.LEAKY_PORT): (traffic.LEAKS, hello * traffic.LEAKS),
            ("resetter", traffic.RESET_PORT): (traffic.RESETS, hello * traffic.RESETS),
            (SHOWN_HOSTILE, traffic.WEB_PORT): (traffic.HOSTILES, hello * traffic.HOSTILES),
            ("slow_dialer", traffic.SLOW_PORT): (traffic.SLOW, 0),
        })

    def rates(self, answer):
        self.assertEqual([row["second"] for row in answer], sorted(row["second"] for row in answer))
        sums = collections.Counter()
        for row in answer:
            sums.update({name: row[name] for name in ["connected", "accepted", "failed"]})
        begun = ACCEPTED - traffic.IDLE
        self.assertEqual(sums, {"connected": begun, "accepted": begun, "failed": traffic.REFUSED})

    def loss(self, answer):
        self.assertEqual(answer, [{
            "inferred_transitions": 0, "with_a_gap": 0, "began_before": 2 * traffic.IDLE,
            "with_an_unknown_time": 0, "connections": 2 * ACCEPTED + traffic.REFUSED,
        }])


QUESTIONS = [
    ("Which process leaks", Export.leaks),
    ("Which destination keeps local ports", Export.kept_ports),
    ("Which handshakes are slow", Export.handshakes),
    ("Who resets", Export.resets),
    ("Which connects fail", Export.failures),
    ("Who opens a connection for each request", Export.churn),
    ("How many connections in each second", Export.rates),
    ("What was missed", Export.loss),
]

if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="tracer-export-") as folder:
        os.chdir(folder)
        unittest.main(argv=sys.argv[:1], verbosity=2)
