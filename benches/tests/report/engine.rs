//! How ways are compared: runs in turn, medians, ratios that know their noise.

use kvm_memslots_bench::compare::{
    Lap, Ratio, Row, Session, Shape, Stop, Taken, median, percentile,
};

fn shown(this: &[u64], other: &[u64]) -> String {
    Ratio::of(this, other).unwrap().to_string()
}

#[test]
fn what_is_within_its_noise_is_no_gain() {
    assert_eq!(shown(&[98, 100, 104], &[99, 102, 103]), "= (0.95..1.05)");
    assert_eq!(shown(&[40, 50, 55], &[100, 110, 120]), "2.20x (1.82..3.00)");
    assert_eq!(shown(&[100, 110, 120], &[40, 50, 55]), "0.45x (0.33..0.55)");
    assert_eq!(shown(&[1, 1, 1], &[5470, 5470, 5470]), "5470x (5470..5470)");
    assert_eq!(shown(&[400, 400, 400], &[1, 1, 1]), "0.0025x (0.0025..0.0025)");
    // One of nine may be anything.
    let mut other = [200; 9];
    other[4] = 1;
    assert_eq!(shown(&[100; 9], &other), "2.00x (2.00..2.00)");
}

#[test]
fn of_few_runs_the_noise_is_not_known() {
    assert_eq!(shown(&[50], &[51]), "~1.02x");
    assert_eq!(Ratio::of(&[], &[1]), None);
    assert!(Ratio::of(&[0], &[0]).unwrap().equal);
}

#[test]
fn words_say_which_is_faster() {
    let words = |this: &[u64], other: &[u64]| Ratio::of(this, other).unwrap().words();
    assert_eq!(words(&[5; 3], &[11; 3]), "2.20 times as fast");
    assert_eq!(words(&[11; 3], &[5; 3]), "2.20 times as slow");
    assert_eq!(words(&[11; 3], &[11; 3]), "as fast within the noise");
    assert_eq!(words(&[5], &[11]), "about 2.20 times as fast");
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Pace {
    Slow,
    Fast,
    Never,
}

fn session<T>(runs: usize, with: impl FnOnce(&mut Session<'_>) -> T) -> (T, Vec<Row>) {
    let mut said = Vec::new();
    let mut session = Session {
        runs,
        pin: false,
        calls: None,
        machine: None,
        on_run: &mut |_| (),
        on_rows: &mut |rows| said.extend(rows),
    };
    let done = with(&mut session);
    (done, said)
}

fn shape(what: &str) -> Shape {
    Shape { what: what.to_owned(), size: 7, unit: "things", more: vec![("vcpus", 2.into())] }
}

fn of(ns: u64) -> Taken {
    Taken { lap: Lap::of_nanos(ns), ioctls: Some(ns / 10), ..Taken::default() }
}

#[test]
fn ways_take_turns_and_every_other_round_is_backwards() {
    use Pace::{Fast, Slow};

    let mut order = Vec::new();
    let ways = [Pace::Slow, Pace::Fast];
    let (done, rows) = session(2, |session| {
        session.compare(
            &[shape("a")],
            &ways,
            &ways[..1],
            |way, watch| {
                assert!(watch.times());
                order.push(way);
                Ok::<_, Stop<()>>(vec![of(10)])
            },
            |_| (),
        )
    });
    done.unwrap();
    assert_eq!(order, [Slow, Fast, Fast, Slow, Slow, Fast]);
    // The first round warms up.
    assert_eq!(rows.iter().map(|row| row.runs).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn rows_are_by_part_and_know_whom_they_are_compared_with() {
    let mut run = 0;
    let (done, rows) = session(3, |session| {
        let ways = [Pace::Slow, Pace::Fast, Pace::Never];
        session.compare(
            &[shape("a"), shape("b")],
            &ways,
            &ways[..1],
            |way, _| {
                run += 1;
                match way {
                    Pace::Slow => Ok(vec![of(1000 + run), of(100)]),
                    Pace::Fast => Ok(vec![of(100), of(100)]),
                    Pace::Never => Err(Stop::<()>::Skip("too slow".to_owned())),
                }
            },
            |_| (),
        )
    });
    done.unwrap();
    let names: Vec<_> = rows.iter().map(|row| (row.what.as_str(), row.way.as_str())).collect();
    let ways = ["slow", "fast", "never"];
    assert_eq!(names[..3], ways.map(|way| ("a", way)));
    assert_eq!(names[3..], ways.map(|way| ("b", way)));
    assert!(rows[0].ratios.is_empty());
    assert!(rows[1].ratios["slow"].times > 10.0 && !rows[1].ratios["slow"].equal);
    assert!(rows[4].ratios["slow"].equal);
    assert_eq!((rows[1].ioctls, rows[2].ioctls), (Some(10), None));
    assert_eq!(rows[2].skipped.as_deref(), Some("too slow"));
    assert_eq!(rows[0].number("vcpus"), Some(2));
    // What programs read is what there is.
    let json = serde_json::to_string(&rows[1]).unwrap();
    let read: Row = serde_json::from_str(&json).unwrap();
    assert_eq!(read, rows[1]);
}

#[test]
fn a_failure_ends_it() {
    let (done, rows) = session(3, |session| {
        session.compare(&[shape("a")], &[Pace::Slow], &[], |_, _| Err(Stop::Fail("broken")), |_| ())
    });
    assert_eq!((done, rows.len()), (Err("broken"), 0));
}

#[test]
fn the_median_is_in_the_middle() {
    assert_eq!(median(&[3, 1, 2]), Some(2));
    assert_eq!(median(&[4, 1, 2, 3]), Some(2));
    assert_eq!(median(&[8, 2]), Some(5));
    assert_eq!(median(&[]), None);
}

#[test]
fn percentiles_are_samples() {
    let sorted: Vec<u64> = (1..=300).collect();
    assert_eq!([50, 99, 100].map(|p| percentile(&sorted, p)), [150, 297, 300]);
    assert_eq!(percentile(&[7], 50), 7);
    assert_eq!(percentile(&[], 50), 0);
}

/// The ranks of tables of the sign test.
#[test]
fn intervals_are_those_of_tables() {
    // Beside runs that all take a nanosecond.
    let of = |count: u64| {
        let samples: Vec<u64> = (1..=count).rev().collect();
        Ratio::of(&vec![1; samples.len()], &samples).unwrap().spread
    };
    let ranks = [2, 3, 5, 6, 9, 10, 15, 20, 100].map(of);
    let expected = [
        None,
        Some((1.0, 3.0)),
        Some((1.0, 5.0)),
        Some((1.0, 6.0)),
        Some((2.0, 8.0)),
        Some((2.0, 9.0)),
        Some((4.0, 12.0)),
        Some((6.0, 15.0)),
        Some((40.0, 61.0)),
    ];
    assert_eq!(ranks, expected);
    let (low, high) = of(10_000).unwrap();
    assert_eq!((low, high), (4903.0, 5098.0));
}
