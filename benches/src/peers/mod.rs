//! Other systems, measured beside ours: each behind the few words that [`Target`](crate::target::Target) needs.

pub(crate) mod etcd;
mod grpc;
mod members;
mod messages;
