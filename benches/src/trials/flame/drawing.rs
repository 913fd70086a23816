//! A flame graph as SVG: threads at the bottom, what they call above, as wide as it takes time; coloured by the part it belongs to.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::parts::Part;
use super::stacks::Sample;

/// Sizes in pixels.
const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 15.0;
const MARGIN: f64 = 10.0;
const HEAD: f64 = 80.0;
/// What is narrower is left out, with all that it calls.
const NARROWEST: f64 = 0.8;
/// About as wide as a letter.
const LETTER: f64 = 6.2;
/// Longest name that is kept, in letters.
const LONGEST: usize = 110;
/// Parts in the legend, side by side.
const COLUMNS: usize = 6;

/// A function in the picture, and what it calls.
#[derive(Default)]
struct Node {
    weight: u64,
    part: Option<Part>,
    calls: BTreeMap<String, Node>,
}

impl Node {
    fn of(samples: &[Sample]) -> Node {
        let mut root = Node::default();
        for sample in samples {
            root.weight += sample.weight;
            let mut at = root.calls.entry(thread(&sample.thread).to_owned()).or_default();
            at.weight += sample.weight;
            // What belongs to nobody is of whoever calls it.
            let mut part = None;
            for frame in sample.frames.iter().rev() {
                part = Part::of_call(frame, part);
                at = at.calls.entry(frame.name.clone()).or_default();
                at.weight += sample.weight;
                at.part = at.part.or(part);
            }
        }
        root
    }

    /// How many functions stand upon each other, as far as they are wide enough.
    fn depth(&self, least: u64) -> usize {
        let shown = self.calls.values().filter(|node| node.weight >= least);
        shown.map(|node| 1 + node.depth(least)).max().unwrap_or(0)
    }
}

/// A name without the number of the node.
fn thread(name: &str) -> &str {
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
    name.strip_suffix('-').unwrap_or(name)
}

/// Where things are drawn.
struct Canvas {
    svg: String,
    whole: f64,
    least: u64,
    bottom: f64,
}

/// The picture of these samples.
pub(super) fn draw(title: &str, samples: &[Sample]) -> String {
    let root = Node::of(samples);
    let whole = root.weight.max(1) as f64;
    let least = (NARROWEST / (WIDTH - 2.0 * MARGIN) * whole).ceil() as u64;
    let height = HEAD + HEIGHT * (root.depth(least) as f64 + 1.0) + MARGIN;
    let mut canvas = Canvas { svg: String::new(), whole, least, bottom: height - MARGIN - HEIGHT };
    let _ = write!(
        canvas.svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\"><style>rect{{stroke:#fff;stroke-width:.4}}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{MARGIN}\" y=\"16\" font-size=\"13\">{}</text>\n",
        escape(title)
    );
    canvas.legend(samples);
    canvas.level(&root, MARGIN, 0);
    canvas.svg += "</svg>\n";
    canvas.svg
}

impl Canvas {
    /// Which colour is what, with its share.
    fn legend(&mut self, samples: &[Sample]) {
        let parts = super::sums(samples.iter().map(|sample| (Part::of(sample), sample.weight)));
        for (at, (part, weight)) in parts.iter().take(3 * COLUMNS).enumerate() {
            let step = (WIDTH - 2.0 * MARGIN) / COLUMNS as f64;
            let (x, y) = (MARGIN + step * (at % COLUMNS) as f64, 26.0 + 16.0 * (at / COLUMNS) as f64);
            let share = *weight as f64 / self.whole * 100.0;
            let _ = writeln!(
                self.svg,
                "<rect x=\"{x:.0}\" y=\"{y:.0}\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{:.0}\" y=\"{:.0}\" font-size=\"10\">{} {share:.0} %</text>",
                part.color(),
                x + 13.0,
                y + 9.0,
                part.name()
            );
        }
    }

    /// What a function calls, from `x` on, and so on upwards.
    fn level(&mut self, node: &Node, mut x: f64, level: usize) {
        for (name, call) in &node.calls {
            let width = call.weight as f64 / self.whole * (WIDTH - 2.0 * MARGIN);
            if call.weight >= self.least {
                self.frame(name, call, (x, width), level);
                self.level(call, x, level + 1);
            }
            x += width;
        }
    }

    fn frame(&mut self, name: &str, node: &Node, (x, width): (f64, f64), level: usize) {
        let y = self.bottom - HEIGHT * level as f64;
        let name: String = name.chars().take(LONGEST).collect();
        let fill = node.part.map_or("#cfd8dc", Part::color);
        let share = node.weight as f64 / self.whole * 100.0;
        let _ = write!(
            self.svg,
            "<g><title>{} {share:.1} %</title><rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{HEIGHT}\" fill=\"{fill}\"/>",
            escape(&name)
        );
        let fits = ((width - 4.0) / LETTER).max(0.0) as usize;
        if fits >= 3 {
            let _ = write!(
                self.svg,
                "<text x=\"{:.1}\" y=\"{}\">{}</text>",
                x + 2.0,
                y + 11.0,
                escape(&shorten(&name, fits))
            );
        }
        self.svg += "</g>\n";
    }
}

/// The end of a path says more than its beginning.
pub(super) fn shorten(name: &str, letters: usize) -> String {
    let count = name.chars().count();
    if count <= letters {
        return name.to_owned();
    }
    if name.contains("::") {
        return "..".chars().chain(name.chars().skip(count + 2 - letters)).collect();
    }
    name.chars().take(letters - 2).chain("..".chars()).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::stacks::Frame;
    use super::*;

    fn sample(thread: &str, weight: u64, frames: &[&str]) -> Sample {
        let frame = |name: &&str| Frame { name: (*name).to_owned(), kernel: false };
        Sample { thread: thread.into(), weight, frames: frames.iter().map(frame).collect() }
    }

    #[test]
    fn stacks_of_the_same_thread_stand_on_one_another() {
        let samples = [
            sample("raft-node-3", 6000, &["memcpy", "raft_core::a<b>", "main"]),
            sample("raft-node-3", 3000, &["main"]),
            sample("raft-writer", 999, &["rocksdb::w"]),
            sample("raft-writer", 1, &["never::seen"]),
        ];
        let svg = draw("a & b", &samples);
        for part in ["a &amp; b", "raft-node 90.0 %", "main 90.0 %", "raft_core::a&lt;b&gt; 60.0 %", "RocksDB 10 %"] {
            assert!(svg.contains(part), "{part} is not in {svg}");
        }
        assert!(!svg.contains("never::seen"), "too narrow to be seen");
        let of_memcpy = svg.lines().find(|line| line.contains("memcpy 60.0 %")).unwrap();
        assert!(of_memcpy.contains(Part::Core.color()), "it works for the core: {of_memcpy}");
        let (open, closed) = (svg.matches("<g>").count(), svg.matches("</g>").count());
        assert!(open == closed && open == 6, "{open} {closed}");
    }

    #[test]
    fn long_names_keep_what_says_most() {
        assert_eq!(shorten("raft_core::raft::step", 8), "..::step");
        assert_eq!(shorten("entry_SYSCALL_64", 8), "entry_..");
        assert_eq!(shorten("short", 8), "short");
    }
}
