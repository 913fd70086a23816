//! What clients and servers say to each other, and what travels between them.

use std::time::Duration;

use super::client::{Answer, Ask, Next, Ticket};
use super::server::Item;
use super::sessions::Refusal;
use super::sometimes::Situation;
use super::workload::Workload;
use super::world::{Event, World};

impl<W: Workload> World<'_, W> {
    /// An answer arrives, unless its client has gone on.
    pub(super) fn client_hears(&mut self, ticket: Ticket, answer: Answer) {
        let now = self.now();
        let watched = self.is_watched();
        let client = self.clients.get_mut(ticket.client).filter(|client| client.ticket() == ticket);
        let Some(client) = client else { return };
        let heard = watched.then(|| answer.clone());
        let late = answer == Answer::Refused(Refusal::Late) && !client.is_idle();
        let next = client.answered(now, answer, &mut self.counts);
        if let Some(answer) = heard {
            self.note(format_args!("c{} hears {answer:?}", ticket.client + 1));
        }
        if late {
            self.failed(format!("c{} waits for its command, and hears that it had gone on", ticket.client + 1));
        }
        self.client_goes_on(ticket.client, next);
    }

    /// A client's alarm goes off, unless it was set for an earlier attempt.
    pub(super) fn client_wakes(&mut self, ticket: Ticket) {
        let now = self.now();
        let client = self.clients.get_mut(ticket.client).filter(|client| client.ticket() == ticket);
        if let Some(client) = client {
            let next = client.wake::<W>(now, self.quiet, &mut self.counts);
            self.client_goes_on(ticket.client, next);
        }
    }

    fn client_goes_on(&mut self, client: usize, next: Next) {
        let ticket = self.clients[client].ticket();
        let asks = next.ask.is_some() && !self.clients[client].is_idle();
        if let Some((server, ask)) = next.ask {
            self.note(format_args!("c{} asks n{}: {ask:?} ({})", client + 1, server + 1, ticket.attempt));
            self.send_request(server, ticket, ask);
        }
        // Whoever waits for an answer goes on waiting.
        let nap = self.nap_left().filter(|_| !asks);
        if let Some(wait) = next.wake.map(|wait| wait.max(nap.unwrap_or_default())) {
            self.schedule.after(wait, Event::Client { ticket });
        }
    }

    /// Clients reach every server at any time, also those that are cut off from the others: they are the ones to be deceived.
    pub(super) fn send_request(&mut self, server: usize, ticket: Ticket, ask: Ask) {
        if let Some(delay) = self.client_delay() {
            self.schedule.after(delay, Event::Request { server, ticket, ask });
        }
    }

    pub(super) fn answer(&mut self, ticket: Ticket, answer: Answer) {
        match &answer {
            Answer::Busy => self.counts.saw(Situation::Busy),
            // Whoever stops leading gives up at once on everything that could be replaced.
            Answer::Replaced => self.failed(format!("c{} hears that its command was replaced", ticket.client + 1)),
            Answer::Unknown => self.counts.saw(Situation::Undecided),
            Answer::Done { .. } | Answer::NotLeader(_) | Answer::Refused(_) => {}
        }
        if let Some(tag) = self.clients.get(ticket.client).and_then(|client| client.tag(ticket.attempt)) {
            let honest = self.once.answered(tag, &answer);
            self.check(honest);
        }
        if let Some(delay) = self.client_delay() {
            self.schedule.after(delay, Event::Answer { ticket, answer });
        }
    }

    fn client_delay(&mut self) -> Option<Duration> {
        let lossy = self.mix.links.loss > 0 && self.healed.is_none();
        let lost = lossy && self.dice.chance(10, 1000);
        (!lost).then(|| self.dice.time(Duration::from_micros(100), Duration::from_millis(3)))
    }

    pub(super) fn request_arrives(&mut self, i: usize, ticket: Ticket, ask: Ask) {
        if !self.servers[i].is_up() {
            // The connection is refused.
            return self.answer(ticket, Answer::NotLeader(None));
        }
        if self.servers[i].leads() && self.leader() != Some(i) {
            self.counts.saw(Situation::OldLeaderAsked);
        }
        self.arrives(i, Item::Request(ticket, ask));
    }
}
