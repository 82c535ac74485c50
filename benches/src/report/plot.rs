//! The plot.

use plotters::prelude::*;
use thiserror::Error;

use crate::bench::Row;
use crate::strategy::Strategy;

/// Why there is no plot.
#[derive(Debug, Error)]
#[error("drawing the plot: {0}")]
pub struct PlotError(String);

/// Pixels.
const WIDTH: u32 = 1000;
const GROUP: u32 = 64;

/// The rows as an SVG: a group of bars for each comparison, a bar for
/// each strategy, its length the time it took (logarithmic).
///
/// # Errors
/// [`PlotError`]: what the backend says.
pub fn plot(rows: &[Row]) -> Result<String, PlotError> {
    let mut svg = String::new();
    draw(rows, &mut svg).map_err(|error| PlotError(error.to_string()))?;
    Ok(svg)
}

fn draw(rows: &[Row], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let groups: Vec<&[Row]> = rows
        .chunk_by(|a, b| (a.scenario, a.regions, a.vcpus) == (b.scenario, b.regions, b.vcpus))
        .collect();
    let root = SVGBackend::with_string(svg, (WIDTH, 100 + GROUP * groups.len() as u32))
        .into_drawing_area();
    root.fill(&WHITE)?;
    let ms = |row: &Row| row.wall_ns.map(|ns| ns as f64 / 1e6);
    let times = || rows.iter().filter_map(ms);
    let shortest = times().fold(f64::INFINITY, f64::min).min(1.0) / 2.0;
    // Room for the legend behind the longest bar.
    let longest = times().fold(shortest * 10.0, f64::max) * 8.0;
    let mut chart = ChartBuilder::on(&root)
        .caption(title(rows), ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(170)
        .build_cartesian_2d((shortest..longest).log_scale(), 0.0..groups.len() as f64)?;
    let names: Vec<_> = groups.iter().filter_map(|group| group.first()).map(name).collect();
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_desc("milliseconds, logarithmic")
        .y_labels(2 * groups.len() + 1)
        .y_label_formatter(&|y| label(*y, &names))
        .draw()?;
    for strategy in Strategy::ALL {
        let bars = groups.iter().enumerate().flat_map(|(index, group)| {
            let from_top = (groups.len() - 1 - index) as f64;
            let bar = 0.8 / Strategy::ALL.len() as f64;
            let place = Strategy::ALL.iter().position(|other| *other == strategy).unwrap_or(0);
            let top = from_top + 0.9 - bar * place as f64;
            group
                .iter()
                .filter(move |row| row.strategy == strategy.name())
                .filter_map(ms)
                .map(move |ms| [(shortest, top - bar), (ms, top)])
        });
        let bars: Vec<_> =
            bars.map(|corners| Rectangle::new(corners, colour(strategy).filled())).collect();
        if !bars.is_empty() {
            chart.draw_series(bars)?.label(strategy.name()).legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour(strategy).filled())
            });
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}

fn title(rows: &[Row]) -> String {
    let executor = rows.first().map_or("", |row| row.executor.as_str());
    format!("Memslot changes on {executor}: time per scenario")
}

fn name(row: &Row) -> String {
    let vcpus = match row.vcpus {
        0 => "idle".to_owned(),
        busy => format!("{busy} busy"),
    };
    format!("{} {}, {vcpus}", row.scenario, row.regions)
}

/// The groups' names stand in their middle.
fn label(y: f64, names: &[String]) -> String {
    let is_here = |index: &usize| (names.len() as f64 - 0.5 - *index as f64 - y).abs() < 0.01;
    (0..names.len()).find(is_here).map(|index| names[index].clone()).unwrap_or_default()
}

const fn colour(strategy: Strategy) -> RGBColor {
    match strategy {
        Strategy::PerRegion => RGBColor(0x99, 0x99, 0x99),
        Strategy::Shim => RGBColor(0x1f, 0x77, 0xb4),
        Strategy::Batch => RGBColor(0x2c, 0xa0, 0x2c),
        Strategy::RawBatch => RGBColor(0x98, 0xdf, 0x8a),
        Strategy::Deferred => RGBColor(0xff, 0x7f, 0x0e),
    }
}
