//! A run as a picture: a lane for each server, an arrow for each message, a colour for each term.

use std::collections::BTreeMap;
use std::fmt;

use raft_core::sim::swarm::watch::{Arrow, Lane, Watch};
use raft_core::{Instant, LogIndex, Role, Term};
use svg::Document;
use svg::node::element::{Definitions, Group, Line, Marker, Path, Rectangle, Text, Title};

/// Pixels: around the lanes, between two of them, for a millisecond.
const MARGIN: f64 = 70.0;
const LANE: f64 = 150.0;
const THICK: f64 = 8.0;

/// Remembers what happens between two moments, to draw it later.
#[derive(Debug)]
pub(crate) struct Timeline {
    from: Instant,
    to: Instant,
    messages: Vec<Arrow>,
    /// What each server was, since when.
    lanes: BTreeMap<usize, Vec<(Instant, Lane)>>,
    notes: Vec<(Instant, String)>,
}

impl Watch for Timeline {
    fn line(&mut self, at: Instant, line: fmt::Arguments<'_>) {
        if self.shows(at) {
            let line = line.to_string();
            // What servers and messages do is drawn; faults and failures are told.
            let drawn = ["n", "c"].iter().any(|who| {
                line.strip_prefix(who).is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()))
            });
            if !drawn || line.contains("crashes") || line.contains("frozen") || line.contains("starts with") {
                self.notes.push((at, line));
            }
        }
    }

    fn message(&mut self, message: &Arrow) {
        if self.shows(message.arrived.unwrap_or(message.sent)) {
            self.messages.push(*message);
        }
    }

    fn server(&mut self, at: Instant, server: usize, now: Lane) {
        if at < self.to {
            self.lanes.entry(server).or_default().push((at, now));
        }
    }
}

impl Timeline {
    /// Of what happens between `from` and `to`, in milliseconds.
    pub(crate) fn new(from: u64, to: u64) -> Self {
        let (from, to) = (Instant::from_millis(from), Instant::from_millis(to));
        Timeline { from, to, messages: Vec::new(), lanes: BTreeMap::new(), notes: Vec::new() }
    }

    fn shows(&self, at: Instant) -> bool {
        (self.from..self.to).contains(&at)
    }

    /// Time goes from left to right; so many pixels for a millisecond that the picture stays of a size to look at.
    fn x(&self, at: Instant) -> f64 {
        let span = (self.to.0 - self.from.0) as f64 / 1e6;
        let scale = (2400.0 / span).clamp(2.0, 60.0);
        MARGIN + at.0.clamp(self.from.0, self.to.0).saturating_sub(self.from.0) as f64 / 1e6 * scale
    }

    fn y(server: usize) -> f64 {
        MARGIN + LANE * server as f64
    }

    /// The picture.
    pub(crate) fn draw(&self) -> Document {
        let servers = self.lanes.keys().max().map_or(1, |last| last + 1);
        let (width, bottom) = (self.x(self.to) + MARGIN, Self::y(servers));
        let height = bottom + 18.0 * self.notes.len() as f64 + MARGIN;
        let mut document = Document::new()
            .set("viewBox", (0, 0, width, height))
            .set("width", width)
            .set("height", height)
            .set("font-family", "sans-serif")
            .set("font-size", 11)
            .add(arrow_head())
            .add(Rectangle::new().set("width", width).set("height", height).set("fill", "white"))
            .add(self.axis(bottom));
        for (server, lane) in &self.lanes {
            document = document.add(self.lane(*server, lane));
        }
        for message in &self.messages {
            document = document.add(self.arrow(message));
        }
        for (row, (at, note)) in self.notes.iter().enumerate() {
            let (x, y) = (self.x(*at), bottom + 18.0 * (row + 1) as f64);
            let mark = Line::new().set("x1", x).set("x2", x).set("y1", MARGIN - 20.0).set("y2", y);
            document = document
                .add(mark.set("stroke", "#c00").set("stroke-width", 0.5).set("stroke-dasharray", "3 3"))
                .add(Text::new(short(note, 160)).set("x", x.min(width - 600.0)).set("y", y).set("fill", "#c00"));
        }
        document
    }

    fn axis(&self, bottom: f64) -> Group {
        let span = (self.to.0 - self.from.0) / 1_000_000;
        let step =
            [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].into_iter().find(|step| span / step <= 40).unwrap_or(5000);
        let first = (self.from.0 / 1_000_000).div_ceil(step) * step;
        let mut group = Group::new().set("fill", "#888").set("stroke-width", 0.5);
        for ms in (first..=self.to.0 / 1_000_000).step_by(step as usize) {
            let x = self.x(Instant::from_millis(ms));
            let tick = Line::new().set("x1", x).set("x2", x).set("y1", MARGIN - 30.0).set("y2", bottom - LANE / 2.0);
            group = group
                .add(tick.set("stroke", "#ddd"))
                .add(Text::new(format!("{ms} ms")).set("x", x + 2.0).set("y", MARGIN - 34.0));
        }
        group
    }

    /// A thin line while the server is down, a thick one while it runs, thickest while it leads; a number where its commit index moves.
    fn lane(&self, server: usize, changes: &[(Instant, Lane)]) -> Group {
        let y = Self::y(server);
        let name = Text::new(format!("n{}", server + 1)).set("x", 20).set("y", y + 4.0).set("font-weight", "bold");
        let mut group = Group::new().add(name);
        let (mut shown, mut known) = ((Term(0), Role::Follower), LogIndex::ZERO);
        for (i, (since, lane)) in changes.iter().enumerate() {
            let until = changes.get(i + 1).map_or(self.to, |(at, _)| *at);
            if until < self.from {
                continue;
            }
            let (x, end) = (self.x(*since), self.x(until));
            let bar = Rectangle::new().set("x", x).set("width", (end - x).max(0.5));
            let Lane::Up { term, role, commit } = lane else {
                group = group.add(bar.set("y", y - 0.5).set("height", 1).set("fill", "#bbb"));
                continue;
            };
            let half = match role {
                Role::Leader => THICK,
                Role::Follower => THICK / 2.5,
                Role::Candidate | Role::PreCandidate => THICK / 1.5,
            };
            let words = format!("n{} is {role} in {term}, commit {commit}", server + 1);
            let bar =
                bar.set("y", y - half).set("height", 2.0 * half).set("fill", colour(*term)).add(Title::new(words));
            group = group.add(bar);
            if (*term, *role) != shown {
                shown = (*term, *role);
                let label = Text::new(format!("{role} {term}")).set("x", x + 2.0).set("y", y - THICK - 3.0);
                group = group.add(label.set("fill", colour(*term)));
            }
            if *commit > known {
                known = *commit;
                group =
                    group.add(Text::new(commit.to_string()).set("x", x).set("y", y + THICK + 10.0).set("fill", "#555"));
            }
        }
        group
    }

    fn arrow(&self, message: &Arrow) -> Group {
        let (x1, y1, y2) = (self.x(message.sent), Self::y(message.from), Self::y(message.to));
        let colour = colour(message.term);
        let what = match message.entries {
            0 => format!("{} {}", message.kind, message.term),
            entries => format!("{} {} ({entries})", message.kind, message.term),
        };
        let title = Title::new(format!("n{} to n{}: {what}", message.from + 1, message.to + 1));
        // A message that is lost ends on its way, in a cross.
        let (x2, y2) = match message.arrived {
            Some(at) => (self.x(at), y2),
            None => (x1 + 6.0, y1 + (y2 - y1) * 0.3),
        };
        let line = Line::new().set("x1", x1).set("y1", y1).set("x2", x2).set("y2", y2).set("stroke", colour.clone());
        let mut group = Group::new().add(title);
        group = match message.arrived {
            Some(_) => group.add(line.set("marker-end", "url(#head)")),
            None => {
                let cross = format!("M{},{} l6,6 m0,-6 l-6,6", x2 - 3.0, y2 - 3.0);
                group.add(line.set("stroke-dasharray", "4 2")).add(Path::new().set("d", cross).set("stroke", "#c00"))
            }
        };
        let quiet = message.kind.starts_with("heartbeat") || message.kind == "ack";
        if quiet {
            return group.set("opacity", 0.5);
        }
        let (x, y) = (x1 + (x2 - x1) * 0.3 + 3.0, y1 + (y2 - y1) * 0.3);
        group.add(Text::new(what).set("x", x).set("y", y).set("font-size", 9).set("fill", colour))
    }
}

fn arrow_head() -> Definitions {
    let head = Path::new().set("d", "M0,0 L6,3 L0,6 z").set("fill", "#444");
    let marker =
        Marker::new().set("id", "head").set("markerWidth", 6).set("markerHeight", 6).set("refX", 6).set("refY", 3);
    Definitions::new().add(marker.set("orient", "auto").add(head))
}

/// Neighbouring terms have colours far apart.
fn colour(term: Term) -> String {
    format!("hsl({}, 70%, 40%)", term.0.wrapping_mul(137) % 360)
}

fn short(text: &str, len: usize) -> String {
    text.chars().take(len).collect()
}
