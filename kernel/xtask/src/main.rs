//! The project's tasks, as `cargo xtask TASK`.

mod apt;
mod run;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", about = "The project's tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every check of the repository
    Test(test::Args),
}

fn main() -> ExitCode {
    match Cli::parse().task {
        Task::Test(args) => test::run(&args),
    }
}
