//! Talking to a cluster from outside, and the node's side of it.
//!
//! A [`Client`] keeps one connection to each node that it has needed so far, and sends any number of requests over it without
//! waiting for replies in between; clones share the connections, so that many tasks can use one client at a time. It finds
//! the leader by itself.
//!
//! What it repeats, and what not:
//!
//! | what happened | reads | writes |
//! |---|---|---|
//! | the request never left, or the node says that it did nothing (not leader, busy, shutting down) | repeated | repeated |
//! | sent, and the connection was lost, or leadership was lost | repeated | [`Error::OutcomeUnknown`] |
//! | no reply from a node that is alive | repeated elsewhere after [`ClientConfig::attempt_timeout`] | waits until [`ClientConfig::timeout`], then [`Error::OutcomeUnknown`] |
//!
//! A node that is busy says when there will probably be room; it is asked again after that time, and not before. When refusals follow one another, the waits
//! become longer. When so much time is not left, the request ends at once ([`Missing::Room`]).
//!
//! A write by itself is never repeated when it may have happened: even for a put that would be no matter of course, since the first copy
//! may take effect now, somebody else's put after it, and then the second copy. The methods of the key-value store therefore write within a
//! *session* (unless [`ClientConfig::sessions`] is off), which is opened by the first write: there, a copy of a write has no effect of its own, so that everything is
//! repeated until [`ClientConfig::timeout`].
//!
//! The layers: [`protocol`] is the bytes on the wire, `link` one connection, `nodes` all of them, this module the search for the leader and the
//! policy above, `session` the numbering of writes, `kv` the methods of the key-value store. [`Service`] is the other end, in the node.

mod error;
mod kv;
mod link;
mod nodes;
mod patience;
pub mod protocol;
mod readiness;
mod service;
mod session;
mod sink;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use raft_core::{GroupId, NodeId};
use raft_net::TlsIdentity;
use tokio::time::Instant;

pub use error::{Complaints, Error, Missing};
pub use kv::{CasOutcome, KeyValue, Page, Versioned};
pub use service::{Admission, Metrics, Service, ServiceLimits};

use crate::handle::Consistency;
use crate::kv::Command;
use link::LinkError;
use nodes::Nodes;
use patience::Patience;
use protocol::{MemberChange, NodeStatus, Request, Response};
use session::Session;

/// How long [`Client::close`] waits for the end of the session.
const FAREWELL: Duration = Duration::from_millis(200);

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The nodes, as `host:port`. Not all are needed: others are learned from their answers.
    pub nodes: BTreeMap<NodeId, String>,
    /// The client's certificate. It names the cluster, too.
    pub tls: TlsIdentity,
    /// How long a request may take in all, with every repetition.
    pub timeout: Duration,
    /// How long one attempt may take to connect, and how long a read waits for one node.
    pub attempt_timeout: Duration,
    /// When requests wait and nothing at all has come from a node for about this long, not even a sign of life, its connection is given up.
    pub silence_timeout: Duration,
    /// Write within a session, so that writes whose outcome is unknown can be repeated and still take effect once. The first write
    /// is preceded by one that opens the session.
    pub sessions: bool,
}

impl ClientConfig {
    /// The defaults: 5 s in all, 1 s an attempt, 500 ms of silence, writes within a session.
    pub fn new(nodes: BTreeMap<NodeId, String>, tls: TlsIdentity) -> Self {
        ClientConfig {
            nodes,
            tls,
            timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(1),
            silence_timeout: Duration::from_millis(500),
            sessions: true,
        }
    }
}

/// A client of a cluster. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    nodes: Nodes,
    /// Whom the last answer showed to lead; 0: nobody.
    leader: AtomicU64,
    timeout: Duration,
    attempt_timeout: Duration,
    session: Option<Session>,
    /// See [`Client::repeated`].
    repeated: AtomicU64,
}

impl Client {
    /// A client of the cluster. Must be called within a tokio runtime; connections are made when they are needed.
    ///
    /// # Errors
    /// [`Error::Config`]: no nodes, not a client's certificate, or no socket to be had.
    pub fn new(config: ClientConfig) -> Result<Self, Error> {
        if config.nodes.is_empty() {
            return Err(Error::Config("a client needs the address of at least one node".into()));
        }
        let ClientConfig { nodes, tls, timeout, attempt_timeout, silence_timeout, sessions } = config;
        let nodes = Nodes::new(nodes, &tls, attempt_timeout, silence_timeout)?;
        let session = sessions.then(Session::default);
        let (leader, repeated) = (AtomicU64::new(0), AtomicU64::new(0));
        let inner = Inner { nodes, leader, timeout, attempt_timeout, session, repeated };
        Ok(Client { inner: Arc::new(inner) })
    }

    /// Has a command replicated and applied; returns the state machine's reply. For state machines of your own; the methods of the
    /// key-value store build on it.
    ///
    /// # Errors
    /// See [`Error`]; only [`Error::OutcomeUnknown`] leaves open what happened.
    pub async fn write(&self, command: Bytes) -> Result<Bytes, Error> {
        Ok(self.run_write(command, false).await?.0)
    }

    /// Like [`write`](Self::write); says also whether earlier copies of it may have been applied before, which there are only if it is `repeatable`.
    async fn run_write(&self, command: Bytes, repeatable: bool) -> Result<(Bytes, Option<String>), Error> {
        self.run(&Request::Write { group: GroupId::FIRST, command }, repeatable).await
    }

    /// Has a query answered by the state machine.
    ///
    /// # Errors
    /// See [`Error`]; a read has no effect.
    pub async fn read(&self, query: Bytes, consistency: Consistency) -> Result<Bytes, Error> {
        Ok(self.run(&Request::Read { group: GroupId::FIRST, consistency, query }, true).await?.0)
    }

    /// Changes who belongs to the cluster, and waits until that is complete; returns the index of the entry that made it so. Not repeated when the
    /// outcome is unknown: look at the [`status`](Self::status).
    ///
    /// # Errors
    /// [`Error::ChangeRefused`] says why it cannot be done, or not yet; otherwise see [`Error`].
    pub async fn change_membership(&self, change: MemberChange) -> Result<u64, Error> {
        let (body, _) = self.run(&Request::Member { group: GroupId::FIRST, change }, false).await?;
        postcard::from_bytes(&body).map_err(|e| Error::BadAnswer(e.to_string()))
    }

    /// Has the leader hand over to another node, or to the one that has most of the log. Returns who leads then.
    ///
    /// # Errors
    /// [`Error::BadRequest`] says why it was refused, or that it did not succeed in time. When there was no answer, it may yet happen.
    pub async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<NodeId, Error> {
        let body = self.run(&Request::Transfer { group: GroupId::FIRST, to }, true).await?.0;
        match <[u8; 8]>::try_from(&body[..]) {
            Ok(leader) => {
                let leader = NodeId(u64::from_le_bytes(leader));
                self.set_leader(Some(leader));
                Ok(leader)
            }
            Err(_) => Err(Error::BadAnswer("no node is named as the leader".into())),
        }
    }

    /// Asks one node about itself.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it cannot be reached.
    pub async fn status(&self, node: NodeId) -> Result<NodeStatus, Error> {
        let body = self.ask(node, &Request::Status { group: GroupId::FIRST }).await?;
        postcard::from_bytes(&body).map_err(|e| Error::BadAnswer(e.to_string()))
    }

    /// Has one node make a snapshot of what it has applied, and compact its log. Returns the index of the last entry in it.
    ///
    /// # Errors
    /// [`Error::BadRequest`] says why there is none; [`Error::Timeout`] when the node cannot be reached, or takes longer.
    pub async fn snapshot(&self, node: NodeId) -> Result<u64, Error> {
        let body = self.ask(node, &Request::Snapshot { group: GroupId::FIRST }).await?;
        let index = <[u8; 8]>::try_from(&body[..]).map_err(|_| Error::BadAnswer("no index".into()))?;
        Ok(u64::from_le_bytes(index))
    }

    /// Asks this node, and no other. What is asked may be asked twice.
    async fn ask(&self, node: NodeId, request: &Request) -> Result<Bytes, Error> {
        let start = Instant::now();
        let mut attempt = self.attempt(node, request, start + self.inner.timeout).await;
        if let Attempt::MaybeSent(_) = attempt {
            // The connection may have been to a process that is gone, and the node be there again.
            attempt = self.attempt(node, request, start + self.inner.timeout).await;
        }
        let why = match attempt {
            Attempt::Response(Response::Done(body)) => return Ok(body),
            Attempt::Response(Response::BadRequest(why)) => return Err(Error::BadRequest(why)),
            Attempt::Response(other) => format!("{other:?}"),
            Attempt::NotSent(why) | Attempt::MaybeSent(why) => why,
        };
        let nodes = Complaints([(node, why)].into());
        Err(Error::Timeout { waited: start.elapsed(), reason: Missing::Node, nodes })
    }

    /// Asks every node about itself, all at the same time; and then those of which only their answers tell: members that were added since this client was
    /// configured.
    pub async fn status_of_all(&self) -> BTreeMap<NodeId, Result<NodeStatus, Error>> {
        let mut all = BTreeMap::new();
        loop {
            let unasked = self.nodes().into_iter().filter(|node| !all.contains_key(node));
            let asked: Vec<_> = unasked
                .map(|node| {
                    let client = self.clone();
                    (node, tokio::spawn(async move { client.status(node).await }))
                })
                .collect();
            if asked.is_empty() {
                return all;
            }
            for (node, answer) in asked {
                let answer = answer.await.unwrap_or_else(|e| Err(Error::BadAnswer(e.to_string())));
                if let Ok(status) = &answer {
                    self.learn_members(status);
                }
                all.insert(node, answer);
            }
        }
    }

    /// Remembers where the members are of which a node tells.
    fn learn_members(&self, status: &NodeStatus) {
        for (&node, member) in status.members.iter().filter(|(_, member)| !member.address.is_empty()) {
            self.add_node(node, member.address.clone());
        }
    }

    /// Says where another node is; of no effect if one of this id is known already.
    pub fn add_node(&self, node: NodeId, address: impl Into<String>) {
        self.inner.nodes.learn(node, address.into());
    }

    /// The nodes known so far.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.inner.nodes.ids()
    }

    /// The node that the last answers showed to lead.
    pub fn leader(&self) -> Option<NodeId> {
        Some(NodeId(self.inner.leader.load(Ordering::Relaxed))).filter(|id| id.0 != 0)
    }

    /// How often a write was sent again although an earlier copy may have taken effect, by all clones together: what only a session allows.
    pub fn repeated(&self) -> u64 {
        self.inner.repeated.load(Ordering::Relaxed)
    }

    /// Ends the session, closes all connections, for every clone, and waits until the nodes have been told.
    pub async fn close(&self) {
        if let Some(session) = self.inner.session.as_ref().and_then(Session::take) {
            // A courtesy as well: sessions that nobody uses give way to others.
            let end = self.run_write(Command::EndSession { session }.encode(), false);
            let _ = tokio::time::timeout(FAREWELL, end).await;
        }
        self.inner.nodes.close().await;
    }

    /// Tries, and tries again, until the deadline. With the response it returns why an earlier attempt may have succeeded, if one may have.
    async fn run(&self, request: &Request, repeatable: bool) -> Result<(Bytes, Option<String>), Error> {
        let mut search = Search::new(self, request, repeatable);
        loop {
            let node = search.next_node(self);
            let attempt = self.attempt(node, request, search.attempt_deadline(self)).await;
            match search.judge(self, node, attempt) {
                Verdict::Done(body) => return Ok((body, search.maybe_done)),
                Verdict::Failed(error) => return Err(error),
                Verdict::Again => {}
                Verdict::AgainLater => search.pause().await,
                Verdict::AgainAfter(wait) => tokio::time::sleep(wait).await,
                Verdict::GiveUp => return Err(search.give_up()),
            }
            if Instant::now() >= search.deadline {
                return Err(search.give_up());
            }
        }
    }

    async fn attempt(&self, node: NodeId, request: &Request, deadline: Instant) -> Attempt {
        let link = match tokio::time::timeout_at(deadline, self.inner.nodes.link(node)).await {
            Ok(Ok(link)) => link,
            Ok(Err(why)) => return Attempt::NotSent(why),
            Err(_) => return Attempt::NotSent("cannot be reached in time".into()),
        };
        match tokio::time::timeout_at(deadline, link.call(request)).await {
            Ok(Ok(response)) => Attempt::Response(response),
            Ok(Err(LinkError::NotSent(why))) => Attempt::NotSent(why),
            Ok(Err(LinkError::MaybeSent(why))) => Attempt::MaybeSent(why),
            Err(_) => Attempt::MaybeSent("no reply in time".into()),
        }
    }

    fn set_leader(&self, node: Option<NodeId>) {
        self.inner.leader.store(node.map_or(0, |id| id.0), Ordering::Relaxed);
    }

    /// `node` turned out not to lead; another task may have found the leader meanwhile.
    fn unset_leader(&self, node: NodeId) {
        let _ = self.inner.leader.compare_exchange(node.0, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// What became of one attempt.
enum Attempt {
    Response(Response),
    NotSent(String),
    MaybeSent(String),
}

/// What follows from an attempt.
enum Verdict {
    Done(Bytes),
    Failed(Error),
    /// Try the next node at once.
    Again,
    /// Every node was tried: wait first.
    AgainLater,
    /// The node that was asked is busy: wait as long.
    AgainAfter(Duration),
    /// There is no use in trying again in the time that is left.
    GiveUp,
}

/// The state of one request on its way from node to node.
struct Search {
    start: Instant,
    deadline: Instant,
    /// What an unknown outcome means: reads and repeatable writes go on.
    repeatable: bool,
    is_write: bool,
    needs_leader: bool,
    /// Whether a copy may have taken effect already.
    maybe_done: Option<String>,
    nodes: Complaints,
    saw_leader: bool,
    saw_node: bool,
    /// Whether a node was connected, although it did not answer.
    saw_connection: bool,
    /// Attempts since the last pause.
    tries: usize,
    last: Option<NodeId>,
    patience: Patience,
    /// The last answer was that the node is busy, and when to retry.
    busy: Option<Duration>,
}

impl Search {
    fn new(client: &Client, request: &Request, repeatable: bool) -> Self {
        let start = Instant::now();
        Search {
            start,
            deadline: start + client.inner.timeout,
            repeatable,
            is_write: matches!(request, Request::Write { .. } | Request::Member { .. }),
            needs_leader: !matches!(request, Request::Read { consistency: Consistency::Stale, .. }),
            maybe_done: None,
            nodes: Complaints::default(),
            saw_leader: false,
            saw_node: false,
            saw_connection: false,
            tries: 0,
            last: None,
            patience: Patience::new(),
            busy: None,
        }
    }

    /// The leader, if one is known; otherwise each node in turn.
    fn next_node(&mut self, client: &Client) -> NodeId {
        let node = client.leader().unwrap_or_else(|| client.inner.nodes.after(self.last));
        self.last = Some(node);
        self.tries += 1;
        node
    }

    fn attempt_deadline(&self, client: &Client) -> Instant {
        // A write that is in the log gains nothing from being given up; whether its node is alive is the link's to find out.
        if self.is_write { self.deadline } else { self.deadline.min(Instant::now() + client.inner.attempt_timeout) }
    }

    fn judge(&mut self, client: &Client, node: NodeId, attempt: Attempt) -> Verdict {
        self.busy = match attempt {
            Attempt::Response(Response::Busy { retry_after }) => Some(retry_after),
            _ => None,
        };
        if self.busy.is_none() {
            self.patience.not_refused();
        }
        match attempt {
            Attempt::Response(response) => {
                self.saw_node = true;
                self.judge_response(client, node, response)
            }
            Attempt::NotSent(why) => {
                client.unset_leader(node);
                client.inner.nodes.suspect(node);
                self.nodes.0.insert(node, why);
                self.again(client)
            }
            Attempt::MaybeSent(why) => {
                self.saw_connection = true;
                client.unset_leader(node);
                client.inner.nodes.suspect(node);
                self.unknown(client, node, why)
            }
        }
    }

    fn judge_response(&mut self, client: &Client, node: NodeId, response: Response) -> Verdict {
        match response {
            Response::Done(body) => {
                if self.needs_leader {
                    client.set_leader(Some(node));
                }
                Verdict::Done(body)
            }
            Response::NotLeader { hint: Some((leader, address)) } if leader != node => {
                self.nodes.0.insert(node, format!("does not lead, says that node {leader} does"));
                client.inner.nodes.learn(leader, address);
                if client.inner.nodes.is_suspect(leader) {
                    // Yesterday's news: there will be an election.
                    client.unset_leader(node);
                } else {
                    client.set_leader(Some(leader));
                }
                self.again(client)
            }
            Response::NotLeader { .. } => {
                self.nodes.0.insert(node, "does not lead, and knows no leader".into());
                client.unset_leader(node);
                self.again(client)
            }
            Response::Busy { retry_after } => {
                self.saw_leader = true;
                self.nodes.0.insert(node, "is busy".into());
                self.tries = 0;
                let left = self.deadline.saturating_duration_since(Instant::now());
                self.patience.after_busy(retry_after, left, rand::random()).map_or(Verdict::GiveUp, Verdict::AgainAfter)
            }
            Response::TooLarge { size, limit } => Verdict::Failed(Error::TooLarge { size, limit }),
            Response::Refused { later, why } => Verdict::Failed(Error::ChangeRefused { later, why }),
            Response::BadRequest(why) => Verdict::Failed(Error::BadRequest(why)),
            Response::Unknown => {
                client.unset_leader(node);
                self.unknown(client, node, "leadership was lost before it was committed".into())
            }
            Response::ShuttingDown => {
                client.unset_leader(node);
                client.inner.nodes.suspect(node);
                self.nodes.0.insert(node, "is shutting down".into());
                self.again(client)
            }
        }
    }

    fn unknown(&mut self, client: &Client, node: NodeId, why: String) -> Verdict {
        let why_here = format!("node {node}: {why}");
        self.nodes.0.insert(node, why);
        if self.is_write {
            if !self.repeatable {
                return Verdict::Failed(Error::OutcomeUnknown { why: why_here });
            }
            client.inner.repeated.fetch_add(1, Ordering::Relaxed);
            self.maybe_done = Some(why_here);
        }
        self.again(client)
    }

    /// Another node at once, until as many attempts were made as there are nodes.
    fn again(&mut self, client: &Client) -> Verdict {
        if self.tries < client.inner.nodes.count() { Verdict::Again } else { Verdict::AgainLater }
    }

    async fn pause(&mut self) {
        self.tries = 0;
        let wait = self.patience.after_all(rand::random());
        tokio::time::sleep_until(self.deadline.min(Instant::now() + wait)).await;
    }

    fn give_up(self) -> Error {
        if let Some(why) = self.maybe_done {
            return Error::OutcomeUnknown { why };
        }
        let reason = if let Some(retry_after) = self.busy {
            Missing::Room { retry_after }
        } else if self.saw_node && !self.saw_leader {
            Missing::Leader
        } else if self.saw_leader || self.saw_connection {
            Missing::Answer
        } else {
            Missing::Nodes
        };
        Error::Timeout { waited: self.start.elapsed(), reason, nodes: self.nodes }
    }
}
