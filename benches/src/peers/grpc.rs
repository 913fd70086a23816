//! As much of gRPC as it takes to load etcd: unary calls over HTTP/2, many at a time on one connection.
//!
//! This goes to the HTTP/2 library itself. A complete gRPC client would do the same and more: what the load generator uses of the machine that it
//! shares with the nodes, the peer would pay for.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use h2::client::{Builder, Connection, SendRequest};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::lines::{Line, Loop};
use crate::meter::Meter;
use crate::workload::Workload;

/// What a client does when the server is busy, before it asks again.
const REST: Duration = Duration::from_millis(1);
/// Answers that may be under way on a connection and on one stream, in bytes: so many that nobody waits for leave to send them.
const CONNECTION_WINDOW: u32 = 16 << 20;
const STREAM_WINDOW: u32 = 1 << 20;
/// gRPC's number for "resource exhausted".
const EXHAUSTED: u32 = 8;

/// Why a call did not succeed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The server is busy; nothing happened.
    Busy,
    /// Anything else.
    Failed(anyhow::Error),
}

/// Makes calls on one connection.
#[derive(Clone)]
pub(super) struct Channel {
    sender: SendRequest<Bytes>,
    authority: Authority,
}

impl Channel {
    /// Connects; the second part carries bytes to and fro and must be polled.
    pub(super) async fn connect(address: SocketAddr) -> Result<(Channel, Connection<TcpStream, Bytes>)> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let mut builder = Builder::new();
        builder.initial_connection_window_size(CONNECTION_WINDOW).initial_window_size(STREAM_WINDOW).enable_push(false);
        let (sender, connection) = builder.handshake(stream).await.context("the peer does not speak HTTP/2")?;
        Ok((Channel { sender, authority: Authority::try_from(address.to_string())? }, connection))
    }

    /// Where a method is.
    pub(super) fn method(&self, path: &'static str) -> Result<Uri> {
        let builder = Uri::builder().scheme(Scheme::HTTP).authority(self.authority.clone());
        Ok(builder.path_and_query(PathAndQuery::from_static(path)).build()?)
    }

    /// One call. Message and answer include gRPC's prefix.
    pub(super) async fn call(&self, method: &Uri, message: Bytes) -> Result<Bytes, CallError> {
        let (status, answer) = self.exchange(method, message).await.map_err(CallError::Failed)?;
        match status {
            Status { code: 0, .. } => Ok(answer),
            Status { code: EXHAUSTED, .. } => Err(CallError::Busy),
            Status { code, message } => {
                Err(CallError::Failed(anyhow::anyhow!("the call was refused: {message} (code {code})")))
            }
        }
    }

    async fn exchange(&self, method: &Uri, message: Bytes) -> Result<(Status, Bytes)> {
        let mut request = Request::new(());
        (*request.method_mut(), *request.uri_mut()) = (Method::POST, method.clone());
        let headers = request.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        let mut sender = self.sender.clone().ready().await.context("the connection broke")?;
        let (response, mut stream) = sender.send_request(request, false)?;
        stream.send_data(message, true)?;
        let (head, mut body) = response.await.context("no answer")?.into_parts();
        let mut answer = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.context("the answer broke off")?;
            body.flow_control().release_capacity(chunk.len())?;
            answer.extend_from_slice(&chunk);
        }
        let trailers = body.trailers().await.context("the answer broke off")?;
        Ok((Status::read(trailers.as_ref().unwrap_or(&head.headers))?, answer.freeze()))
    }
}

/// How a call ended.
struct Status {
    code: u32,
    message: String,
}

impl Status {
    fn read(headers: &HeaderMap) -> Result<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let code =
            text("grpc-status").context("the answer has no status")?.parse().context("the status is no number")?;
        Ok(Status { code, message: text("grpc-message").unwrap_or_default().to_owned() })
    }
}

/// A request in progress.
#[derive(Clone, Copy)]
struct Sent {
    begin: Instant,
    measured: bool,
}

/// One connection with many puts in progress.
pub(super) struct GrpcLine {
    this: Weak<GrpcLine>,
    channel: Channel,
    put: Uri,
    kind: Loop,
    meter: Rc<Meter>,
    workload: RefCell<Workload>,
    stopping: Cell<bool>,
    next: Cell<u64>,
    sent: RefCell<HashMap<u64, Sent>>,
    failure: RefCell<Option<anyhow::Error>>,
    failed: Notify,
}

impl GrpcLine {
    pub(super) fn new(channel: Channel, kind: Loop, meter: Rc<Meter>, workload: Workload) -> Result<Rc<Self>> {
        let put = channel.method("/etcdserverpb.KV/Put")?;
        Ok(Rc::new_cyclic(|this| GrpcLine {
            this: this.clone(),
            channel,
            put,
            kind,
            meter,
            workload: RefCell::new(workload),
            stopping: Cell::new(false),
            next: Cell::new(0),
            sent: RefCell::default(),
            failure: RefCell::default(),
            failed: Notify::new(),
        }))
    }

    /// Carries bytes to and fro until the connection breaks or a call fails: never returns `Ok`.
    pub(super) async fn run(self: Rc<Self>, connection: Connection<TcpStream, Bytes>) -> Result<()> {
        tokio::select! {
            outcome = connection => {
                outcome.context("the connection to the leader broke")?;
                bail!("the leader closed the connection")
            }
            () = self.failed.notified() => {
                Err(self.failure.take().unwrap_or_else(|| anyhow::anyhow!("a call failed")))
            }
        }
    }

    /// One client of a closed loop, or one request of an open one.
    async fn client(self: Rc<Self>, mut sent: Sent) {
        loop {
            let id = self.next.replace(self.next.get() + 1);
            self.sent.borrow_mut().insert(id, sent);
            let outcome = self.put().await;
            // Who is not there any more was given up.
            let Some(Sent { begin, measured }) = self.sent.borrow_mut().remove(&id) else { return };
            let now = Instant::now();
            match outcome {
                Ok(()) => {
                    self.meter.count();
                    let measured = match self.kind {
                        Loop::Closed => self.meter.is_measuring(),
                        Loop::Open => measured,
                    };
                    if measured {
                        self.meter.record(begin, now);
                    }
                }
                Err(CallError::Busy) => {
                    self.meter.error("busy", 1);
                    tokio::time::sleep(REST).await;
                }
                Err(CallError::Failed(error)) => {
                    self.failure.borrow_mut().get_or_insert(error);
                    self.failed.notify_one();
                    return;
                }
            }
            if self.kind == Loop::Open || self.stopping.get() {
                return;
            }
            sent.begin = Instant::now();
        }
    }

    async fn put(&self) -> Result<(), CallError> {
        let mut message = BytesMut::new();
        self.workload.borrow_mut().append(0, &mut message);
        self.channel.call(&self.put, message.freeze()).await.map(drop)
    }
}

impl Line for GrpcLine {
    fn issue(&self, begin: Instant, measured: bool) {
        if let Some(this) = self.this.upgrade() {
            tokio::task::spawn_local(this.client(Sent { begin, measured }));
        }
    }

    fn stop(&self) {
        self.stopping.set(true);
    }

    fn is_stopped(&self) -> bool {
        self.stopping.get()
    }

    fn in_progress(&self) -> usize {
        self.sent.borrow().len()
    }

    fn give_up(&self, now: Instant) -> u64 {
        let sent = self.sent.take();
        sent.values().filter(|sent| sent.measured).for_each(|sent| self.meter.record(sent.begin, now));
        sent.len() as u64
    }

    /// Nobody counts them.
    fn bytes(&self) -> Option<(u64, u64)> {
        None
    }

    /// The connection ends with the task that carries its bytes.
    fn close(&self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_the_headers() {
        let mut headers = HeaderMap::new();
        assert!(Status::read(&headers).is_err());
        headers.insert("grpc-status", HeaderValue::from_static("8"));
        headers.insert("grpc-message", HeaderValue::from_static("etcdserver: too many requests"));
        let status = Status::read(&headers).unwrap();
        assert_eq!((status.code, status.message.as_str()), (EXHAUSTED, "etcdserver: too many requests"));
        headers.insert("grpc-status", HeaderValue::from_static("x"));
        assert!(Status::read(&headers).is_err());
    }
}
