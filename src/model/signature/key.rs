//! Keys of signatures, from PEM files as `openssl` writes them.

use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{
    ED25519, Ed25519KeyPair, KeyPair, RSA_PKCS1_2048_8192_SHA512, RSA_PKCS1_SHA512, RsaKeyPair,
    UnparsedPublicKey,
};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};

use crate::model::digest::sha256;
use crate::model::signature::hex;

/// Algorithm of a signature. A key has one, and a token cannot choose another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA with PKCS #1 padding and SHA-512 (RFC 7518, section 3.3).
    Rs512,
    /// Ed25519 (RFC 8037, section 3.1).
    EdDsa,
}

impl Algorithm {
    /// Its name in a token.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs512 => "RS512",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// Minimum and maximum size of an RSA modulus, bits. `ring` verifies no others.
const MIN_RSA_BITS: usize = 2048;
const MAX_RSA_BITS: usize = 8192;

/// Beginning of a public key of RSA after the length: `rsaEncryption` (RFC 3279, section 2.3.1).
const RSA: &[u8] = &[
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];

/// Beginning of a public key of Ed25519, which has 32 bytes more (RFC 8410, section 4).
const ED: &[u8] = &[
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Tags of DER (X.690, section 8).
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;

/// A private key.
pub struct Signer {
    key: PrivateKey,
    id: String,
}

enum PrivateKey {
    Rsa(Box<RsaKeyPair>),
    Ed(Ed25519KeyPair),
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.id)
    }
}

impl Signer {
    /// Reads a private key: RSA in PKCS #1 or PKCS #8, or Ed25519 in PKCS #8.
    ///
    /// # Errors
    /// A text for the operator, with the cause.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|e| match e {
            pem::Error::NoItemsFound => {
                "it holds no private key in PEM without a passphrase".into()
            }
            e => e.to_string(),
        })?;
        let unusable = |e: ring::error::KeyRejected| format!("the key cannot be used: {e}");
        let key = match &der {
            PrivateKeyDer::Pkcs1(der) => {
                let key = RsaKeyPair::from_der(der.secret_pkcs1_der());
                PrivateKey::Rsa(Box::new(key.map_err(unusable)?))
            }
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                // openssl writes Ed25519 without the public key.
                match Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
                    Ok(key) => PrivateKey::Ed(key),
                    Err(_) => {
                        let key = RsaKeyPair::from_pkcs8(der);
                        PrivateKey::Rsa(Box::new(key.map_err(unusable)?))
                    }
                }
            }
            _ => return Err("it is neither an RSA key nor an Ed25519 key".into()),
        };
        let public = match &key {
            PrivateKey::Rsa(key) => rsa_info(key.public_key().as_ref()),
            PrivateKey::Ed(key) => [ED, key.public_key().as_ref()].concat(),
        };
        Ok(Self {
            id: key_id(&public),
            key,
        })
    }

    /// Its algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self.key {
            PrivateKey::Rsa(_) => Algorithm::Rs512,
            PrivateKey::Ed(_) => Algorithm::EdDsa,
        }
    }

    /// Id of its public key.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Signs `message`.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        match &self.key {
            PrivateKey::Ed(key) => Ok(key.sign(message).as_ref().to_vec()),
            PrivateKey::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(
                    &RSA_PKCS1_SHA512,
                    &SystemRandom::new(),
                    message,
                    &mut signature,
                )
                .map_err(|_| "the key does not sign: the system has no random numbers")?;
                Ok(signature)
            }
        }
    }
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    algorithm: Algorithm,
    /// The modulus and exponent of RSA as DER, or the bytes of Ed25519.
    key: Vec<u8>,
    id: String,
}

impl Verifier {
    /// Reads a public key in PKIX form: RSA of at least 2048 bits, or Ed25519.
    ///
    /// # Errors
    /// A text for the operator, with the cause.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|e| match e {
            pem::Error::NoItemsFound => {
                "it holds no public key in PEM: write one by openssl pkey -in KEY -pubout".into()
            }
            e => e.to_string(),
        })?;
        let id = key_id(&der);
        let (algorithm, key) = match (der.strip_prefix(ED), rsa_key(&der)) {
            (Some(key), _) if key.len() == 32 => (Algorithm::EdDsa, key.to_vec()),
            (_, Some(key)) => {
                let bits = modulus_bits(key).unwrap_or(0);
                if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
                    return Err(format!(
                        "the key has {bits} bits, and RSA keys of {MIN_RSA_BITS} to \
                         {MAX_RSA_BITS} can be used"
                    ));
                }
                (Algorithm::Rs512, key.to_vec())
            }
            (_, None) => return Err("it is neither an RSA key nor an Ed25519 key".into()),
        };
        Ok(Self { algorithm, key, id })
    }

    /// Its algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its id: the SHA-256 of its PKIX form, as `openssl pkey -pubin -outform DER | sha256sum`
    /// prints it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns whether `signature` is that of `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match self.algorithm {
            Algorithm::Rs512 => UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA512, &self.key)
                .verify(message, signature),
            Algorithm::EdDsa => {
                UnparsedPublicKey::new(&ED25519, &self.key).verify(message, signature)
            }
        };
        verified.is_ok()
    }
}

fn key_id(info: &[u8]) -> String {
    hex(&sha256(info))
}

/// Returns the RSA key of a public key in PKIX form.
fn rsa_key(info: &[u8]) -> Option<&[u8]> {
    let (info, []) = element(info, SEQUENCE)? else {
        return None;
    };
    let (bits, []) = element(info.strip_prefix(RSA)?, BIT_STRING)? else {
        return None;
    };
    // The first byte counts unused bits.
    bits.strip_prefix(&[0])
}

/// Returns the PKIX form of an RSA key.
fn rsa_info(key: &[u8]) -> Vec<u8> {
    let bits = wrapped(BIT_STRING, &[&[0], key].concat());
    wrapped(SEQUENCE, &[RSA, &bits].concat())
}

fn modulus_bits(key: &[u8]) -> Option<usize> {
    let (key, []) = element(key, SEQUENCE)? else {
        return None;
    };
    let (modulus, _) = element(key, INTEGER)?;
    let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
    let first = modulus.first()?;
    Some(modulus.len() * 8 - first.leading_zeros() as usize)
}

/// Returns the content of the first element of `der`, which has this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, der) = der.split_first()?;
    if *first != tag {
        return None;
    }
    let (short, der) = der.split_first()?;
    let (length, der) = match *short {
        short @ 0..=0x7f => (usize::from(short), der),
        0x81 => {
            let (length, der) = der.split_first()?;
            (usize::from(*length), der)
        }
        0x82 => {
            let ([high, low], der) = der.split_first_chunk::<2>()?;
            (usize::from(*high) << 8 | usize::from(*low), der)
        }
        // A key of 8192 bits has 1 KiB.
        _ => return None,
    };
    der.split_at_checked(length)
}

/// Returns an element with this tag and content, of less than 64 KiB.
fn wrapped(tag: u8, content: &[u8]) -> Vec<u8> {
    let [.., high, low] = content.len().to_be_bytes();
    let mut element = match (high, low) {
        (0, low @ 0..=0x7f) => vec![tag, low],
        (0, low) => vec![tag, 0x81, low],
        (high, low) => vec![tag, 0x82, high, low],
    };
    element.extend_from_slice(content);
    element
}
