//! The network of the course's labs: calls with replies, on links that can be cut, and that may delay, lose or
//! reorder. Decides the fate of calls and counts them; carrying them out is the cluster's part.
//!
//! The core's messages are one-way. What a server emits for the sender of a request while it handles that request is the reply
//! to that call and shares its fate; everything else is a call of its own.

use std::time::Duration;

use super::schedule::Dice;
use crate::message::{Envelope, Message};

/// How the network behaves at a given moment. A call keeps the behaviour of the moment when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// Nothing is delayed or lost on links that work.
    pub reliable: bool,
    /// Two thirds of the replies come 0.2 to 2.2 s late.
    pub long_reordering: bool,
    /// Calls to the unreachable take up to 7 s to fail, instead of 0.1 s.
    pub long_delays: bool,
}

/// A request on its way, and what is needed to route its reply. Servers are numbered from 0 here.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Who asks.
    pub from: usize,
    /// Who is asked.
    pub to: usize,
    /// Life of the caller: a reply to a former life is lost.
    pub from_life: u64,
    /// Life of the callee: a request to a former life is lost.
    pub to_life: u64,
    /// Which kind of reply it waits for.
    pub kind: CallKind,
    /// Its number, among all calls.
    pub number: u64,
    /// The weather when it was made.
    pub weather: Weather,
}

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// A pre-vote.
    PreVote,
    /// A vote.
    Vote,
    /// An acknowledgement or a rejection of entries.
    Append,
    /// An answer to a heartbeat.
    Heartbeat,
    /// The word that a snapshot has arrived.
    Snapshot,
    /// Nothing: the call returns empty.
    Nothing,
}

/// What becomes of a request or of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives after this time.
    Arrives(Duration),
    /// It is lost, and the caller's call fails after this time.
    Lost(Duration),
}

/// What went over the network since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Calls made, also those to the unreachable.
    pub sent: u64,
    /// Calls that reached a server.
    pub delivered: u64,
    /// Bytes of the arguments of all calls made and of all replies that arrived.
    pub bytes: u64,
}

/// Links between servers, their weather, and the counters.
#[derive(Debug)]
pub struct Network {
    servers: usize,
    /// `links[i * servers + j]`: the directed link from i to j.
    links: Vec<bool>,
    connected: Vec<bool>,
    weather: Weather,
    traffic: Traffic,
    dice: Dice,
}

/// Even on a reliable network a message takes a moment, and not always the same, so that two of them can change places.
const LATENCY: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(1));

impl Network {
    /// A reliable network between `servers` servers, all links cut.
    pub fn new(servers: usize, dice: Dice) -> Self {
        Network {
            servers,
            links: vec![false; servers * servers],
            connected: vec![false; servers],
            weather: Weather { reliable: true, long_reordering: false, long_delays: true },
            traffic: Traffic::default(),
            dice,
        }
    }

    /// Joins server `i` to all that are connected.
    pub fn connect(&mut self, i: usize) {
        self.connected[i] = true;
        for j in 0..self.servers {
            if self.connected[j] {
                self.links[i * self.servers + j] = true;
                self.links[j * self.servers + i] = true;
            }
        }
    }

    /// Cuts every link from and to server `i`.
    pub fn disconnect(&mut self, i: usize) {
        self.connected[i] = false;
        for j in 0..self.servers {
            self.links[i * self.servers + j] = false;
            self.links[j * self.servers + i] = false;
        }
    }

    /// Links those servers with one another that are on the same side, and cuts all other links. All count as connected.
    pub fn partition(&mut self, sides: &[bool]) {
        self.connected.fill(true);
        for i in 0..self.servers {
            for j in 0..self.servers {
                self.links[i * self.servers + j] = sides[i] == sides[j];
            }
        }
    }

    /// Whether server `i` is connected.
    pub fn is_connected(&self, i: usize) -> bool {
        self.connected[i]
    }

    /// Whether the directed link from `i` to `j` works.
    pub fn is_linked(&self, i: usize, j: usize) -> bool {
        self.links[i * self.servers + j]
    }

    /// The present weather.
    pub fn weather(&self) -> Weather {
        self.weather
    }

    /// Changes the weather for calls to come.
    pub fn weather_mut(&mut self) -> &mut Weather {
        &mut self.weather
    }

    /// The counters.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// A call is made, with arguments of `bytes`; `present` says whether there is a server at the other end.
    pub fn request(&mut self, from: usize, to: usize, present: bool, bytes: usize) -> Fate {
        self.traffic.sent += 1;
        self.traffic.bytes += bytes as u64;
        if !present || !self.is_linked(from, to) {
            let slowest = if self.weather.long_delays { 6999 } else { 99 };
            return Fate::Lost(Duration::from_millis(self.dice.between(0, slowest)));
        }
        let mut delay = self.latency();
        if !self.weather.reliable {
            delay += Duration::from_millis(self.dice.between(0, 26));
            if self.dice.chance(100, 1000) {
                return Fate::Lost(delay);
            }
        }
        Fate::Arrives(delay)
    }

    /// A call has reached its server.
    pub fn dispatched(&mut self) {
        self.traffic.delivered += 1;
    }

    /// A server has answered a call.
    pub fn reply(&mut self, call: &Call) -> Fate {
        if !self.is_linked(call.from, call.to) || (!call.weather.reliable && self.dice.chance(100, 1000)) {
            return Fate::Lost(Duration::ZERO);
        }
        let mut delay = self.latency();
        if call.weather.long_reordering && self.dice.chance(600, 900) {
            let spread = self.dice.between(0, 1999);
            delay += Duration::from_millis(200 + self.dice.between(0, spread));
        }
        Fate::Arrives(delay)
    }

    /// A reply of `bytes` has arrived at the caller.
    pub fn replied(&mut self, bytes: usize) {
        self.traffic.bytes += bytes as u64;
    }

    fn latency(&mut self) -> Duration {
        self.dice.time(LATENCY.0, LATENCY.1)
    }
}

/// Which call a message would answer; `None` if it is a request.
pub(crate) fn answers(body: &Message) -> Option<CallKind> {
    match body {
        Message::PreVoteReply(_) => Some(CallKind::PreVote),
        Message::RequestVoteReply(_) => Some(CallKind::Vote),
        Message::AppendAck(_) | Message::AppendReject(_) => Some(CallKind::Append),
        Message::HeartbeatReply(_) => Some(CallKind::Heartbeat),
        Message::PreVote(_)
        | Message::RequestVote(_)
        | Message::AppendEntries(_)
        | Message::Heartbeat(_)
        | Message::TimeoutNow(_)
        | Message::ReadIndex(_)
        | Message::ReadIndexReply(_)
        | Message::Quiesce(_) => None,
    }
}

/// Which reply a message waits for. A reply that travels as a call of its own waits for nothing.
pub(crate) fn asks(body: &Message) -> CallKind {
    match body {
        Message::PreVote(_) => CallKind::PreVote,
        Message::RequestVote(_) => CallKind::Vote,
        Message::AppendEntries(_) => CallKind::Append,
        Message::Heartbeat(heartbeat) if heartbeat.round.is_some() => CallKind::Heartbeat,
        _ => CallKind::Nothing,
    }
}

/// Bytes of a message on the wire, near enough: every number at its full width, entries in their packed form, and
/// the frame's length, kind and group.
pub fn encoded_len(envelope: &Envelope) -> usize {
    const FRAME: usize = 4 + 1 + 8;
    const NUMBER: usize = 8;
    const FLAG: usize = 1;
    let body = match &envelope.body {
        Message::PreVote(_) | Message::RequestVote(_) => 2 * NUMBER + FLAG,
        Message::PreVoteReply(_) | Message::RequestVoteReply(_) => NUMBER + FLAG,
        Message::AppendEntries(append) => 5 * NUMBER + append.entries.byte_len(),
        Message::AppendAck(_) => 2 * NUMBER,
        Message::AppendReject(reject) => 5 * NUMBER + 2 * NUMBER * reject.runs.len(),
        Message::Heartbeat(_) => 3 * NUMBER + FLAG,
        Message::HeartbeatReply(_) => 5 * NUMBER + 4 + FLAG,
        Message::Quiesce(_) => 3 * NUMBER,
        Message::TimeoutNow(_) | Message::ReadIndexReply(_) => 2 * NUMBER,
        Message::ReadIndex(_) => NUMBER,
    };
    FRAME + 3 * NUMBER + body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        let mut network = Network::new(3, Dice::new(3, 3));
        (0..3).for_each(|i| network.connect(i));
        network
    }

    fn call(weather: Weather) -> Call {
        Call { from: 0, to: 1, from_life: 1, to_life: 1, kind: CallKind::Append, number: 1, weather }
    }

    #[test]
    fn a_reliable_link_is_quick_and_loses_nothing() {
        let mut network = network();
        for _ in 0..1000 {
            let Fate::Arrives(delay) = network.request(0, 1, true, 10) else { panic!("lost") };
            assert!(delay <= Duration::from_millis(1));
        }
        assert_eq!(network.traffic(), Traffic { sent: 1000, delivered: 0, bytes: 10_000 });
    }

    #[test]
    fn calls_to_the_unreachable_count_and_fail_late() {
        let mut network = network();
        network.disconnect(1);
        let mut longest = Duration::ZERO;
        for _ in 0..1000 {
            let Fate::Lost(delay) = network.request(0, 1, true, 10) else { panic!("arrived") };
            longest = longest.max(delay);
        }
        assert!(longest > Duration::from_secs(6) && longest < Duration::from_secs(7));
        assert_eq!(network.traffic().sent, 1000);
        assert!(matches!(network.request(0, 2, false, 10), Fate::Lost(_)), "no server there");
    }

    #[test]
    fn a_server_that_connects_is_linked_to_the_connected_only() {
        let mut network = network();
        network.disconnect(0);
        network.disconnect(1);
        network.connect(0);
        assert!(network.is_linked(0, 2) && network.is_linked(2, 0));
        assert!(!network.is_linked(0, 1) && !network.is_linked(1, 0));
    }

    #[test]
    fn an_unreliable_link_loses_a_tenth_each_way() {
        let mut network = network();
        network.weather_mut().reliable = false;
        let call = call(network.weather());
        let lost = |fate| matches!(fate, Fate::Lost(_));
        let requests = (0..10_000).filter(|_| lost(network.request(0, 1, true, 0))).count();
        let replies = (0..10_000).filter(|_| lost(network.reply(&call))).count();
        assert!((900..1100).contains(&requests) && (900..1100).contains(&replies), "{requests} and {replies}");
    }

    #[test]
    fn long_reordering_delays_two_thirds_of_the_replies() {
        let mut network = network();
        network.weather_mut().long_reordering = true;
        let call = call(network.weather());
        let late = (0..9000)
            .filter(|_| matches!(network.reply(&call), Fate::Arrives(d) if d >= Duration::from_millis(200)))
            .count();
        assert!((5800..6200).contains(&late), "{late}");
        network.disconnect(1);
        assert_eq!(network.reply(&call), Fate::Lost(Duration::ZERO), "cut when the handler returned");
    }
}
