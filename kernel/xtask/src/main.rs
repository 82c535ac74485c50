//! The project's tasks, as `cargo xtask TASK`.

mod api;
mod apt;
mod docs;
mod kernel;
mod log;
mod machine;
mod pages;
mod results;
mod run;
mod rustc;
mod tally;
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
    /// Compare what the published crates offer with the lists of it, or bless it
    Api(api::Args),
    /// What `mdbook build` has its pages go through
    #[command(hide = true)]
    Book(docs::book::Args),
    /// Measure on this machine, with nothing else running, and write the tables
    /// to benches/results
    Results(results::Args),
    /// Look at the reports and the book in a browser, on a phone's and a desk's width
    /// and printed
    Pages(pages::Args),
    /// Fetch, build and boot kernels with the series of kernel/patches
    Kernel(kernel::Args),
    /// Run VMMs from the package registries, as they are and on this library
    Vmm(kernel::vmm::Args),
}

fn main() -> ExitCode {
    match Cli::parse().task {
        Task::Test(args) => test::run(&args),
        Task::Api(args) => api::run(&args),
        Task::Book(args) => docs::book::run(&args),
        Task::Results(args) => results::run(&args),
        Task::Pages(args) => pages::run(&args),
        Task::Kernel(args) => kernel::run(&args),
        Task::Vmm(args) => kernel::vmm::run(&args),
    }
}
