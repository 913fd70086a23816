//! Line charts as SVG, side by side: nothing but lines and text, so that every browser shows them as they are.

use serde::{Deserialize, Serialize};
use svg::Document;
use svg::node::element::path::Data;
use svg::node::element::{Circle, Group, Line, Path, Rectangle, Text};

/// Size of one chart in pixels, and of what surrounds its lines.
const WIDTH: f64 = 430.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 68.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 76.0;
/// Height of a row of names, where there are many.
const NAME: f64 = 12.0;
/// Charts beside each other.
const COLUMNS: usize = 2;
/// Told apart by people who do not see all colours, too.
const COLORS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#444444"];
/// About so many numbers stand at an axis.
const TICKS: f64 = 5.0;

/// How values lie along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scale {
    /// In equal steps, from zero on when there is nothing below.
    Linear,
    /// In equal factors.
    Log,
}

/// One axis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Axis {
    /// What it shows, with its unit.
    pub(crate) label: String,
    pub(crate) scale: Scale,
    /// Where numbers stand, and what they say; where it is empty, round numbers do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ticks: Vec<(f64, String)>,
}

impl Axis {
    pub(crate) fn new(label: impl Into<String>, scale: Scale) -> Self {
        Axis { label: label.into(), scale, ticks: Vec::new() }
    }

    /// In equal factors, with numbers just where something was measured.
    pub(crate) fn of(label: impl Into<String>, ticks: impl IntoIterator<Item = (f64, String)>) -> Self {
        Axis { ticks: ticks.into_iter().collect(), ..Axis::new(label, Scale::Log) }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// Which colour.
    pub(crate) color: usize,
    pub(crate) dashed: bool,
    /// Whether each point is marked.
    pub(crate) marked: bool,
}

impl Series {
    /// A line with its points marked.
    pub(crate) fn new(name: impl Into<String>, color: usize, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let (name, points) = (name.into(), points.into_iter().collect());
        Series { name, points, color, dashed: false, marked: true }
    }
}

/// One chart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

/// Charts beside and below each other, as the text of an SVG file.
pub(crate) fn draw(charts: &[Chart], footer: &str) -> String {
    let columns = charts.len().clamp(1, COLUMNS);
    let rows = charts.len().div_ceil(COLUMNS).max(1);
    // Below each chart there is room for three rows of names.
    let names = charts.iter().map(|chart| chart.series.len().div_ceil(2)).max().unwrap_or(0);
    let row_height = HEIGHT + names.saturating_sub(3) as f64 * NAME;
    let (width, height) = (WIDTH * columns as f64, row_height * rows as f64 + 20.0);
    let background = Rectangle::new().set("width", width).set("height", height).set("fill", "#ffffff");
    let mut document = Document::new()
        .set("viewBox", (0, 0, width as i64, height as i64))
        .set("width", width)
        .set("height", height)
        .set("font-family", "sans-serif")
        .set("font-size", 11)
        .add(background);
    for (at, chart) in charts.iter().enumerate() {
        let (x, y) = ((at % COLUMNS) as f64 * WIDTH, (at / COLUMNS) as f64 * row_height);
        document = document.add(chart.group().set("transform", format!("translate({x} {y})")));
    }
    let footer = text(footer, 10.0, height - 8.0, "start").set("fill", "#666666").set("font-size", 10);
    document.add(footer).to_string() + "\n"
}

/// Where the values of an axis lie, from 0 to 1.
struct Range {
    scale: Scale,
    low: f64,
    high: f64,
}

impl Range {
    /// Of all that is shown; `None` when nothing can be.
    fn of(axis: &Axis, values: impl Iterator<Item = f64>) -> Option<Self> {
        let fits = |value: &f64| value.is_finite() && (axis.scale == Scale::Linear || *value > 0.0);
        let (mut low, mut high) = values
            .chain(axis.ticks.iter().map(|tick| tick.0))
            .filter(fits)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return None;
        }
        match axis.scale {
            Scale::Linear => {
                low = low.min(0.0);
                high += (high - low) * 0.05;
            }
            Scale::Log => (low, high) = (low / 1.15, high * 1.15),
        }
        if low >= high {
            high = low + 1.0;
        }
        Some(Range { scale: axis.scale, low, high })
    }

    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        }
    }

    /// Round numbers in it.
    fn ticks(&self) -> Vec<(f64, String)> {
        let values: Vec<f64> = match self.scale {
            Scale::Linear => {
                let rough = (self.high - self.low) / TICKS;
                let unit = 10f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * unit).into_iter().find(|step| *step >= rough);
                let step = step.unwrap_or(rough);
                let (first, last) = ((self.low / step).ceil() as i64, (self.high / step).floor() as i64);
                (first..=last).map(|at| at as f64 * step).collect()
            }
            Scale::Log => {
                let decades = (self.high / self.low).log10();
                let parts: &[f64] = if decades > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
                let all = (first..=last).flat_map(|power| parts.iter().map(move |part| part * 10f64.powi(power)));
                all.filter(|value| (self.low..=self.high).contains(value)).collect()
            }
        };
        values.into_iter().map(|value| (value, short(value))).collect()
    }
}

impl Chart {
    fn group(&self) -> Group {
        let mut group = Group::new();
        let title = text(&self.title, WIDTH / 2.0, 18.0, "middle").set("font-weight", "bold").set("font-size", 12);
        group = group.add(title);
        let points = || self.series.iter().flat_map(|series| &series.points);
        let ranges = Range::of(&self.x, points().map(|p| p.0)).zip(Range::of(&self.y, points().map(|p| p.1)));
        let Some((x, y)) = ranges else {
            return group.add(text("nothing was measured", WIDTH / 2.0, HEIGHT / 2.0, "middle"));
        };
        let at_x = |value: f64| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        let at_y = |value: f64| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM);
        let own = |axis: &Axis, range: &Range| if axis.ticks.is_empty() { range.ticks() } else { axis.ticks.clone() };
        for (value, label) in own(&self.x, &x) {
            group = group.add(line((at_x(value), TOP), (at_x(value), HEIGHT - BOTTOM), "#dddddd"));
            group = group.add(text(&label, at_x(value), HEIGHT - BOTTOM + 15.0, "middle"));
        }
        for (value, label) in own(&self.y, &y) {
            group = group.add(line((LEFT, at_y(value)), (WIDTH - RIGHT, at_y(value)), "#dddddd"));
            group = group.add(text(&label, LEFT - 6.0, at_y(value) + 4.0, "end"));
        }
        group = group.add(line((LEFT, TOP), (LEFT, HEIGHT - BOTTOM), "#333333"));
        group = group.add(line((LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM), "#333333"));
        group = group.add(text(&self.x.label, f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - BOTTOM + 32.0, "middle"));
        let turned = format!("translate(14 {}) rotate(-90)", f64::midpoint(TOP, HEIGHT - BOTTOM));
        group = group.add(text(&self.y.label, 0.0, 0.0, "middle").set("transform", turned));
        for series in &self.series {
            group = group.add(series.path(&at_x, &at_y));
        }
        group.add(self.legend())
    }

    /// Two names in a row.
    fn legend(&self) -> Group {
        let mut group = Group::new();
        let (first, step) = if self.series.len() > 4 { (30.0, NAME) } else { (26.0, 14.0) };
        for (at, series) in self.series.iter().enumerate() {
            let x = LEFT + (at % 2) as f64 * (WIDTH - LEFT) / 2.0;
            let y = HEIGHT - first + (at / 2) as f64 * step;
            let sample = line((x, y - 4.0), (x + 22.0, y - 4.0), series.color()).set("stroke-width", 2);
            group = group.add(sample.set("stroke-dasharray", series.dashes()));
            group = group.add(text(&series.name, x + 27.0, y, "start"));
        }
        group
    }
}

impl Series {
    fn color(&self) -> &'static str {
        COLORS[self.color % COLORS.len()]
    }

    fn dashes(&self) -> &'static str {
        if self.dashed { "5 3" } else { "none" }
    }

    fn path(&self, at_x: &impl Fn(f64) -> f64, at_y: &impl Fn(f64) -> f64) -> Group {
        let places = self.points.iter().map(|&(x, y)| (rounded(at_x(x)), rounded(at_y(y))));
        let places: Vec<(f64, f64)> = places.filter(|place| place.0.is_finite() && place.1.is_finite()).collect();
        let mut data = Data::new();
        for (at, &place) in places.iter().enumerate() {
            data = if at == 0 { data.move_to(place) } else { data.line_to(place) };
        }
        let path = Path::new().set("fill", "none").set("stroke", self.color()).set("stroke-width", 2);
        let mut group = Group::new().add(path.set("stroke-dasharray", self.dashes()).set("d", data));
        for (x, y) in places.into_iter().filter(|_| self.marked) {
            group = group.add(Circle::new().set("cx", x).set("cy", y).set("r", 3).set("fill", self.color()));
        }
        group
    }
}

fn line(from: (f64, f64), to: (f64, f64), color: &str) -> Line {
    let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(rounded);
    Line::new().set("x1", x1).set("y1", y1).set("x2", x2).set("y2", y2).set("stroke", color)
}

fn text(content: &str, x: f64, y: f64, anchor: &str) -> Text {
    Text::new(content).set("x", rounded(x)).set("y", rounded(y)).set("text-anchor", anchor)
}

/// A tenth of a pixel is enough, and keeps files small.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// A number at an axis.
fn short(value: f64) -> String {
    let trim = |text: String| text.trim_end_matches('0').trim_end_matches('.').to_owned();
    match value.abs() {
        size if size >= 1e6 => trim(format!("{:.1}", value / 1e6)) + "M",
        size if size >= 1e4 => trim(format!("{:.1}", value / 1e3)) + "k",
        size if !(1e-9..10.0).contains(&size) => format!("{value:.0}"),
        _ => trim(format!("{value:.2}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)], scale: Scale) -> Chart {
        let series = Series { name: "a & b".into(), points: points.to_vec(), color: 0, dashed: false, marked: true };
        let (x, y) = (Axis::new("clients", scale), Axis::new("op/s", scale));
        Chart { title: "t".into(), x, y, series: vec![series] }
    }

    #[test]
    fn a_chart_shows_every_point_and_is_xml() {
        let text = draw(&[chart(&[(1.0, 10.0), (16.0, 4000.0), (256.0, 90_000.0)], Scale::Log)], "x < y");
        assert_eq!(text.matches("<circle").count(), 3, "{text}");
        assert!(text.contains("a &amp; b") && text.contains("x &lt; y") && text.contains("10k"), "{text}");
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn what_cannot_be_shown_is_left_out() {
        let text = draw(&[chart(&[(0.0, 5.0), (1.0, 0.0), (2.0, 3.0)], Scale::Log)], "");
        assert_eq!(text.matches("<circle").count(), 1, "{text}");
        assert!(draw(&[chart(&[], Scale::Linear)], "").contains("nothing was measured"));
        assert_eq!(draw(&[chart(&[(0.0, 0.0)], Scale::Linear)], "").matches("<circle").count(), 1);
    }

    #[test]
    fn numbers_at_an_axis_are_round() {
        let shown = |low, high, scale| -> Vec<String> {
            Range { scale, low, high }.ticks().into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(shown(0.0, 24_000.0, Scale::Linear), ["0", "5000", "10k", "15k", "20k"]);
        assert_eq!(shown(-0.5, 1.5, Scale::Linear), ["-0.5", "0", "0.5", "1", "1.5"]);
        assert_eq!(shown(90.0, 1100.0, Scale::Log), ["100", "200", "500", "1000"]);
        assert_eq!(shown(1.0, 1.2e6, Scale::Log), ["1", "10", "100", "1000", "10k", "100k", "1M"]);
    }
}
