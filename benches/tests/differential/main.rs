//! The model against KVM: the same operations, valid and invalid, on both. The
//! errno is the same each time, and so is what a vCPU finds: the
//! signature of each page that is mapped, an MMIO exit where none is or where
//! a page is read-only and written to. Dirty logs agree.
//!
//! `MEMSLOTS_DIFFERENTIAL_OPS` sets how many operations at least, 10,000
//! without it; `MEMSLOTS_DIFFERENTIAL_SEED` which. A failure prints the seed
//! that leads straight to it, and the shortest sequence of operations found
//! that still fails.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;
mod host;
mod ops;
mod pair;

use std::cell::RefCell;

use common::{guest_or_skip, vm_or_skip};
use kvm_memslots_kit::guest::Prober;
use kvm_memslots_shim::memory::model::DirtyTracking;
use ops::Op;
use pair::{Pair, Stats};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

const OPS: u64 = 10_000;
/// Operations on one VM.
const MOST_OPS: usize = 200;
const SEED: u64 = 0x6b76_6d6d_656d;

fn from_environment<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")),
        Err(_) => default,
    }
}

fn tracking() -> impl Strategy<Value = DirtyTracking> {
    prop_oneof![
        4 => Just(DirtyTracking::Bitmap),
        2 => any::<bool>().prop_map(|initially_set| DirtyTracking::ManualProtect { initially_set }),
        1 => Just(DirtyTracking::Ring),
    ]
}

#[test]
fn the_model_answers_as_kvm_does() {
    let test = "the_model_answers_as_kvm_does";
    let Some(vm) = vm_or_skip(test) else { return };
    if guest_or_skip(test, Prober::new(&vm, 0)).is_none() {
        return;
    }
    drop(vm);
    let facts = host::Facts::measure();
    let ops: u64 = from_environment("MEMSLOTS_DIFFERENTIAL_OPS", OPS);
    let seed: u64 = from_environment("MEMSLOTS_DIFFERENTIAL_SEED", SEED);
    eprintln!("{facts}; {ops} operations, seed {seed}");

    let mut stats = Stats::default();
    for seed in seed.. {
        if stats.operations >= ops {
            break;
        }
        stats.add(&one_vm(&facts, seed));
    }
    eprintln!("{stats}");
    stats.assert_not_vacuous();
}

/// A VM and its model, from empty on, through a sequence of operations that
/// `seed` stands for.
fn one_vm(facts: &host::Facts, seed: u64) -> Stats {
    let config =
        Config { cases: 1, failure_persistence: None, max_shrink_iters: 1000, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let stats = RefCell::new(Stats::default());
    let sequence = (tracking(), vec(ops::op(facts), 1..=MOST_OPS));
    let outcome = TestRunner::new_with_rng(config, rng).run(&sequence, |(tracking, ops)| {
        let mut pair = Pair::new(facts, tracking);
        let outcome = run(&mut pair, &ops);
        stats.borrow_mut().add(&pair.stats);
        outcome.map_err(TestCaseError::fail)
    });
    match outcome {
        Ok(()) => stats.into_inner(),
        Err(TestError::Fail(reason, (tracking, ops))) => {
            let ops = ops.iter().fold(String::new(), |ops, op| format!("{ops}\n    {op:x?}"));
            panic!(
                "{reason}\n  dirty tracking {tracking:?}, the shortest sequence found:{ops}\n  \
                 to see it again: MEMSLOTS_DIFFERENTIAL_SEED={seed}"
            );
        }
        Err(TestError::Abort(reason)) => panic!("{reason} (seed {seed})"),
    }
}

fn run(pair: &mut Pair, ops: &[Op]) -> Result<(), String> {
    for (index, op) in ops.iter().enumerate() {
        pair.step(op).map_err(|what| format!("operation {index}, {op:x?}: {what}"))?;
    }
    pair.compare_all_dirty_logs()
}
