//! Who is who: the names in certificates.
//!
//! | certificate of | subject alternative name | extended key usage |
//! |---|---|---|
//! | node 3 of cluster `prod` | `node-3.prod.raft.internal` | server and client |
//! | client `billing` of cluster `prod` | `billing.client.prod.raft.internal` | client |
//!
//! The two name spaces cannot meet: one has four labels, the other five.

use std::fmt;

use raft_core::NodeId;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const SUFFIX: &str = ".raft.internal";

/// The holder of a certificate, within its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerIdentity {
    /// A member, or a future member, of the cluster.
    Node(NodeId),
    /// Somebody who may send requests.
    Client {
        /// Its name, as the administrator chose it.
        name: String,
    },
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerIdentity::Node(id) => write!(f, "node {id}"),
            PeerIdentity::Client { name } => write!(f, "client `{name}`"),
        }
    }
}

/// A certificate's holder and the cluster that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertifiedName {
    /// The cluster's name.
    pub cluster: String,
    /// The holder.
    pub identity: PeerIdentity,
}

impl CertifiedName {
    /// The name of a node.
    pub fn node(cluster: impl Into<String>, id: NodeId) -> Self {
        CertifiedName { cluster: cluster.into(), identity: PeerIdentity::Node(id) }
    }

    /// The name of a client.
    pub fn client(cluster: impl Into<String>, name: impl Into<String>) -> Self {
        CertifiedName { cluster: cluster.into(), identity: PeerIdentity::Client { name: name.into() } }
    }

    /// The DNS name that stands for it in a certificate.
    ///
    /// # Errors
    /// Cluster or client name is not a DNS label, or the node id is zero.
    pub fn dns_name(&self) -> Result<String, NameError> {
        check_label("cluster", &self.cluster)?;
        let cluster = &self.cluster;
        match &self.identity {
            PeerIdentity::Node(NodeId(0)) => Err(NameError::NodeZero),
            PeerIdentity::Node(id) => Ok(format!("node-{id}.{cluster}{SUFFIX}")),
            PeerIdentity::Client { name } => {
                check_label("client", name)?;
                Ok(format!("{name}.client.{cluster}{SUFFIX}"))
            }
        }
    }

    /// Reads a DNS name that [`dns_name`](Self::dns_name) wrote; `None` for any other.
    pub fn from_dns_name(name: &str) -> Option<Self> {
        let labels: Vec<&str> = name.strip_suffix(SUFFIX)?.split('.').collect();
        let parsed = match labels[..] {
            [node, cluster] => CertifiedName::node(cluster, NodeId(node.strip_prefix("node-")?.parse().ok()?)),
            [name, "client", cluster] => CertifiedName::client(cluster, name),
            _ => return None,
        };
        // Each holder has one spelling: `node-03` and `node-+3` are nobody.
        (parsed.dns_name().ok()? == name).then_some(parsed)
    }

    /// Reads the name of a certificate's holder.
    ///
    /// # Errors
    /// The bytes are no certificate, or not exactly one of its names is ours.
    pub fn from_certificate(der: &[u8]) -> Result<Self, NameError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| NameError::NotACertificate)?;
        let names = certificate.subject_alternative_name().map_err(|_| NameError::NotACertificate)?;
        let ours: Vec<CertifiedName> = names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => CertifiedName::from_dns_name(name),
                _ => None,
            })
            .collect();
        match <[CertifiedName; 1]>::try_from(ours) {
            Ok([only]) => Ok(only),
            Err(other) if other.is_empty() => Err(NameError::Unnamed),
            Err(_) => Err(NameError::Ambiguous),
        }
    }
}

impl fmt::Display for CertifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of cluster `{}`", self.identity, self.cluster)
    }
}

/// Why a name is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Names become DNS labels.
    #[error("{what} name `{name}` must be 1 to 63 lower-case letters, digits and inner hyphens")]
    Label {
        /// Whose name: `cluster` or `client`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Node ids begin at 1.
    #[error("node id must not be zero")]
    NodeZero,
    /// Not an X.509 certificate.
    #[error("not an X.509 certificate")]
    NotACertificate,
    /// No subject alternative name of the form that nodes or clients have.
    #[error("the certificate names neither a node nor a client of a Raft cluster")]
    Unnamed,
    /// More than one such name.
    #[error("the certificate names more than one node or client")]
    Ambiguous,
}

fn check_label(what: &'static str, name: &str) -> Result<(), NameError> {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let good =
        (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-');
    if good { Ok(()) } else { Err(NameError::Label { what, name: name.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_round_trip() {
        for name in [CertifiedName::node("prod", NodeId(3)), CertifiedName::client("prod-2", "billing")] {
            assert_eq!(CertifiedName::from_dns_name(&name.dns_name().unwrap()), Some(name));
        }
        // A cluster may be called "client" without its nodes turning into clients.
        let odd = CertifiedName::node("client", NodeId(1));
        assert_eq!(CertifiedName::from_dns_name(&odd.dns_name().unwrap()), Some(odd));
    }

    #[test]
    fn strangers_are_nobody() {
        for name in [
            "node-3.prod.raft.example",
            "node-03.prod.raft.internal",
            "node-+3.prod.raft.internal",
            "node-0.prod.raft.internal",
            "node-3.raft.internal",
            "node-3.a.b.raft.internal",
            "x.node-3.prod.raft.internal",
            "*.client.prod.raft.internal",
            ".client.prod.raft.internal",
            "node-3.Prod.raft.internal",
            "",
        ] {
            assert_eq!(CertifiedName::from_dns_name(name), None, "{name}");
        }
        assert_eq!(CertifiedName::from_certificate(b"nonsense"), Err(NameError::NotACertificate));
    }

    #[test]
    fn bad_names_are_explained() {
        let error = CertifiedName::client("Prod", "x").dns_name().unwrap_err();
        assert_eq!(
            error.to_string(),
            "cluster name `Prod` must be 1 to 63 lower-case letters, digits and inner hyphens"
        );
        assert_eq!(CertifiedName::node("prod", NodeId(0)).dns_name(), Err(NameError::NodeZero));
    }
}
