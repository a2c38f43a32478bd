//! `tracer explain`: topics of the documents on a terminal. The text is the documents' own (`core::manual`).

use std::io::{self, Write};

use anyhow::{Result, bail};

use crate::{
    core::manual::{self, Block, Topic},
    output::wrapped,
};

const WIDTH: usize = 78;

/// Writes the topics of that name, or the list of all.
pub fn print(topic: Option<&str>, to: &mut impl Write) -> Result<()> {
    let Some(name) = topic else {
        return Ok(write_list(to)?);
    };
    let found = manual::find(name);
    if found.is_empty() {
        bail!("nothing to explain about {name:?}: tracer explain lists the topics");
    }
    for (number, topic) in found.into_iter().enumerate() {
        if number > 0 {
            writeln!(to)?;
        }
        write_topic(topic, to)?;
    }
    Ok(())
}

fn write_list(to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "tracer explain TOPIC, with one of:")?;
    let indent = |topic: &Topic| if topic.case_of.is_some() { 4 } else { 2 };
    let column = manual::topics().iter().map(|topic| indent(topic) + topic.name.len()).max().unwrap_or(0);
    let mut part = "";
    for topic in manual::topics() {
        if topic.part != part {
            part = topic.part;
            writeln!(to, "\n{part}")?;
        }
        let (indent, name, summary) = (indent(topic), topic.name, topic.summary());
        writeln!(to, "{:indent$}{name:<1$}  {2}", "", column - indent, summary.trim_end_matches('.'))?;
    }
    Ok(())
}

fn write_topic(topic: &Topic, to: &mut impl Write) -> io::Result<()> {
    let case_of = topic.case_of.map(|name| format!(", {name}")).unwrap_or_default();
    writeln!(to, "{} ({}{case_of})", topic.name, topic.part)?;
    for block in topic.blocks() {
        writeln!(to)?;
        match block {
            Block::Paragraph(text) => write_indented(&wrapped(&text, WIDTH - 2), to)?,
            Block::Code(lines) => lines.iter().try_for_each(|line| writeln!(to, "    {line}"))?,
            Block::Table(rows) => write_table(&rows, to)?,
        }
    }
    let related = topic.related();
    if !related.is_empty() {
        writeln!(to)?;
        write_indented(&wrapped(&format!("See also: {}", related.join(", ")), WIDTH - 2), to)?;
    }
    Ok(())
}

fn write_indented(lines: &[String], to: &mut impl Write) -> io::Result<()> {
    lines.iter().try_for_each(|line| writeln!(to, "  {line}"))
}

/// Columns as wide as their cells; the last one takes what is left.
fn write_table(rows: &[Vec<String>], to: &mut impl Write) -> io::Result<()> {
    let width_of = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (1..columns).filter_map(|column| width_of(column - 1)).collect();
    let left = WIDTH.saturating_sub(4 + widths.iter().map(|width| width + 2).sum::<usize>());
    for row in rows {
        let mut line = "    ".to_owned();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        let last = wrapped(row.get(widths.len()).map_or("", String::as_str), left);
        let margin = line.chars().count();
        writeln!(to, "{line}{}", last[0])?;
        last[1..].iter().try_for_each(|rest| writeln!(to, "{:margin$}{rest}", ""))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(topic: Option<&str>) -> String {
        let mut text = Vec::new();
        print(topic, &mut text).expect("explained");
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn every_topic_fits_a_terminal_and_has_no_marks_left() {
        let texts = manual::topics().iter().map(|topic| explained(Some(topic.name))).chain([explained(None)]);
        for line in texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()) {
            assert!(line.chars().count() <= 80, "{line}");
            assert!(!line.contains("**") && !line.contains('`') && !line.contains("]("), "{line}");
            assert!(!["|", "#", "- ", "* "].iter().any(|mark| line.trim_start().starts_with(mark)), "{line}");
        }
    }

    #[test]
    fn the_list_has_each_topic_in_its_part() {
        let list = explained(None);
        let (_, findings) = list.split_once("\nFindings\n").expect("findings");
        for needed in ["  close_wait  ", "    eof_read_not_closed  ", "  churn  "] {
            assert!(findings.lines().any(|line| line.starts_with(needed)), "{needed}: {list}");
        }
        let listed = list.lines().filter(|line| line.starts_with("  ")).count();
        assert_eq!(listed, manual::topics().len());
    }

    #[test]
    fn a_table_stands_in_columns() {
        let row = "    ≠ 0    1      fin_unread           only the FIN waits: nobody polls or\n\
                   \x20                                      reads this connection\n";
        assert!(explained(Some("close_wait")).contains(row), "{}", explained(Some("close_wait")));
    }

    #[test]
    fn a_word_with_two_meanings_shows_both() {
        let text = explained(Some("Active"));
        assert!(text.starts_with("active (Opening)\n") && text.contains("\n\nactive (Closing)\n"), "{text}");
    }

    #[test]
    fn the_unknown_is_refused() {
        assert!(print(Some("nonsense"), &mut Vec::new()).is_err());
    }
}
