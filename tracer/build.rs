//! Says which BPF object `include_bytes_aligned!` embeds: the one in the tree, or the one that `TRACER_BPF_OBJECT` names
//! (`cargo xtask test --fresh-ebpf`). Building it is not done here, so that `cargo build` needs no more than stable Rust.

use std::{env, path::Path, process::ExitCode};

const VARIABLE: &str = "TRACER_BPF_OBJECT";
const IN_TREE: &str = "bpf/tracer.bpf.o";

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let given = env::var_os(VARIABLE).filter(|value| !value.is_empty());
    let object = given.as_ref().map_or(Path::new(IN_TREE), |path| Path::new(path));
    println!("cargo::rerun-if-changed={}", object.display());
    // The build script runs in the package's folder; the macro would look beside the source file.
    match object.canonicalize() {
        Ok(path) => {
            println!("cargo::rustc-env={VARIABLE}={}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) if given.is_some() => {
            let object = object.display();
            println!("cargo::error=cannot embed {VARIABLE}={object}: {error}; give an absolute path, or unset it");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!(
                "cargo::error=cannot embed tracer/{IN_TREE}: {error}; restore it, or run `cargo xtask build-ebpf`"
            );
            ExitCode::FAILURE
        }
    }
}
