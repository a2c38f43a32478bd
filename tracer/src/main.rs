//! The `tracer` program: parse, run, exit status.

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser};
use tracer::{
    check,
    cli::{Cli, Command},
    config::{Diagnose, Record, Stream, Watch},
    explain, manpage, pipeline, problem,
};

/// `diagnose` found something at or above `--fail-on`.
const FOUND: u8 = 1;
/// Usage or run time.
const ERROR: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli) {
        Ok(status) => status,
        Err(error) if problem::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            problem::tell(problem::one_line(&error));
            ExitCode::from(ERROR)
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        None => match Watch::without_command(&cli.log)? {
            Some(watch) => pipeline::watch(&watch)?,
            None => pipeline::log(&Stream::log(&cli.log)?)?,
        },
        Some(Command::Watch(args)) => pipeline::watch(&Watch::new(&args)?)?,
        Some(Command::Log(args)) => pipeline::log(&Stream::log(&args)?)?,
        Some(Command::Connections(args)) => pipeline::connections(&Stream::connections(&args)?)?,
        Some(Command::Diagnose(args)) => {
            let config = Diagnose::new(&args)?;
            let findings = pipeline::diagnose(&config)?;
            if config.fail_on.is_some_and(|limit| findings.iter().any(|finding| finding.severity >= limit)) {
                return Ok(ExitCode::from(FOUND));
            }
        }
        Some(Command::Record(args)) => pipeline::record(&Record::new(&args)?)?,
        Some(Command::Check { buffer }) => check::run(buffer, &mut std::io::stdout())?,
        Some(Command::Explain { topic }) => explain::print(topic.as_deref(), &mut std::io::stdout())?,
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tracer", &mut script);
            std::io::Write::write_all(&mut std::io::stdout(), &script)?;
        }
        Some(Command::Man { command }) => {
            let mut page = Vec::new();
            manpage::write(command.as_deref(), &mut page)?;
            std::io::Write::write_all(&mut std::io::stdout(), &page)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Help and version are printed as they are; a mistake becomes one line.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        problem::tell(problem::usage_line(&error.render().to_string()));
        ExitCode::from(ERROR)
    } else {
        // Whoever closed the pipe has seen enough of the help.
        let _ = error.print();
        ExitCode::SUCCESS
    }
}
