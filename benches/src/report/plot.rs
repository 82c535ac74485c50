//! The plot.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::compare::Row;

/// Pixels.
const WIDTH: u32 = 1000;
const BAR: u32 = 13;

/// What can be told apart in print, too.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x55, 0x55, 0x55),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
];

pub(super) fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

/// The rows as an SVG: a group of bars for each comparison, a bar for each way,
/// its length the time it took (logarithmic).
///
/// # Errors
/// What the backend says.
pub fn plot(title: &str, rows: &[Row]) -> Result<String> {
    let mut svg = String::new();
    draw(title, rows, &mut svg).map_err(|error| anyhow!("drawing the plot: {error}"))?;
    Ok(svg)
}

fn draw(title: &str, rows: &[Row], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let groups: Vec<&[Row]> = rows.chunk_by(|a, b| a.comparison() == b.comparison()).collect();
    let mut ways: Vec<&str> = Vec::new();
    for row in rows {
        if !ways.contains(&row.way.as_str()) {
            ways.push(&row.way);
        }
    }
    let legend = 30 * ways.len().div_ceil(COLOURS.len()) as u32;
    let height = 100 + legend + BAR * (ways.len() as u32 + 1) * groups.len() as u32;
    let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let ms = |row: &Row| row.wall_ns.map(|ns| ns as f64 / 1e6);
    let times = || rows.iter().filter_map(ms);
    let shortest = times().fold(f64::INFINITY, f64::min).min(1.0) / 2.0;
    // Room for the legend behind the longest bar.
    let longest = times().fold(shortest * 10.0, f64::max) * 8.0;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(330)
        .build_cartesian_2d((shortest..longest).log_scale(), 0.0..groups.len() as f64)?;
    let names: Vec<_> = groups.iter().map(|group| group[0].title()).collect();
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_desc("milliseconds, logarithmic")
        .y_labels(2 * groups.len() + 1)
        .y_label_formatter(&|y| label(*y, &names))
        .draw()?;
    let bar = 1.0 / (ways.len() + 1) as f64;
    for (place, way) in ways.iter().enumerate() {
        let bars = groups.iter().enumerate().flat_map(|(index, group)| {
            let from_top = (groups.len() - 1 - index) as f64;
            let top = from_top + 1.0 - bar * (place as f64 + 0.5);
            let walls = group.iter().filter(|row| row.way == *way).filter_map(ms);
            walls.map(move |ms| [(shortest, top - bar), (ms, top)])
        });
        let bars: Vec<_> =
            bars.map(|corners| Rectangle::new(corners, colour(place).filled())).collect();
        if !bars.is_empty() {
            chart.draw_series(bars)?.label(*way).legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour(place).filled())
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

/// The groups' names stand in their middle.
fn label(y: f64, names: &[String]) -> String {
    let is_here = |index: &usize| (names.len() as f64 - 0.5 - *index as f64 - y).abs() < 0.01;
    (0..names.len()).find(is_here).map(|index| names[index].clone()).unwrap_or_default()
}
