//! What the documents say about the words that the tracer prints: docs/states.md and docs/findings.md are the text, this
//! finds a topic in it. `tracer explain` shows a topic, the findings take their remedy from one; neither has a text of its own.
//!
//! Of Markdown it knows what these two documents use: headings, paragraphs, tables, indented code. How a topic looks on a
//! terminal is `explain`'s business.

use std::sync::LazyLock;

use super::state::State;

const DOCUMENTS: [&str; 2] = [include_str!("../../../docs/states.md"), include_str!("../../../docs/findings.md")];

static TOPICS: LazyLock<Vec<Topic>> = LazyLock::new(|| DOCUMENTS.into_iter().flat_map(parse).collect());

/// How the paragraph begins that says what to do.
const REMEDY: &str = "**Remedy.** ";

/// A section whose heading is a word that the tracer prints.
#[derive(Debug)]
pub struct Topic {
    /// The word.
    pub name: &'static str,
    /// Of which part of the documents: `States`, `Findings` …
    pub part: &'static str,
    /// The topic that this is a case of.
    pub case_of: Option<&'static str>,
    text: &'static str,
}

/// A piece of a topic, without the marks of Markdown.
#[derive(Debug, PartialEq, Eq)]
pub enum Block {
    /// Words to be wrapped.
    Paragraph(String),
    /// Lines to be left as they are.
    Code(Vec<&'static str>),
    /// Rows of cells, the header first.
    Table(Vec<Vec<String>>),
}

impl Topic {
    /// The text, piece by piece.
    #[must_use]
    pub fn blocks(&self) -> Vec<Block> {
        self.pieces()
            .map(|piece| match piece.as_bytes()[0] {
                b' ' => Block::Code(piece.lines().map(|line| line.strip_prefix("    ").unwrap_or(line)).collect()),
                b'|' => Block::Table(piece.lines().filter(|line| !line.starts_with("|---")).map(cells).collect()),
                _ => Block::Paragraph(plain(piece)),
            })
            .collect()
    }

    /// The first sentence.
    #[must_use]
    pub fn summary(&self) -> String {
        let text = self.pieces().next().map(plain).unwrap_or_default();
        text.split_inclusive(". ").next().unwrap_or_default().trim_end().to_owned()
    }

    /// What to do, where the topic says it.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        self.pieces().find_map(|piece| piece.strip_prefix(REMEDY)).map(plain)
    }

    /// Names of the topics that belong to this one: those it is a case of, its cases, and those that it speaks of.
    #[must_use]
    pub fn related(&self) -> Vec<&'static str> {
        let spoken_of: Vec<&str> = self.text.split('`').skip(1).step_by(2).collect();
        let is_related = |other: &&Topic| {
            let is_near = self.case_of == Some(other.name) || other.case_of == Some(self.name);
            other.name != self.name && (is_near || spoken_of.contains(&other.name))
        };
        let mut related: Vec<&str> = Vec::new();
        for other in TOPICS.iter().filter(is_related) {
            if !related.contains(&other.name) {
                related.push(other.name);
            }
        }
        related
    }

    fn pieces(&self) -> impl Iterator<Item = &'static str> {
        self.text.split("\n\n").map(|piece| piece.trim_matches('\n')).filter(|piece| !piece.is_empty())
    }
}

/// All topics, in the order of the documents.
#[must_use]
pub fn topics() -> &'static [Topic] {
    &TOPICS
}

/// The topics of that name. Some words mean two things, such as `active` of opening and of closing; CLOSE_WAIT (the state) and
/// close_wait (the finding) differ by case, so that counts unless it leads nowhere. The other spellings of states lead
/// there, too.
#[must_use]
pub fn find(name: &str) -> Vec<&'static Topic> {
    let name = name.replace('-', "_");
    let state = State::from_name(&name).and_then(State::name);
    let ways: [&dyn Fn(&str) -> bool; 3] =
        [&|known| known == name, &|known| known.eq_ignore_ascii_case(&name), &|known| Some(known) == state];
    let found = ways.map(|leads_to| TOPICS.iter().filter(|topic| leads_to(topic.name)).collect::<Vec<_>>());
    found.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
}

/// What to do about what the topic of that name is about.
#[must_use]
pub fn remedy(name: &str) -> Option<String> {
    TOPICS.iter().filter(|topic| topic.name == name).find_map(Topic::remedy)
}

fn parse(document: &'static str) -> Vec<Topic> {
    let mut topics = Vec::new();
    let mut part = "";
    let mut above: Option<(usize, &'static str)> = None;
    for section in document.trim_start_matches('#').split("\n#") {
        let heading = section.trim_start_matches('#');
        let level = section.len() - heading.len();
        let (title, text) = heading.split_once('\n').unwrap_or((heading, ""));
        let title = title.trim();
        if !is_name(title) {
            (part, above) = (title, None);
            continue;
        }
        let case_of = above.filter(|(of, _)| level > *of).map(|(_, name)| name);
        if case_of.is_none() {
            above = Some((level, title));
        }
        topics.push(Topic { name: title, part, case_of, text });
    }
    topics
}

/// Words of the tracer are of one case, `FIN_WAIT1` or `fin_unread`; titles of parts are written `Like this`.
fn is_name(title: &str) -> bool {
    !title.contains(' ') && (title == title.to_lowercase() || title == title.to_uppercase())
}

fn cells(row: &'static str) -> Vec<String> {
    row.trim_matches('|').split('|').map(plain).collect()
}

/// Without line ends, backticks, and asterisks outside of these.
fn plain(text: &str) -> String {
    let mut parts = text.split('`');
    let mut plain = String::new();
    while let Some(prose) = parts.next() {
        plain.push_str(&prose.replace('*', ""));
        plain.push_str(parts.next().unwrap_or_default());
    }
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str) -> Vec<(&'static str, &'static str)> {
        find(name).into_iter().map(|topic| (topic.part, topic.name)).collect()
    }

    #[test]
    fn the_case_tells_a_state_from_a_finding() {
        assert_eq!(names("CLOSE_WAIT"), [("States", "CLOSE_WAIT")]);
        assert_eq!(names("close-wait"), [("Findings", "close_wait")]);
        assert_eq!(names("Close_Wait"), [("States", "CLOSE_WAIT"), ("Findings", "close_wait")]);
    }

    #[test]
    fn a_state_is_found_by_all_its_spellings() {
        for (spelling, state) in [
            ("Fin-Wait1", "FIN_WAIT1"),
            ("fin-wait-1", "FIN_WAIT1"),
            ("TCP_LAST_ACK", "LAST_ACK"),
            ("ESTAB", "ESTABLISHED"),
        ] {
            assert_eq!(names(spelling), [("States", state)], "{spelling}");
        }
        assert!(find("nonsense").is_empty() && find("").is_empty());
    }

    #[test]
    fn a_word_with_two_meanings_has_both() {
        assert_eq!(names("active"), [("Opening", "active"), ("Closing", "active")]);
        assert_eq!(names("unknown").len(), 3);
    }

    #[test]
    fn sections_below_a_topic_are_its_cases() {
        let text = "# Document\n\nIntro.\n\n## one\n\nFirst. Second.\n\n### case\n\n**Remedy.** *Do* `it *now*`\nat once.\n\n## two\n\n### Part\n\n### three\n\n    a *b*\n      c\n\n| x | y |\n|---|---|\n| 1 | `z` |\n";
        let topics = parse(text);
        let of: Vec<_> = topics.iter().map(|topic| (topic.part, topic.name, topic.case_of)).collect();
        assert_eq!(
            of,
            [
                ("Document", "one", None),
                ("Document", "case", Some("one")),
                ("Document", "two", None),
                ("Part", "three", None)
            ]
        );
        assert_eq!(topics[0].summary(), "First.");
        assert_eq!((topics[0].remedy(), topics[1].remedy().as_deref()), (None, Some("Do it *now* at once.")));
        let table = [["x", "y"], ["1", "z"]].map(|row| row.map(str::to_owned).to_vec()).to_vec();
        assert_eq!(topics[3].blocks(), [Block::Code(vec!["a *b*", "  c"]), Block::Table(table)]);
    }

    #[test]
    fn whatever_the_tracer_prints_is_a_topic() {
        use crate::core::{
            connection::{AfterClose, Certainty, Closing, Opening, ProcessSource, ResetCause},
            finding::{Cause, Kind},
            transition::Origin,
        };
        let words: [(&str, Vec<&str>); 10] = [
            ("States", State::all().filter_map(State::name).collect()),
            ("Opening", Opening::ALL.map(Opening::name).to_vec()),
            ("Closing", Closing::ALL.map(Closing::name).to_vec()),
            ("After the close", AfterClose::ALL.map(AfterClose::name).to_vec()),
            ("Times", Certainty::ALL.map(Certainty::name).to_vec()),
            ("Origin", Origin::ALL.map(Origin::name).to_vec()),
            ("Process", ProcessSource::ALL.map(ProcessSource::name).to_vec()),
            ("Loss", vec!["seen", "dropped", "missed", "repaired", "gap"]),
            ("Findings", Kind::ALL.map(Kind::name).to_vec()),
            (
                "Findings",
                Cause::ALL.map(Cause::name).into_iter().chain(ResetCause::ALL.map(ResetCause::name)).collect(),
            ),
        ];
        for (part, words) in words {
            for word in words {
                assert!(names(word).contains(&(part, word)), "{part}: {word}");
            }
        }
    }

    #[test]
    fn every_topic_begins_with_a_short_sentence() {
        for topic in topics() {
            let summary = topic.summary();
            assert!(summary.ends_with('.') && summary.len() > 10, "{}: {summary}", topic.name);
        }
    }
}
