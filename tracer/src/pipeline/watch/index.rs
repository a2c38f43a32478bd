//! Reads recordings as fast as can be, for what the time bar needs: the end, and when findings come up.

use anyhow::{Context, Result};
use rustc_hash::FxHashSet;

use crate::{
    config::{Sampling, Trace, Watch},
    core::finding::Thresholds,
    pipeline::{
        follow::{Known, View},
        replay::{self, Replayed},
    },
    recording::Metadata,
    screen::{
        About,
        picture::{Mark, Recording},
        state::finding_key,
    },
};

/// Findings that are marked at most.
const MARKS: usize = 10_000;

struct Index<'a> {
    thresholds: &'a Thresholds,
    metadata: Option<Metadata>,
    marks: Vec<Mark>,
    /// Those of the sample before.
    there: FxHashSet<String>,
}

impl View for Index<'_> {
    fn begins(&mut self, metadata: &Metadata) -> Result<()> {
        self.metadata = Some(metadata.clone());
        Ok(())
    }

    fn sampled(&mut self, known: &mut Known<'_>) -> Result<()> {
        let found = known.findings(self.thresholds).unwrap_or_default();
        let before = std::mem::take(&mut self.there);
        for finding in found {
            let key = finding_key(&finding);
            if !before.contains(&key) && self.marks.len() < MARKS {
                // Whoever goes there wants to be behind the sample.
                let mono_ns = known.now_ns.saturating_add(1);
                self.marks.push(Mark { mono_ns, severity: finding.severity, title: finding.title });
            }
            self.there.insert(key);
        }
        Ok(())
    }

    fn wants_one_run(&self) -> bool {
        true
    }
}

pub(super) fn read(config: &Watch, name: String) -> Result<About> {
    let mut index =
        Index { thresholds: &config.thresholds, metadata: None, marks: Vec::new(), there: FxHashSet::default() };
    let trace = Trace { sampling: Sampling::Shown, ..config.trace.clone() };
    // Of a damage the replay tells, once all before it was shown.
    let Replayed { followed, .. } = replay::run(&trace, &mut index)?;
    let metadata = index.metadata.context("no recording to read")?;
    Ok(About {
        host: metadata.host,
        kernel: metadata.kernel,
        filters: [metadata.filters, config.filtered.clone()].join(" ").trim().to_owned(),
        recording: Some(Recording {
            name,
            began_ns: metadata.started_ns,
            ended_ns: Some(followed.ended_ns.max(metadata.started_ns)),
            marks: index.marks,
            is_pipe: false,
        }),
    })
}
