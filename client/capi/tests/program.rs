//! The C interface from C: a program, compiled and linked as a VMM would be, on
//! KVM and on the model.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::{cc, compiles, file, library, program, ran};

fn run(test: &str, on: &str) {
    let Some(cc) = cc() else {
        eprintln!("SKIPPED {test}: no C compiler (Debian: gcc)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let built = dir.path().join("program");
    let (library, include) = (library(), file("include"));
    let args = ["-std=gnu99", "-I", include.to_str().unwrap(), library.to_str().unwrap()];
    let libraries = ["-lpthread", "-ldl", "-lm"];
    compiles(&cc, &[&args[..], &libraries].concat(), &program(), &built).unwrap();
    ran(test, Command::new(&built).arg(on));
}

#[test]
fn a_c_program_on_the_model() {
    run("a_c_program_on_the_model", "model");
}

#[test]
fn a_c_program_on_kvm() {
    run("a_c_program_on_kvm", "kvm");
}
