//! The methods of the key-value store.

use bytes::Bytes;

use super::{Client, Error};
use crate::handle::Consistency;
use crate::kv::{Answer, Command, MAX_VALUE_BYTES, Query, Refusal, Reply};

/// A value and the revision of its last change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// Log index of the last change.
    pub revision: u64,
    /// The value.
    pub value: Bytes,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Log index of its last change.
    pub revision: u64,
    /// The value.
    pub value: Bytes,
}

/// Part of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Keys in ascending order.
    pub items: Vec<KeyValue>,
    /// Whether a limit was hit. Go on with a scan from the last key followed by a zero byte.
    pub more: bool,
}

/// What became of a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CasOutcome {
    /// The key was set.
    Written {
        /// Its new revision.
        revision: u64,
    },
    /// The key had another revision; nothing was changed.
    Mismatch {
        /// The revision it had; 0: it was absent.
        current: u64,
    },
}

impl Client {
    /// Sets a key, and returns its new revision.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put(&self, key: &[u8], value: &[u8]) -> Result<u64, Error> {
        match self.execute(Command::Put { key, value }).await? {
            Reply::Written { revision } => Ok(revision),
            other => Err(unexpected(other)),
        }
    }

    /// Removes a key, and returns whether there was one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, key: &[u8]) -> Result<bool, Error> {
        match self.execute(Command::Delete { key }).await? {
            Reply::Deleted { existed } => Ok(existed),
            other => Err(unexpected(other)),
        }
    }

    /// Sets a key if its revision is `expected`; 0: if it is absent.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cas(&self, key: &[u8], expected: u64, value: &[u8]) -> Result<CasOutcome, Error> {
        match self.execute(Command::Cas { key, expected, value }).await? {
            Reply::Written { revision } => Ok(CasOutcome::Written { revision }),
            Reply::Mismatch { current } => Ok(CasOutcome::Mismatch { current }),
            other => Err(unexpected(other)),
        }
    }

    /// Has a command carried out, once, within the session if there is to be one.
    async fn execute(&self, command: Command<'_>) -> Result<Reply, Error> {
        let command = checked(command)?;
        let Some(session) = &self.inner.session else {
            return Ok(Reply::decode(&self.write(command).await?)?);
        };
        loop {
            let ticket = session.ticket(self).await?;
            let (reply, maybe_done) = self.run_write(ticket.stamp(&command).encode(), true).await?;
            match Reply::decode(&reply)? {
                Reply::Refused(Refusal::SessionExpired) => {
                    session.expired(ticket.session());
                    if let Some(why) = maybe_done {
                        // Of the first copy there is no memory any more.
                        let why = format!("{why}; the session has expired since");
                        return Err(Error::OutcomeUnknown { why });
                    }
                }
                reply => return Ok(reply),
            }
        }
    }

    /// The value of a key; `None` when it does not exist.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, key: &[u8], consistency: Consistency) -> Result<Option<Versioned>, Error> {
        let bytes = self.read(Query::Get { key }.encode(), consistency).await?;
        match Answer::decode(&bytes)? {
            Answer::Absent => Ok(None),
            Answer::Value { revision, value } => Ok(Some(Versioned { revision, value: bytes.slice_ref(value) })),
            Answer::Refused(refusal) => Err(refusal.into()),
            Answer::Items { .. } => Err(Error::BadAnswer("a range for a get".into())),
        }
    }

    /// The keys from `start` up to, not including, `end` (`None`: to the last), at most `limit` of them. Each page is a consistent
    /// view; a range of several pages is not: keys may change in between.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        limit: u32,
        consistency: Consistency,
    ) -> Result<Page, Error> {
        let query = Query::Scan { start, end: end.map(serde_bytes::Bytes::new), limit };
        let bytes = self.read(query.encode(), consistency).await?;
        match Answer::decode(&bytes)? {
            Answer::Items { more, items } => {
                let own = |slice| bytes.slice_ref(slice);
                let items = items.into_iter().map(|item| KeyValue {
                    key: own(item.key),
                    revision: item.revision,
                    value: own(item.value),
                });
                Ok(Page { items: items.collect(), more })
            }
            Answer::Refused(refusal) => Err(refusal.into()),
            Answer::Absent | Answer::Value { .. } => Err(Error::BadAnswer("a value for a range".into())),
        }
    }
}

/// What no node would accept is not sent: a frame over the node's limit breaks the connection, for everybody on it.
fn checked(command: Command<'_>) -> Result<Bytes, Error> {
    command.check(MAX_VALUE_BYTES)?;
    Ok(command.encode())
}

fn unexpected(reply: Reply) -> Error {
    match reply {
        Reply::Refused(refusal) => refusal.into(),
        other => Error::BadAnswer(format!("an unexpected reply: {other:?}")),
    }
}
