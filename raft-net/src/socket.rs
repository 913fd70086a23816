//! The UDP socket, and the keys that outlive a process.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use quinn::EndpointConfig;
use quinn_proto::HashedConnectionIdGenerator;
use rand::RngCore;
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::NetError;
use crate::pki::{PkiError, write_file};

/// Binds `address` with buffers of `buffer` bytes, or as much as the kernel allows. That it allows less is worth a
/// warning in a node; for a client `role` tells that it is not.
pub(crate) fn bind(address: SocketAddr, buffer: usize, role: Role) -> Result<UdpSocket, NetError> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() && address.ip().is_unspecified() {
            // `[::]` shall mean "everywhere", whatever the system's default.
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    };
    let socket = open().map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => NetError::AddressInUse(address),
        _ => NetError::Bind { address, source },
    })?;
    enlarge("receive", role, buffer, |n| socket.set_recv_buffer_size(n), || socket.recv_buffer_size());
    enlarge("send", role, buffer, |n| socket.set_send_buffer_size(n), || socket.send_buffer_size());
    Ok(socket.into())
}

/// Who needs the socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A server, whose administrator can do something about small buffers.
    Node,
    /// Anybody.
    Client,
}

/// Small buffers lose packets in bursts. That costs speed, not correctness.
fn enlarge(
    what: &str,
    role: Role,
    wanted: usize,
    set: impl Fn(usize) -> io::Result<()>,
    get: impl Fn() -> io::Result<usize>,
) {
    match set(wanted).and_then(|()| get()) {
        Ok(reported) => {
            // Linux reports twice what it grants, for its own bookkeeping.
            let granted = if cfg!(target_os = "linux") { reported / 2 } else { reported };
            if granted < wanted && role == Role::Node {
                let limit = if what == "send" { "net.core.wmem_max" } else { "net.core.rmem_max" };
                tracing::warn!(wanted, granted, "the kernel limits the socket's {what} buffer: raise {limit}");
            }
        }
        Err(error) => tracing::warn!(%error, wanted, "cannot set the socket's {what} buffer"),
    }
}

/// The endpoint's configuration. With the keys in `data_dir` a restarted node recognises the connection ids of its
/// former life and answers them with a stateless reset, so that peers notice the restart with their next packet.
pub(crate) fn endpoint_config(data_dir: Option<&Path>, max_udp_payload: u16) -> Result<EndpointConfig, NetError> {
    let keys = match data_dir {
        Some(dir) => ResetKeys::load_or_create(&dir.join("quic.keys"))?,
        None => ResetKeys::random(),
    };
    let mut config = EndpointConfig::new(std::sync::Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &keys.reset)));
    let cid_key = keys.connection_id;
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid_key)));
    config
        .max_udp_payload_size(max_udp_payload)
        .map_err(|_| NetError::Setting { key: "max_udp_payload", reason: "must be at least 1200 bytes" })?;
    Ok(config)
}

#[derive(PartialEq, Eq)]
struct ResetKeys {
    reset: [u8; 32],
    connection_id: u64,
}

impl ResetKeys {
    const LEN: usize = 40;

    fn random() -> Self {
        let mut bytes = [0; Self::LEN];
        rand::rng().fill_bytes(&mut bytes);
        Self::from_bytes(&bytes)
    }

    fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let (mut reset, mut id) = ([0; 32], [0; 8]);
        reset.copy_from_slice(&bytes[..32]);
        id.copy_from_slice(&bytes[32..]);
        ResetKeys { reset, connection_id: u64::from_le_bytes(id) }
    }

    fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..32].copy_from_slice(&self.reset);
        bytes[32..].copy_from_slice(&self.connection_id.to_le_bytes());
        bytes
    }

    fn load_or_create(path: &Path) -> Result<Self, PkiError> {
        match std::fs::read(path) {
            Ok(bytes) => {
                if let Ok(bytes) = <&[u8; Self::LEN]>::try_from(bytes.as_slice()) {
                    return Ok(Self::from_bytes(bytes));
                }
                tracing::warn!(path = %path.display(), "not a key file: replacing it");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(PkiError::File { path: path.to_owned(), source }),
        }
        let keys = Self::random();
        write_file(path, &keys.to_bytes(), 0o600)?;
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_a_restart_and_damage_is_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quic.keys");
        let first = ResetKeys::load_or_create(&path).unwrap();
        assert!(first == ResetKeys::load_or_create(&path).unwrap());
        std::fs::write(&path, b"short").unwrap();
        let second = ResetKeys::load_or_create(&path).unwrap();
        assert!(first != second);
        assert!(second == ResetKeys::load_or_create(&path).unwrap());
        assert!(ResetKeys::load_or_create(&dir.path().join("no/such/dir")).is_err());
    }

    #[test]
    fn an_address_in_use_is_named() {
        let first = bind(([127, 0, 0, 1], 0).into(), 1 << 16, Role::Node).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address, 1 << 16, Role::Node).unwrap_err();
        assert!(matches!(error, NetError::AddressInUse(a) if a == address), "{error}");
        assert!(error.to_string().contains(&address.to_string()));
    }
}
