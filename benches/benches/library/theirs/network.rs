//! openraft's network: a call of the other node's function, with the very entries that were read from the log.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use openraft::{EmptyNode, Raft, RaftNetwork, RaftNetworkFactory};

use super::Types;

/// All nodes, as soon as they are there.
pub(super) type Nodes = Arc<OnceLock<BTreeMap<u64, Raft<Types>>>>;

pub(super) struct Links(pub(super) Nodes);

/// The way to one node.
pub(super) struct Link {
    nodes: Nodes,
    to: u64,
}

impl RaftNetworkFactory<Types> for Links {
    type Network = Link;

    async fn new_client(&mut self, to: u64, _: &EmptyNode) -> Link {
        Link { nodes: self.0.clone(), to }
    }
}

type Answer<R, E = openraft::error::Infallible> = Result<R, RPCError<u64, EmptyNode, RaftError<u64, E>>>;

impl Link {
    fn node(&self) -> Result<&Raft<Types>, NetworkError> {
        let node = self.nodes.get().and_then(|nodes| nodes.get(&self.to));
        node.ok_or_else(|| NetworkError::new(&std::io::Error::from(std::io::ErrorKind::NotConnected)))
    }

    fn refused<E: std::error::Error>(&self, error: RaftError<u64, E>) -> RPCError<u64, EmptyNode, RaftError<u64, E>> {
        RPCError::RemoteError(RemoteError::new(self.to, error))
    }
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Answer<AppendEntriesResponse<u64>> {
        self.node()?.append_entries(request).await.map_err(|error| self.refused(error))
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Answer<InstallSnapshotResponse<u64>, InstallSnapshotError> {
        self.node()?.install_snapshot(request).await.map_err(|error| self.refused(error))
    }

    async fn vote(&mut self, request: VoteRequest<u64>, _: RPCOption) -> Answer<VoteResponse<u64>> {
        self.node()?.vote(request).await.map_err(|error| self.refused(error))
    }
}
