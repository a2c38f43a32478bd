//! What a run of the test program came to, by what it printed.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, Result};

/// Said by the tests of each way in that a scenario has passed with (tracer/tests/kernel/lab/attempts.rs).
const PASSED_WITH: &str = "passed with ";
/// Said of what this kernel does in another way than the newest (tracer/tests/kernel/lab.rs).
const DIFFERS: &str = "this kernel: ";

/// By test.
#[derive(Debug, Default)]
pub(super) struct Results {
    passed: BTreeMap<String, Vec<String>>,
    failed: Vec<String>,
    /// What this kernel does differently, by test.
    differences: Vec<(String, String)>,
}

/// Whether a line is for whoever waits.
pub(super) fn is_worth_showing(line: &str) -> bool {
    line.starts_with("test result:") || line.ends_with("... FAILED") || line.contains("panicked at")
}

impl Results {
    /// An error when the tests did not come to their end.
    pub(super) fn of(lines: &[String]) -> Result<Self> {
        lines.iter().find(|line| line.starts_with("test result:")).context("the tests did not come to their end")?;
        let mut results = Self::default();
        let mut section = None;
        for line in lines {
            // The console may have something else to say at the beginning of a line.
            let test = line.split_once("test ").and_then(|(_, rest)| rest.rsplit_once(" ... "));
            match test {
                Some((name, "ok")) => drop(results.passed.entry(name.to_owned()).or_default()),
                Some((name, "FAILED")) => results.failed.push(name.to_owned()),
                _ => {}
            }
            if let Some(name) = line.strip_prefix("---- ").and_then(|line| line.strip_suffix(" stdout ----")) {
                section = Some(name.to_owned());
            }
            let Some(name) = &section else { continue };
            if let (Some(way), Some(ways)) = (line.strip_prefix(PASSED_WITH), results.passed.get_mut(name)) {
                if !ways.iter().any(|known| known == way) {
                    ways.push(way.to_owned());
                }
            } else if let Some(difference) = line.strip_prefix(DIFFERS) {
                let difference = (name.clone(), difference.to_owned());
                if !results.differences.contains(&difference) {
                    results.differences.push(difference);
                }
            }
        }
        Ok(results)
    }

    pub(super) fn is_good(&self) -> bool {
        self.failed.is_empty() && !self.passed.is_empty()
    }

    fn passed_with(&self, way: &str) -> usize {
        self.passed.values().filter(|ways| ways.iter().any(|known| known == way)).count()
    }

    /// One line.
    pub(super) fn summary(&self) -> String {
        format!(
            "{} tests passed ({} with tp_btf, {} with the classic tracepoint), {} failed, {} differences",
            self.passed.len(),
            self.passed_with("Btf"),
            self.passed_with("Tracepoint"),
            self.failed.len(),
            self.differences.len()
        )
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, ways) in &self.passed {
            writeln!(f, "ok      {name}  {}", ways.join(" "))?;
        }
        for name in &self.failed {
            writeln!(f, "FAILED  {name}")?;
        }
        for (name, difference) in &self.differences {
            writeln!(f, "differs {name}: {difference}")?;
        }
        write!(f, "{}", self.summary())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_is_told_with_the_ways_in() {
        let text = "test aborts::x ... ok\r\n[1.0] test closing::y ... FAILED\ntest child::z ... ok\n\nsuccesses:\n\n\
                    ---- aborts::x stdout ----\npassed with Btf\npassed with Tracepoint\nthis kernel: has none\n\
                    test result: FAILED. 2 passed; 1 failed\n";
        let lines: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
        let results = Results::of(&lines).expect("results");
        assert!(!results.is_good());
        assert_eq!(results.failed, ["closing::y"]);
        assert_eq!(
            results.summary(),
            "2 tests passed (1 with tp_btf, 1 with the classic tracepoint), 1 failed, 1 differences"
        );
        assert!(Results::of(&lines[..3]).is_err());
    }
}
