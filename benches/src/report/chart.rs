//! Plots as SVG in the page, of a size that a phone shows unscaled.

use std::collections::BTreeMap;
use std::fmt::Write;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::human;
use super::page::escape;
use super::plot::colour;
use crate::compare::{Row, median};

/// Pixels.
const WIDTH: u32 = 360;
const HEIGHT: u32 = 240;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// What is written at an axis.
const LABELS: (&str, u32) = ("sans-serif", 13);

/// Round numbers in a range, few enough to stand beside each other.
fn ticks(from: f64, to: f64) -> Vec<f64> {
    const MOST: usize = 4;
    let round = |steps: &[f64]| -> Vec<f64> {
        let decades = -1..20_i32;
        let all = decades.flat_map(|decade| steps.iter().map(move |at| at * 10_f64.powi(decade)));
        all.filter(|at| (from..=to).contains(at)).collect()
    };
    let finest = [&[1.0][..], &[1.0, 3.0], &[1.0, 2.0, 5.0], &[1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]];
    let found = finest.map(round);
    let fits = found.iter().rev().find(|ticks| ticks.len() <= MOST && !ticks.is_empty());
    let mut ticks = fits.or_else(|| found.iter().find(|ticks| !ticks.is_empty())).cloned();
    if let Some(ticks) = &mut ticks {
        let step = ticks.len().div_ceil(MOST).max(1);
        *ticks = ticks.iter().copied().step_by(step).collect();
    }
    ticks.unwrap_or_default()
}

/// Nanoseconds at an axis.
fn time_label(ns: f64) -> String {
    // Whole, and never negative.
    #[allow(clippy::cast_sign_loss)]
    let ns = ns as u64;
    let text = human(ns);
    let (value, unit) = text.split_once(' ').unwrap_or((&text, ""));
    let value =
        if value.contains('.') { value.trim_end_matches('0').trim_end_matches('.') } else { value };
    format!("{value} {unit}")
}

/// A figure with its key in text beneath; nothing where it can't be drawn.
fn figure(
    caption: &str,
    names: &[&str],
    height: u32,
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> String {
    let mut svg = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(Into::into).and_then(|()| draw(&area))
    };
    if drawn.is_err() {
        return String::new();
    }
    // It stands in HTML, which knows what it is.
    let svg = svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", "");
    let mut text = format!(
        "<figure role=\"img\" aria-label=\"{0}\">\n{svg}<figcaption>{0}<br/>",
        escape(caption)
    );
    for (index, name) in names.iter().enumerate() {
        let RGBColor(red, green, blue) = colour(index);
        let _ = write!(
            text,
            " <span class=\"way\"><span class=\"key\" style=\"background:#{red:02x}{green:02x}{blue:02x}\">\
             </span>{}</span>",
            escape(name)
        );
    }
    text + "</figcaption>\n</figure>\n"
}

/// For each thing that was done at several sizes: time, if `times` mean something,
/// and grace periods over the size.
pub(super) fn over_sizes(rows: &[Row], times: bool) -> Vec<(String, String)> {
    let mut things: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        let thing = (row.what.as_str(), row.unit.as_str());
        if !things.contains(&thing) {
            things.push(thing);
        }
    }
    let drawn = things.into_iter().filter_map(|(what, unit)| {
        let of = |value: fn(&Row) -> Option<u64>| {
            let mut series: Vec<(&str, BTreeMap<u64, u64>)> = Vec::new();
            for row in rows.iter().filter(|row| row.what == what && row.unit == unit) {
                let Some(value) = value(row) else { continue };
                let index = series.iter().position(|(name, _)| *name == row.way);
                let index = index.unwrap_or_else(|| {
                    series.push((&row.way, BTreeMap::new()));
                    series.len() - 1
                });
                series[index].1.insert(row.size.max(1), value.max(1));
            }
            series
        };
        let medians = of(|row| median(&row.walls_ns));
        if medians.iter().all(|(_, points)| points.len() < 2) {
            return None;
        }
        let title = format!("{what}, by number of {unit}");
        let lines = |caption: &str, series: &[(&str, BTreeMap<u64, u64>)], time: bool| {
            let names: Vec<&str> = series.iter().map(|(name, _)| *name).collect();
            figure(caption, &names, HEIGHT, |area| draw_lines(area, series, unit, time))
        };
        let mut charts = String::new();
        if times {
            charts += &lines(&format!("Time over {unit}: {what}"), &medians, true);
        }
        let grace_periods = of(|row| row.grace_periods);
        if !grace_periods.is_empty() {
            charts += &lines(&format!("Grace periods over {unit}: {what}"), &grace_periods, false);
        }
        let charts = format!("<div class=\"charts\">\n{charts}</div>\n");
        Some((title, charts))
    });
    drawn.collect()
}

fn draw_lines(
    area: &Area<'_>,
    series: &[(&str, BTreeMap<u64, u64>)],
    unit: &str,
    time: bool,
) -> Drawn {
    let points = |points: &BTreeMap<u64, u64>| -> Vec<_> {
        points.iter().map(|(size, value)| (*size as f64, *value as f64)).collect()
    };
    let all: Vec<_> = series.iter().map(|(_, of)| points(of)).collect();
    let sizes = log_axis(all.iter().flatten().map(|at| at.0), 1.1);
    let values = log_axis(all.iter().flatten().map(|at| at.1), 1.5);
    let show = |value: f64| if time { time_label(value) } else { format!("{value:.0}") };
    // A line that another lies upon is seen on both sides of it.
    let above = |index: usize| (all.len() - 1 - index).min(4) as u32;
    let style = |index| (2 + 3 * above(index), 3 + 2 * above(index));
    draw(area, (sizes, unit, 4), (values, &show), &all, &style)
}

/// All runs of a comparison as percentiles: for each way a line from its fastest
/// run to its slowest, a dot for each run.
pub(super) fn percentiles(rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.walls_ns.len() > 1).collect();
    if rows.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = rows.iter().map(|row| row.way.as_str()).collect();
    let series: Vec<_> = rows.iter().map(|row| by_percent(&row.walls_ns)).collect();
    let caption = "Runs from the fastest to the slowest, by percent; each dot is a run";
    // Of many, neighbours would be one blot.
    let style = |index: usize| (2, if series[index].len() > 40 { 0 } else { 3 });
    figure(caption, &names, HEIGHT, |area| {
        let walls = log_axis(series.iter().flatten().map(|at| at.1), 1.2);
        draw(area, (0.0..100.0, "% of runs", 5), (walls, &time_label), &series, &style)
    })
}

/// Samples in ascending order, each in the middle of its share of 100 %.
fn by_percent(samples: &[u64]) -> Vec<(f64, f64)> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let share = 100.0 / sorted.len() as f64;
    let at = |(index, sample): (usize, u64)| ((index as f64 + 0.5) * share, sample.max(1) as f64);
    sorted.into_iter().enumerate().map(at).collect()
}

/// From a bit below all values, each at least 1, to a bit above them.
fn log_axis(
    values: impl Iterator<Item = f64>,
    room: f64,
) -> impl AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>> {
    let (least, most) = values.fold((f64::INFINITY, 1.0_f64), |(a, b), v| (a.min(v), b.max(v)));
    let (from, to) = (least.min(most) / room, most * room);
    (from..to).log_scale().with_key_points(ticks(from, to))
}

/// Lines with dots; of each way its `style` says how thick its line and its dots are.
fn draw<X, Y>(
    area: &Area<'_>,
    (x, what, x_labels): (X, &str, usize),
    (y, show): (Y, &dyn Fn(f64) -> String),
    series: &[Vec<(f64, f64)>],
    style: &dyn Fn(usize) -> (u32, u32),
) -> Drawn
where
    X: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
    Y: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
{
    let mut chart = ChartBuilder::on(area);
    chart.margin(8).margin_right(16).x_label_area_size(36).y_label_area_size(64);
    let mut chart = chart.build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_desc(what)
        .label_style(LABELS)
        .axis_desc_style(LABELS)
        .x_labels(x_labels)
        .y_labels(4)
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|at| format!("{at:.0}"))
        .y_label_formatter(&|at| show(*at))
        .draw()?;
    for (index, points) in series.iter().enumerate() {
        let (line, dot) = style(index);
        chart.draw_series(LineSeries::new(points.clone(), colour(index).stroke_width(line)))?;
        let dot = |at: &(f64, f64)| Circle::new(*at, dot, colour(index).filled());
        chart.draw_series(points.iter().map(dot))?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_in_the_middle_of_their_shares() {
        let expected = [(12.5, 1.0), (37.5, 2.0), (62.5, 3.0), (87.5, 4.0)];
        assert_eq!(by_percent(&[4, 2, 0, 3]), expected);
        assert_eq!(by_percent(&[7]), [(50.0, 7.0)]);
    }

    #[test]
    fn an_axis_has_some_round_numbers() {
        for (from, to, expected) in [
            (1e2, 1e5, &[1e2, 1e3, 1e4, 1e5][..]),
            (8.0, 1000.0, &[10.0, 100.0, 1000.0]),
            (8.0, 400.0, &[10.0, 30.0, 100.0, 300.0]),
            (146.0, 430.0, &[150.0, 200.0, 300.0, 400.0]),
            (1.0, 1e19, &[1.0, 1e5, 1e10, 1e15]),
            (101.0, 102.0, &[]),
        ] {
            let found = ticks(from, to);
            let close = |(a, b): (&f64, &f64)| (a / b - 1.0).abs() < 1e-9;
            assert!(
                found.len() == expected.len() && found.iter().zip(expected).all(close),
                "{found:?}"
            );
        }
        assert_eq!(time_label(1_500_000.0), "1.5 ms");
        assert_eq!(time_label(10_000.0), "10 us");
        assert_eq!(time_label(300.0), "300 ns");
    }
}
