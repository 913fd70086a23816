//! Names in certificates: who may speak, and as whom.

use crate::identity::{CertifiedName, NameError};

/// A name has one spelling; and a certificate, of which the bytes may be anything, names exactly one holder or none.
pub fn names(data: &[u8]) -> bool {
    let by_name = std::str::from_utf8(data).ok().and_then(CertifiedName::from_dns_name);
    if let Some(name) = &by_name {
        assert_eq!(name.dns_name().map(String::into_bytes), Ok(data.to_vec()), "two spellings of one name");
        let limit = 253;
        assert!(data.len() <= limit && !name.cluster.is_empty(), "no DNS name");
    }
    let by_certificate = CertifiedName::from_certificate(data);
    match &by_certificate {
        Ok(name) => {
            let spelled = name.dns_name().expect("what was accepted can be spelled");
            assert_eq!(CertifiedName::from_dns_name(&spelled).as_ref(), Some(name));
            assert!(
                data.windows(spelled.len()).any(|part| part == spelled.as_bytes()),
                "the certificate does not say so"
            );
        }
        Err(error) => {
            let expected = matches!(error, NameError::NotACertificate | NameError::Unnamed | NameError::Ambiguous);
            assert!(expected, "{error:?}");
        }
    }
    by_name.is_some() || by_certificate.is_ok()
}
