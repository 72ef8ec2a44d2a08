//! Line plots as SVG, without scripts: inline, where colours are classes so that the page's style decides about light and dark, or as
//! files that bring both.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 38.0;
/// Height of what stands above a plot in a file: its title and its legend.
const HEAD: f64 = 56.0;
/// About how wide a character of the legend is.
const CHARACTER: f64 = 6.9;
/// How a plot in a file looks. The colours are those of the report.
const STYLE: &str = include_str!("plot.css");
/// Points of a line beyond which they are not marked one by one.
const MARKED_MAX: usize = 130;

/// How an axis divides its length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    /// From 0.
    Linear,
    /// Powers of ten.
    Log,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with its unit.
    pub name: &'static str,
    /// How.
    pub scale: Scale,
    /// The text of a value, for hints.
    pub show: fn(f64) -> String,
    /// The text of a tick, which is a round value.
    pub tick: fn(f64) -> String,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// For the legend.
    pub name: &'static str,
    /// The number of its colour, from 1.
    pub colour: u8,
    /// Its points by their first coordinate.
    pub points: Vec<(f64, f64)>,
}

/// A plot.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Along.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// What is drawn.
    pub lines: Vec<Line>,
    /// A limit across, and what it is.
    pub limit: Option<(f64, String)>,
}

/// The range of an axis and its ticks.
struct Range {
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Range {
    fn new(scale: Scale, values: impl Iterator<Item = f64> + Clone, ticks_max: f64) -> Self {
        let high = values.clone().fold(0.0, f64::max);
        match scale {
            Scale::Linear => {
                let step = nice_step(if high > 0.0 { high } else { 1.0 } / ticks_max);
                let count = (high / step).ceil().max(1.0);
                Self {
                    scale,
                    low: 0.0,
                    high: step * count,
                    ticks: (0..=count as u32).map(|n| f64::from(n) * step).collect(),
                }
            }
            Scale::Log => {
                let least = values.filter(|v| *v > 0.0).fold(f64::INFINITY, f64::min);
                let (low, high) = if least.is_finite() {
                    (least.log10().floor(), high.log10().ceil())
                } else {
                    (0.0, 1.0)
                };
                let high = high.max(low + 1.0);
                let decades = low as i32..=high as i32;
                Self {
                    scale,
                    low: 10f64.powf(low),
                    high: 10f64.powf(high),
                    ticks: decades.map(|power| 10f64.powi(power)).collect(),
                }
            }
        }
    }

    /// Where a value is, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let place = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
        };
        place.clamp(0.0, 1.0)
    }
}

/// The next of 1, 2, 5, 10, 20 and so on.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let digit = least / power;
    let nice = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|nice| digit <= *nice + 1e-9);
    power * nice.unwrap_or(10.0)
}

impl Plot {
    /// The SVG element, behind a legend if there are several lines.
    #[must_use]
    pub fn svg(&self) -> String {
        let mut out = String::new();
        self.write_legend(&mut out);
        let _ = writeln!(
            out,
            r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{} by {}">"#,
            self.y.name, self.x.name
        );
        self.write_drawing(&mut out);
        out.push_str("</svg>\n");
        out
    }

    /// An SVG file with a title, which has no markup.
    #[must_use]
    pub fn file(&self, title: &str) -> String {
        let height = HEIGHT + HEAD;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n\
             <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\" rx=\"8\"/>\n\
             <text class=\"title\" x=\"16\" y=\"24\">{title}</text>\n<text class=\"name\" x=\"16\" y=\"45\">{}</text>\n",
            self.y.name
        );
        let width = |text: &str| text.chars().count() as f64 * CHARACTER;
        let mut at = 16.0 + width(self.y.name) + 24.0;
        for line in &self.lines {
            let _ = writeln!(
                out,
                r#"<line class="line c{}" x1="{at:.1}" x2="{:.1}" y1="41" y2="41"/><text class="name" x="{:.1}" y="45">{}</text>"#,
                line.colour,
                at + 16.0,
                at + 22.0,
                line.name
            );
            at += 22.0 + width(line.name) + 16.0;
        }
        let _ = writeln!(out, r#"<g transform="translate(0 {HEAD})">"#);
        self.write_drawing(&mut out);
        out.push_str("</g>\n</svg>\n");
        out
    }

    /// The axes and the lines, without what is around them.
    fn write_drawing(&self, out: &mut String) {
        let limit = self.limit.as_ref().map(|(value, _)| *value);
        let points = self.lines.iter().flat_map(|line| &line.points);
        let x = Range::new(self.x.scale, points.clone().map(|p| p.0), 10.0);
        let y = Range::new(self.y.scale, points.map(|p| p.1).chain(limit), 4.0);
        let at_x = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        let at_y = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM);
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for &tick in &y.ticks {
            let (at, text) = (at_y(tick), (self.y.tick)(tick));
            let _ = writeln!(
                out,
                r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{text}</text>"#,
                LEFT - 6.0,
                at + 4.0
            );
        }
        for (n, &tick) in x.ticks.iter().enumerate() {
            let (at, text) = (at_x(tick), (self.x.tick)(tick));
            // A narrow page leaves out every other one.
            let class = if n % 2 == 0 { "tick" } else { "tick odd" };
            let _ = writeln!(
                out,
                r#"<text class="{class}" x="{at:.1}" y="{:.1}" text-anchor="middle">{text}</text>"#,
                bottom + 16.0
            );
        }
        let _ = writeln!(
            out,
            r#"<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/><text class="name" x="{right}" y="{:.1}" text-anchor="end">{}</text>"#,
            HEIGHT - 4.0,
            self.x.name
        );
        if let Some((value, _)) = &self.limit {
            let at = at_y(*value);
            let _ = writeln!(
                out,
                r#"<line class="limit" x1="{LEFT}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/>"#
            );
        }
        for line in &self.lines {
            self.write_line(out, line, &at_x, &at_y);
        }
        // Above the lines, which it must not be lost among.
        if let Some((value, text)) = &self.limit {
            let _ = writeln!(
                out,
                r#"<text class="tick over" x="{right}" y="{:.1}" text-anchor="end">{text}</text>"#,
                at_y(*value) - 4.0
            );
        }
    }

    fn write_legend(&self, out: &mut String) {
        let _ = write!(out, r#"<p class="legend">{}"#, self.y.name);
        if self.lines.len() > 1 {
            for line in &self.lines {
                let _ = write!(
                    out,
                    r#" <span><i class="key c{}"></i>{}</span>"#,
                    line.colour, line.name
                );
            }
        }
        out.push_str("</p>\n");
    }

    fn write_line(
        &self,
        out: &mut String,
        line: &Line,
        at_x: &impl Fn(f64) -> f64,
        at_y: &impl Fn(f64) -> f64,
    ) {
        let _ = write!(out, r#"<polyline class="line c{}" points=""#, line.colour);
        for &(x, y) in &line.points {
            let _ = write!(out, "{:.1},{:.1} ", at_x(x), at_y(y));
        }
        out.push_str("\"/>\n");
        if line.points.len() > MARKED_MAX {
            return;
        }
        // Larger than what is seen, so that the hint comes without aiming.
        for &(x, y) in &line.points {
            let _ = writeln!(
                out,
                r#"<circle class="hit" cx="{:.1}" cy="{:.1}" r="6"><title>{}: {} at {}</title></circle>"#,
                at_x(x),
                at_y(y),
                line.name,
                (self.y.show)(y),
                (self.x.show)(x)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(value: f64) -> String {
        value.to_string()
    }

    #[test]
    fn steps_are_round_and_ranges_hold_all_values() {
        assert_eq!(
            [0.3, 1.0, 1.1, 4.0, 7.0].map(nice_step),
            [0.5, 1.0, 2.0, 5.0, 10.0]
        );
        let range = Range::new(Scale::Linear, [3.0, 17.0].into_iter(), 4.0);
        assert_eq!(range.ticks, [0.0, 5.0, 10.0, 15.0, 20.0]);
        let range = Range::new(Scale::Log, [30.0, 1700.0].into_iter(), 4.0);
        assert_eq!(range.ticks, [10.0, 100.0, 1000.0, 10_000.0]);
        assert_eq!([range.place(1.0), range.place(100_000.0)], [0.0, 1.0]);
    }

    #[test]
    fn nothing_to_plot_is_still_a_plot() {
        for scale in [Scale::Linear, Scale::Log] {
            let axis = || Axis {
                name: "n",
                scale,
                show,
                tick: show,
            };
            let plot = Plot {
                x: axis(),
                y: axis(),
                lines: Vec::new(),
                limit: None,
            };
            for svg in [plot.svg(), plot.file("nothing")] {
                assert!(svg.contains("</svg>") && !svg.contains("NaN") && !svg.contains("inf"));
            }
        }
    }
}
