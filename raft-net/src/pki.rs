//! A private certificate authority for one or more clusters.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fmt, fs, io};

use raft_core::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, string::Ia5String,
};
use time::OffsetDateTime;

use crate::identity::{CertifiedName, NameError, PeerIdentity};

const DAY: Duration = Duration::from_hours(24);

/// Nothing is valid for longer than this (a century): beyond it dates stop fitting into certificates.
const MAX_VALIDITY: Duration = Duration::from_hours(100 * 365 * 24);

/// How long certificates are valid unless the caller wants something else.
pub const DEFAULT_VALIDITY: Duration = Duration::from_hours(10 * 365 * 24);

/// Why a certificate could not be made or stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// The holder's name cannot be put into a certificate.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Key generation, signing or parsing failed.
    #[error("certificate authority: {0}")]
    Generate(#[from] rcgen::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A certificate and its private key, as PEM text.
#[derive(Clone)]
pub struct Credentials {
    /// The certificate.
    pub cert_pem: String,
    /// The private key (PKCS #8). Keep it secret.
    pub key_pem: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Writes both files. The key can be read by its owner only.
    ///
    /// # Errors
    /// [`PkiError::File`], naming the file.
    pub fn write(&self, cert: &Path, key: &Path) -> Result<(), PkiError> {
        write_file(key, self.key_pem.as_bytes(), 0o600)?;
        write_file(cert, self.cert_pem.as_bytes(), 0o644)
    }
}

/// Signs certificates. Whoever has its key can become any node of any cluster that trusts it.
pub struct CertificateAuthority {
    credentials: Credentials,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority").finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Makes a new authority whose own certificate is valid for `validity`.
    ///
    /// # Errors
    /// Key generation failed.
    pub fn generate(validity: Duration) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = valid_for(CertificateParams::default(), validity);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "raft certificate authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let credentials = Credentials { cert_pem: params.self_signed(&key)?.pem(), key_pem: key.serialize_pem() };
        Ok(CertificateAuthority { credentials, issuer: Issuer::new(params, key) })
    }

    /// Takes up an authority from its PEM texts.
    ///
    /// # Errors
    /// One of them is not what it should be.
    pub fn from_credentials(credentials: Credentials) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(&credentials.key_pem)?;
        let issuer = Issuer::from_ca_cert_pem(&credentials.cert_pem, key)?;
        Ok(CertificateAuthority { credentials, issuer })
    }

    /// Takes up an authority from its files.
    ///
    /// # Errors
    /// A file cannot be read, or is not what it should be.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, PkiError> {
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|source| PkiError::File { path: path.to_owned(), source });
        Self::from_credentials(Credentials { cert_pem: read(cert)?, key_pem: read(key)? })
    }

    /// The authority's own certificate, which everybody needs, and its key, which nobody else must have.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// A certificate for a node.
    ///
    /// # Errors
    /// The names are not usable, or signing failed.
    pub fn issue_node(&self, cluster: &str, id: NodeId, validity: Duration) -> Result<Credentials, PkiError> {
        self.issue(&CertifiedName::node(cluster, id), validity)
    }

    /// A certificate for a client.
    ///
    /// # Errors
    /// The names are not usable, or signing failed.
    pub fn issue_client(&self, cluster: &str, name: &str, validity: Duration) -> Result<Credentials, PkiError> {
        self.issue(&CertifiedName::client(cluster, name), validity)
    }

    fn issue(&self, holder: &CertifiedName, validity: Duration) -> Result<Credentials, PkiError> {
        let dns_name = holder.dns_name()?;
        let key = KeyPair::generate()?;
        let mut params = valid_for(CertificateParams::default(), validity);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, dns_name.as_str());
        params.subject_alt_names = vec![SanType::DnsName(Ia5String::try_from(dns_name)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match holder.identity {
            PeerIdentity::Node(_) => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            PeerIdentity::Client { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Credentials { cert_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

fn valid_for(mut params: CertificateParams, validity: Duration) -> CertificateParams {
    let now = SystemTime::now();
    // Clocks of different machines differ.
    params.not_before = OffsetDateTime::from(now - DAY);
    params.not_after = OffsetDateTime::from(now + validity.min(MAX_VALIDITY));
    params
}

/// Writes `bytes` to `path` so that a crash leaves the old content or the new one, with the given permissions from the
/// start.
pub(crate) fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let failed = |source| PkiError::File { path: path.to_owned(), source };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let write = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        #[cfg(not(unix))]
        let _ = mode;
        let mut file = options.open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => fs::File::open(parent)?.sync_all(),
            _ => Ok(()),
        }
    };
    write().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{CertificateDer, pem::PemObject};

    fn name_in(credentials: &Credentials) -> CertifiedName {
        let der = CertificateDer::from_pem_slice(credentials.cert_pem.as_bytes()).unwrap();
        CertifiedName::from_certificate(&der).unwrap()
    }

    #[test]
    fn certificates_name_their_holders() {
        let ca = CertificateAuthority::generate(DAY).unwrap();
        let node = ca.issue_node("prod", NodeId(7), DAY).unwrap();
        assert_eq!(name_in(&node), CertifiedName::node("prod", NodeId(7)));
        let client = ca.issue_client("prod", "billing", DAY).unwrap();
        assert_eq!(name_in(&client), CertifiedName::client("prod", "billing"));
        assert!(matches!(ca.issue_client("prod", "a.b", DAY), Err(PkiError::Name(_))));
    }

    #[test]
    fn an_authority_can_be_stored_and_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("ca.pem"), dir.path().join("ca.key"));
        let ca = CertificateAuthority::generate(DAY).unwrap();
        ca.credentials().write(&cert, &key).unwrap();
        ca.credentials().write(&cert, &key).unwrap();
        let again = CertificateAuthority::load(&cert, &key).unwrap();
        assert_eq!(name_in(&again.issue_node("c", NodeId(1), DAY).unwrap()), CertifiedName::node("c", NodeId(1)));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let missing = CertificateAuthority::load(&dir.path().join("no"), &key).unwrap_err();
        assert!(missing.to_string().contains("no: "), "{missing}");
    }
}
