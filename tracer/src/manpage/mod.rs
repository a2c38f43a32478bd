//! The manual pages: what clap knows of the options, in the order and with the words that man-pages(7) asks for. One for
//! the program and one for each command; the texts are in `pages`.

mod pages;

use std::io::{self, Write};

use anyhow::{Result, bail};
use clap::{Command, CommandFactory};
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, roman},
};

use self::pages::Page;
use crate::{cli::Cli, source::privileges};

/// Writes the page of the program, or of one of its commands.
pub fn write(command: Option<&str>, to: &mut dyn Write) -> Result<()> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let Some(name) = command else {
        return Ok(write_program(&program, to)?);
    };
    let Some(found) = program.get_subcommands().find(|known| known.get_name() == name) else {
        bail!("no command {name:?} to have a manual page: tracer --help lists them");
    };
    Ok(write_command(found, &pages::of(name), to)?)
}

fn write_program(program: &Command, to: &mut dyn Write) -> io::Result<()> {
    let page = &pages::PROGRAM;
    let mut roff = Roff::new();
    begin(&mut roff, "tracer", page.name, &["[OPTIONS]", "COMMAND [OPTIONS]"]);
    section(&mut roff, "DESCRIPTION");
    paragraphs(&mut roff, page.description);
    section(&mut roff, "COMMANDS");
    for command in program.get_subcommands() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        entry(&mut roff, reference(&format!("tracer-{}", command.get_name())), &about);
    }
    section(&mut roff, "OPTIONS");
    paragraphs(&mut roff, &["Without a command, those of tracer-log(1). And, wherever they stand:"]);
    entry(&mut roff, vec![bold("-h"), roman(", "), bold("--help")], "Say what there is, in short or in full.");
    entry(&mut roff, vec![bold("-V"), roman(", "), bold("--version")], "Say the version.");
    section(&mut roff, "EXIT STATUS");
    entries(&mut roff, pages::EXIT_STATUS);
    section(&mut roff, "ENVIRONMENT");
    entries(&mut roff, pages::ENVIRONMENT);
    section(&mut roff, "FILES");
    entries(&mut roff, pages::FILES);
    section(&mut roff, "CAPABILITIES");
    paragraphs(&mut roff, pages::CAPABILITIES);
    for (capability, without) in privileges::USES {
        entry(&mut roff, vec![bold(privileges::listed(capability))], &format!("Without it, {without}."));
    }
    finish(&mut roff, page, program)?;
    roff.to_writer(to)
}

fn write_command(command: &Command, page: &Page, to: &mut dyn Write) -> io::Result<()> {
    let mut roff = Roff::new();
    let usage = command.clone().render_usage().to_string();
    let (program, usage) = (format!("tracer-{}", command.get_name()), usage.trim_start_matches("Usage: tracer "));
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    begin(&mut roff, &program, &uncapitalised(&about), &[usage]);
    section(&mut roff, "DESCRIPTION");
    paragraphs(&mut roff, page.description);
    roff.to_writer(to)?;

    let mut options = Vec::new();
    Man::new(command.clone()).render_options_section(&mut options)?;
    to.write_all(as_one_section(&String::from_utf8_lossy(&options)).as_bytes())?;

    let mut roff = Roff::new();
    section(&mut roff, "EXIT STATUS");
    let is_findings = |(status, _): &&(&str, &str)| *status == "1";
    let others = pages::EXIT_STATUS.iter().filter(|entry| !is_findings(entry) || command.get_name() == "diagnose");
    entries(&mut roff, others);
    finish(&mut roff, page, command)?;
    to.write_all(without_preamble(&roff.render()).as_bytes())
}

fn begin(roff: &mut Roff, title: &str, name: &str, synopses: &[&str]) {
    let source = concat!("tracer ", env!("CARGO_PKG_VERSION"));
    // No date: pages of the same version are the same. It is no empty argument, which would not be written.
    roff.control("TH", [&title.to_uppercase(), "1", " ", source, "User Commands"]);
    section(roff, "NAME");
    roff.text([roman(format!("{title} - {name}"))]);
    section(roff, "SYNOPSIS");
    for (number, synopsis) in synopses.iter().enumerate() {
        if number > 0 {
            roff.control("br", []);
        }
        roff.text([bold("tracer"), roman(" "), roman(*synopsis)]);
    }
}

fn finish(roff: &mut Roff, page: &Page, command: &Command) -> io::Result<()> {
    section(roff, "EXAMPLES");
    for (what, example) in page.examples {
        paragraphs(roff, &[what]);
        roff.control("RS", ["4"]).control("EX", []);
        for line in example.lines() {
            roff.text([roman(line)]);
        }
        roff.control("EE", []).control("RE", []);
    }
    section(roff, "SEE ALSO");
    let own = format!("tracer-{}", command.get_name());
    let others = pages::SEE_ALSO
        .iter()
        .filter(|other| **other != own && !(command.get_name() == "tracer" && **other == "tracer"));
    let mut line = Vec::new();
    for other in others {
        if !line.is_empty() {
            line.push(roman(", "));
        }
        line.extend(reference(other));
    }
    roff.text(line);
    paragraphs(roff, pages::DOCUMENTS);
    Ok(())
}

fn section(roff: &mut Roff, title: &str) {
    roff.control("SH", [title]);
}

fn paragraphs(roff: &mut Roff, texts: &[&str]) {
    for text in texts {
        roff.control("PP", []);
        roff.text([roman(*text)]);
    }
}

fn entries<'a>(roff: &mut Roff, entries: impl IntoIterator<Item = &'a (&'a str, &'a str)>) {
    for (term, text) in entries {
        entry(roff, vec![bold(*term)], text);
    }
}

fn entry(roff: &mut Roff, term: Vec<Inline>, text: &str) {
    roff.control("TP", []);
    roff.text(term);
    roff.text([roman(text)]);
}

fn uncapitalised(text: &str) -> String {
    let (first, rest) = text.split_at(text.len().min(1));
    first.to_lowercase() + rest
}

/// `tracer-log(1)`; those of other sections bring theirs.
fn reference(page: &str) -> Vec<Inline> {
    let (name, number) = page.split_once('(').unwrap_or((page, "1)"));
    vec![bold(name), roman(format!("({number}"))]
}

/// clap's headings as parts of OPTIONS, whose own come last there.
fn as_one_section(options: &str) -> String {
    let headed = |line: &str| match line.strip_prefix(".SH ") {
        Some("OPTIONS") => ".SS General".to_owned(),
        Some(heading) => {
            let (first, rest) = heading.split_at(heading.len().min(1));
            format!(".SS {first}{}", rest.to_lowercase())
        }
        None => line.to_owned(),
    };
    let lines: Vec<String> = without_preamble(options).lines().map(headed).collect();
    format!(".SH OPTIONS\n{}\n", lines.join("\n"))
}

/// What defines the apostrophe once a page is enough.
fn without_preamble(roff: &str) -> String {
    let is_preamble = |line: &&str| line.starts_with(".ie \\n(.g") || line.starts_with(".el .ds Aq");
    roff.lines().filter(|line| !is_preamble(line)).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn commands() -> Vec<String> {
        Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect()
    }

    fn page(command: Option<&str>) -> String {
        let mut page = Vec::new();
        write(command, &mut page).expect("a page");
        String::from_utf8(page).expect("text")
    }

    #[test]
    fn each_command_has_a_page_of_the_usual_parts() {
        for name in commands() {
            let page = page(Some(&name));
            let parts: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
            let usual = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "\"EXIT STATUS\"", "EXAMPLES", "\"SEE ALSO\""];
            assert_eq!(parts, usual, "{name}");
            assert!(!pages::of(&name).description.is_empty(), "write a page for `{name}` in manpage/pages.rs");
        }
        let page = page(None);
        for name in commands() {
            assert!(page.contains(&format!("tracer\\-{name}")), "{name}");
        }
        assert!(write(Some("nosuch"), &mut Vec::new()).is_err());
    }

    /// What is typed as it stands there works, as far as the command line goes.
    #[test]
    fn examples_are_right() {
        let pages = commands().into_iter().map(|name| pages::of(&name)).chain([pages::PROGRAM]);
        let lines = pages.flat_map(|page| page.examples.iter().flat_map(|(_, example)| example.lines()));
        let mut tried = 0;
        for line in lines {
            let Some(at) = line.find("tracer ") else { continue };
            let words = line[at..].split(['|', '>', ')']).next().unwrap_or_default().split_whitespace();
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
            tried += 1;
        }
        assert!(tried > 10);
    }
}
