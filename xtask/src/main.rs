//! The chores of this repository, as `cargo xtask COMMAND`: one module for each command, and below them what they share.

mod bench;
mod build_ebpf;
mod demo;
mod dist;
mod export;
mod field;
mod run;
mod setup;
mod test;
mod vm;

mod elf;
mod process;
mod provenance;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// The chores of the tracer repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
enum Command {
    Run(run::Args),
    Test(test::Args),
    BuildEbpf(build_ebpf::Args),
    Setup(setup::Args),
    Demo(demo::Args),
    Export(export::Args),
    Field(field::Args),
    Bench(bench::Args),
    Dist(dist::Args),
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Run(args) => run::run(&args),
        Command::Test(args) => test::run(&args),
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::Setup(args) => setup::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Field(args) => field::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Vm(args) => vm::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
