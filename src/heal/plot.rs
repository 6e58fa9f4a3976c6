//! The curve of a run, as an SVG picture: figures on held-out text, the running means of the losses, and how far turned facts
//! are told, against tokens.

use std::path::Path;

use plotters::prelude::*;

use super::train::Entry;
use crate::error::{Error, Result};

/// Size of a panel.
const SIZE: (u32, u32) = (820, 226);
/// Told apart by those who don't see all colours too (source: Okabe & Ito, "Color Universal Design").
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// A line: its name, and its points.
type Series = (String, Vec<(f64, f64)>);

/// Draws the curve of `entries` to `path`.
///
/// # Errors
/// [`Error::Invalid`] without entries, [`Error::Io`] if it can't be written.
pub fn write(entries: &[Entry], path: &Path) -> Result<()> {
    if entries.is_empty() {
        return Err(Error::invalid("the log", "has no entries"));
    }
    let mut svg = String::new();
    draw(entries, &mut svg).map_err(|e| Error::invalid(path.display().to_string(), e))?;
    std::fs::write(path, svg).map_err(|e| Error::io(path, e))
}

fn draw(entries: &[Entry], svg: &mut String) -> Result<(), String> {
    let turned = series(entries, |e| e.turned.iter().map(|(name, t)| (name.clone(), t.likelier)).collect());
    let count = if turned.is_empty() { 3 } else { 4 };
    let area = SVGBackend::with_string(svg, (SIZE.0, count * SIZE.1)).into_drawing_area();
    area.fill(&WHITE).map_err(|e| e.to_string())?;
    let panels = area.split_evenly((count as usize, 1));
    let held = |figure: fn(&super::evaluate::Figures) -> f64| {
        series(entries, |e| e.held.iter().map(|(name, f)| (name.clone(), figure(f))).collect())
    };
    panel(&panels[0], "KL to the base on held-out text, nats", &held(|f| f.kl))?;
    panel(&panels[1], "same first choice as the base on held-out text, share", &held(|f| f.top1))?;
    let losses = series(entries, |e| e.losses.iter().map(|(n, v)| (n.clone(), *v)).collect());
    panel(&panels[2], "loss in training, running mean, nats", &losses)?;
    if let Some(last) = panels.get(3) {
        panel(last, "turned facts whose new answer is likelier, share", &turned)?;
    }
    area.present().map_err(|e| e.to_string())
}

/// The points of each name that `of` gives, against thousands of tokens.
fn series(entries: &[Entry], of: impl Fn(&Entry) -> Vec<(String, f64)>) -> Vec<Series> {
    let mut all = std::collections::BTreeMap::<String, Vec<(f64, f64)>>::new();
    for entry in entries {
        for (name, value) in of(entry) {
            all.entry(name).or_default().push((entry.tokens as f64 / 1e3, value));
        }
    }
    all.into_iter().collect()
}

fn panel<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    title: &str,
    lines: &[Series],
) -> Result<(), String> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(0f64, f64::max);
    let (wide, high) = (most(|p| p.0).max(1e-3), (1.05 * most(|p| p.1)).max(1e-3));
    let text = |e: DrawingAreaErrorKind<B::ErrorType>| e.to_string();
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(32)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..wide, 0.0..high)
        .map_err(text)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("thousand tokens")
        .x_labels(8)
        .y_labels(5)
        .draw()
        .map_err(text)?;
    for ((name, points), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(2))
            .map_err(text)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    if lines.is_empty() {
        return Ok(());
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE.mix(0.8))
        .draw()
        .map_err(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::heal::evaluate::{Figures, Turned};

    #[test]
    fn a_curve_has_a_line_for_each_text() {
        let entry = |step: u64| Entry {
            minutes: step as f64,
            step,
            tokens: step * 1000,
            device: "CPU".into(),
            tokens_per_second: 1.0,
            rate: 1.0,
            losses: [("chats".to_owned(), 1.0 / (step + 1) as f64)].into(),
            held: [(
                "encyclopedia".to_owned(),
                Figures { positions: 5, nll: 3.0, base_nll: 2.5, kl: 0.5, top1: 0.7 },
            )]
            .into(),
            turned: [(
                "turned held".to_owned(),
                Turned { statements: 5, margin: -0.5, likelier: 0.4, first: 0.2 },
            )]
            .into(),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("curve.svg");
        write(&[entry(0), entry(5)], &path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert_eq!(svg.matches("encyclopedia").count(), 2);
        assert_eq!(svg.matches("chats").count(), 1);
        assert_eq!(svg.matches("turned held").count(), 1);
        let untold = Entry { turned: BTreeMap::new(), ..entry(5) };
        write(&[untold], &path).unwrap();
        assert!(!std::fs::read_to_string(&path).unwrap().contains("likelier"));
        assert!(svg.matches("<polyline").count() >= 3, "{svg}");
        assert!(write(&[], &path).is_err());
    }
}
