//! Two runs side by side see the same things at slightly different times. What they say is compared by name: times of
//! one and the same event have to be close, what depends on when somebody looked is left out, all else has to be equal.

use serde_json::{Map, Value};

/// How far apart two programs may hear of the same event, ns: a busy machine may interrupt between the two.
const APART_NS: u64 = 500_000_000;

/// Both have one, or none has.
const OF_ONE_RUN: [&str; 8] = ["time", "opened", "ended", "oldest_ns", "age_ns", "growth_per_min", "eta_s", "window"];

/// Times of events.
const TIMES: [&str; 4] = ["mono_ns", "in_state_ns", "duration_ns", "ns"];

/// Units of time, and how rates are told.
const UNITS: [&str; 7] = ["ms", "s", "min", "h", "d", "a", "connections/s"];

/// What makes the two different, if anything does.
pub(crate) fn difference(one: &Value, other: &Value) -> Option<String> {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => in_objects(one, other),
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            one.iter().zip(other).find_map(|(one, other)| difference(one, other))
        }
        (Value::String(one), Value::String(other)) if timeless(one) == timeless(other) => None,
        _ if one == other => None,
        _ => Some(format!("{one} and {other}")),
    }
}

fn in_objects(one: &Map<String, Value>, other: &Map<String, Value>) -> Option<String> {
    if one.contains_key("comm") && one.get("source") != other.get("source") {
        // Whoever still looks who holds what sees more than who comes later, and a thread's name besides the process's.
        return (one["pid"] != other["pid"]).then(|| format!("{one:?} and {other:?}"));
    }
    let names = |object: &Map<String, Value>| object.keys().cloned().collect::<Vec<_>>();
    if names(one) != names(other) {
        return Some(format!("{:?} and {:?}", names(one), names(other)));
    }
    // Of more sockets than are shown, those that are oldest by a clock of milliseconds, which may be any.
    let is_sample =
        |name: &str| name == "sockets" && one["count"].as_u64() > one[name].as_array().map(|all| all.len() as u64);
    // How long it has been in a state that began before anybody looked, or lasts until the run ends.
    let uncertain = one.get("certainty").is_some_and(|certainty| certainty != "exact")
        || ["opened", "ended"].iter().any(|name| one.get(*name).is_some_and(Value::is_null));
    one.iter().find_map(|(name, value)| {
        let (name, counterpart) = (name.as_str(), &other[name]);
        let differs = if is_sample(name) {
            let length = |value: &Value| value.as_array().map(Vec::len);
            (length(value) != length(counterpart)).then(|| format!("{value} and {counterpart}"))
        } else if name == "sockets" {
            // The oldest first, by a clock of milliseconds.
            difference(&by_cookie(value), &by_cookie(counterpart))
        } else if name == "evidence" {
            difference(&without_children(value), &without_children(counterpart))
        } else if OF_ONE_RUN.contains(&name) || (uncertain && TIMES.contains(&name)) {
            (value.is_null() != counterpart.is_null()).then(|| format!("{value} and {counterpart}"))
        } else if TIMES.contains(&name) && value.is_number() && counterpart.is_number() {
            let ns = |value: &Value| value.as_u64().expect("ns");
            (ns(value).abs_diff(ns(counterpart)) > APART_NS).then(|| format!("{value} and {counterpart}"))
        } else {
            difference(value, counterpart)
        };
        differs.map(|differs| format!("{name}: {differs}"))
    })
}

/// Between fork() and exec() a child of the tests' process, which starts programs all the time, holds its sockets too.
fn without_children(evidence: &Value) -> Value {
    let is_of_child = |line: &Value| line.as_str().is_some_and(|line| line.contains(" shared by "));
    evidence.as_array().into_iter().flatten().filter(|line| !is_of_child(line)).cloned().collect()
}

fn by_cookie(sockets: &Value) -> Value {
    let mut sockets = sockets.as_array().cloned().unwrap_or_default();
    sockets
        .sort_by_key(|socket| (socket["cookie"].as_u64(), socket["local"].to_string(), socket["remote"].to_string()));
    Value::Array(sockets)
}

/// The text without its times and rates (`0.1 ms`, `3s`, `70 a second`), and without what else the test's own process
/// does while the two look.
fn timeless(text: &str) -> String {
    if let Some((before, _)) = text.split_once("descriptors open: ") {
        return format!("{before}descriptors open");
    }
    let words: Vec<&str> = text.split(' ').map(|word| word.trim_end_matches([',', ':', ';'])).collect();
    let is_number = |text: &str| text.parse::<f64>().is_ok();
    let is_time = |at: usize| {
        let unit = |unit: &&str| words[at].strip_suffix(*unit).is_some_and(is_number);
        UNITS.iter().any(unit) || (is_number(words[at]) && words.get(at + 1).is_some_and(|next| UNITS.contains(next)))
    };
    (0..words.len()).map(|at| if is_time(at) { "…" } else { words[at] }).collect::<Vec<_>>().join(" ")
}

/// The same in the same order.
#[track_caller]
pub(crate) fn assert_alike(one: &[Value], other: &[Value]) {
    for (one, other) in one.iter().zip(other) {
        if let Some(difference) = difference(one, other) {
            panic!("{difference}\nin {one:#}\nand {other:#}");
        }
    }
    let (few, many) = if one.len() < other.len() { (one, other) } else { (other, one) };
    assert_eq!(one.len(), other.len(), "only one of the two has {:#?}", &many[few.len()..]);
}

/// The same, whatever the order in which each run heard of it from several processors.
#[track_caller]
pub(crate) fn assert_alike_in_any_order(one: &[Value], other: &[Value]) {
    let sorted = |records: &[Value]| {
        let mut records = records.to_vec();
        records.sort_by_key(|record| {
            // Of one socket in the order of time; a socket may have several connections.
            let text = |name: &str| record.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            (record["cookie"].as_u64(), record.get("mono_ns").and_then(Value::as_u64), text("ended"))
        });
        records
    };
    assert_alike(&sorted(one), &sorted(other));
}
