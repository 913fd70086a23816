//! What a node or client shows of itself and demands of others: TLS 1.3 with certificates on both sides.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs, io};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use raft_core::NodeId;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, RootCertStore};

use crate::identity::{CertifiedName, NameError};

/// Application protocol between nodes. The number is the version of the wire format.
pub const ALPN_NODE: &[u8] = b"raft/3";
/// Application protocol between clients and nodes.
pub const ALPN_CLIENT: &[u8] = b"raft-client/1";

/// Why certificates and keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not PEM, or not what is expected in it.
    #[error("{what} ({origin}): no usable PEM section: {reason}")]
    Pem {
        /// `CA certificate`, `certificate` or `private key`.
        what: &'static str,
        /// The file, or `in memory`.
        origin: String,
        /// What the parser says.
        reason: String,
    },
    /// Certificate and key are not a pair.
    #[error("private key ({key}) does not belong to certificate ({cert})")]
    KeyMismatch {
        /// Where the certificate came from.
        cert: String,
        /// Where the key came from.
        key: String,
    },
    /// The certificate's time is over.
    #[error("certificate ({0}) has expired")]
    Expired(String),
    /// The certificate's time has not come; or this machine's clock is wrong.
    #[error("certificate ({0}) is not valid yet: check the clock")]
    NotYetValid(String),
    /// The CA did not sign the certificate, or it may not be used for this.
    #[error("certificate ({cert}) is not vouched for by the CA: {reason}")]
    Untrusted {
        /// Where the certificate came from.
        cert: String,
        /// What the verifier says.
        reason: String,
    },
    /// The certificate says nothing about a Raft cluster.
    #[error("certificate ({cert}): {source}")]
    Name {
        /// Where the certificate came from.
        cert: String,
        /// What is wrong.
        source: NameError,
    },
    /// The certificate belongs to somebody else.
    #[error("the certificate is for {actual}, but this is {expected}: use the right one, or issue one with `cert`")]
    NotOurs {
        /// Who we are.
        expected: String,
        /// Whom the certificate names.
        actual: CertifiedName,
    },
    /// The TLS library refuses.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// The TLS library cannot use the CA certificate.
    #[error("TLS: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The certificates and the key of one node or client, checked when they were loaded.
#[derive(Clone)]
pub struct TlsIdentity {
    name: CertifiedName,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").field("name", &self.name).finish_non_exhaustive()
    }
}

impl TlsIdentity {
    /// Loads PEM files: the CA's certificates, our certificate (with intermediates, if any, after it) and its key.
    ///
    /// # Errors
    /// [`TlsError`] says which file and what is wrong with it.
    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |path: &Path| fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source });
        let origin = |path: &Path| path.display().to_string();
        Self::new([&read(ca)?, &read(cert)?, &read(key)?], [origin(ca), origin(cert), origin(key)])
    }

    /// The same from PEM texts in memory.
    ///
    /// # Errors
    /// [`TlsError`] says which one and what is wrong with it.
    pub fn from_pem(ca: &str, cert: &str, key: &str) -> Result<Self, TlsError> {
        let pems = [ca, cert, key].map(str::as_bytes);
        Self::new(pems, std::array::from_fn(|_| "in memory".to_owned()))
    }

    fn new([ca, cert, key]: [&[u8]; 3], [ca_origin, cert_origin, key_origin]: [String; 3]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for root in certificates("CA certificate", &ca_origin, ca)? {
            roots.add(root).map_err(|error| TlsError::Pem {
                what: "CA certificate",
                origin: ca_origin.clone(),
                reason: error.to_string(),
            })?;
        }
        let roots = Arc::new(roots);
        let chain = certificates("certificate", &cert_origin, cert)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Pem {
            what: "private key",
            origin: key_origin.clone(),
            reason: error.to_string(),
        })?;
        let name = CertifiedName::from_certificate(&chain[0])
            .map_err(|source| TlsError::Name { cert: cert_origin.clone(), source })?;
        if let Err(error) = rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider()) {
            return Err(match error {
                rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch { cert: cert_origin, key: key_origin },
                other => TlsError::Pem { what: "private key", origin: key_origin, reason: other.to_string() },
            });
        }
        let identity = TlsIdentity { name, roots, chain, key: Arc::new(key) };
        identity.check_validity(&cert_origin)?;
        Ok(identity)
    }

    /// Asks the question that every peer will ask: does the CA vouch for this certificate, now?
    fn check_validity(&self, origin: &str) -> Result<(), TlsError> {
        let (own, intermediates) = (&self.chain[0], &self.chain[1..]);
        let verdict = self.verifier()?.verify_client_cert(own, intermediates, UnixTime::now());
        match verdict {
            Ok(_) => Ok(()),
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => Err(TlsError::Expired(origin.to_owned())),
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            )) => Err(TlsError::NotYetValid(origin.to_owned())),
            Err(other) => Err(TlsError::Untrusted { cert: origin.to_owned(), reason: other.to_string() }),
        }
    }

    /// Whom our certificate names.
    pub fn name(&self) -> &CertifiedName {
        &self.name
    }

    /// Makes sure that this is the certificate of node `id` of `cluster`.
    ///
    /// # Errors
    /// [`TlsError::NotOurs`].
    pub fn expect_node(&self, cluster: &str, id: NodeId) -> Result<(), TlsError> {
        let expected = CertifiedName::node(cluster, id);
        if self.name == expected {
            Ok(())
        } else {
            Err(TlsError::NotOurs { expected: expected.to_string(), actual: self.name.clone() })
        }
    }

    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        Ok(WebPkiClientVerifier::builder_with_provider(self.roots.clone(), Arc::new(provider())).build()?)
    }

    /// For accepting: demands a certificate of our CA; offers the protocols of nodes and of clients.
    pub(crate) fn server_config(&self) -> Result<QuicServerConfig, TlsError> {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(self.verifier()?)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN_NODE.to_vec(), ALPN_CLIENT.to_vec()];
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.try_into().map_err(|_| no_initial_suite())
    }

    /// For dialling with the protocol `alpn`.
    pub(crate) fn client_config(&self, alpn: &[u8]) -> Result<QuicClientConfig, TlsError> {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_early_data = false;
        config.try_into().map_err(|_| no_initial_suite())
    }
}

/// The `ring` provider, with AES-128-GCM first: it costs a quarter less than AES-256 and is as good for this purpose.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn no_initial_suite() -> TlsError {
    TlsError::Rustls(rustls::Error::General("no cipher suite for QUIC's initial packets".into()))
}

/// All certificates in `pem`; at least one.
fn certificates(what: &'static str, origin: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |reason: String| TlsError::Pem { what, origin: origin.to_owned(), reason };
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| failed(error.to_string()))?;
    if found.is_empty() { Err(failed("no certificate found".to_owned())) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{CertificateAuthority, Credentials};
    use std::time::Duration;

    const DAY: Duration = Duration::from_hours(24);

    fn ca() -> CertificateAuthority {
        CertificateAuthority::generate(DAY).unwrap()
    }

    fn identity(ca: &CertificateAuthority, own: &Credentials) -> Result<TlsIdentity, TlsError> {
        TlsIdentity::from_pem(&ca.credentials().cert_pem, &own.cert_pem, &own.key_pem)
    }

    #[test]
    fn a_good_identity_loads_from_files() {
        let ca = ca();
        let dir = tempfile::tempdir().unwrap();
        let path = |name| dir.path().join(name);
        ca.credentials().write(&path("ca.pem"), &path("ca.key")).unwrap();
        ca.issue_node("prod", NodeId(1), DAY).unwrap().write(&path("n.pem"), &path("n.key")).unwrap();
        let identity = TlsIdentity::load(&path("ca.pem"), &path("n.pem"), &path("n.key")).unwrap();
        identity.expect_node("prod", NodeId(1)).unwrap();
        identity.server_config().unwrap();
        identity.client_config(ALPN_NODE).unwrap();

        let missing = TlsIdentity::load(&path("ca.pem"), &path("gone.pem"), &path("n.key")).unwrap_err();
        assert!(matches!(missing, TlsError::Read { .. }) && missing.to_string().contains("gone.pem"));
        let swapped = TlsIdentity::load(&path("ca.pem"), &path("n.key"), &path("n.pem")).unwrap_err();
        assert!(matches!(swapped, TlsError::Pem { what: "certificate", .. }), "{swapped}");
    }

    #[test]
    fn another_nodes_certificate_is_refused() {
        let ca = ca();
        let identity = identity(&ca, &ca.issue_node("prod", NodeId(1), DAY).unwrap()).unwrap();
        for (cluster, id) in [("prod", 2), ("test", 1)] {
            let error = identity.expect_node(cluster, NodeId(id)).unwrap_err();
            assert!(error.to_string().contains("node 1 of cluster `prod`"), "{error}");
        }
        let client = self::identity(&ca, &ca.issue_client("prod", "x", DAY).unwrap()).unwrap();
        assert!(client.expect_node("prod", NodeId(1)).is_err());
    }

    #[test]
    fn every_mistake_has_its_error() {
        let ca = ca();
        let (one, two) = (ca.issue_node("c", NodeId(1), DAY).unwrap(), ca.issue_node("c", NodeId(2), DAY).unwrap());
        let mixed = Credentials { cert_pem: one.cert_pem.clone(), key_pem: two.key_pem };
        assert!(matches!(identity(&ca, &mixed), Err(TlsError::KeyMismatch { .. })));

        let expired = ca.issue_node("c", NodeId(1), Duration::ZERO).unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        assert!(matches!(identity(&ca, &expired), Err(TlsError::Expired(_))));

        let other = self::ca();
        assert!(matches!(identity(&other, &one), Err(TlsError::Untrusted { .. })));

        let authority = ca.credentials();
        assert!(matches!(identity(&ca, authority), Err(TlsError::Name { .. })));

        let garbage = Credentials { cert_pem: "hello".into(), key_pem: one.key_pem.clone() };
        assert!(matches!(identity(&ca, &garbage), Err(TlsError::Pem { what: "certificate", .. })));
        let garbage = Credentials { cert_pem: one.cert_pem, key_pem: "hello".into() };
        assert!(matches!(identity(&ca, &garbage), Err(TlsError::Pem { what: "private key", .. })));
    }
}
