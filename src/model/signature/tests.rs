use proptest::prelude::*;
use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::{Value, json};

use super::*;

const NOW: i64 = 1_800_000_000;

/// Keys of `openssl genrsa` (PKCS #8), `openssl genrsa -traditional` (PKCS #1), both with
/// `openssl rsa -pubout`, and `openssl genpkey -algorithm ed25519`.
fn pem(name: &str) -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/keys/");
    std::fs::read(format!("{path}{name}.pem")).expect(name)
}

fn pair(name: &str) -> (Signer, Verifier) {
    let public = pem(&format!("{name}.pub"));
    (
        Signer::from_pem(&pem(name)).expect(name),
        Verifier::from_pem(&public).expect(name),
    )
}

fn request() -> Request {
    Request {
        op: Operation::Submit,
        unit: "01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
        aud: "node7".into(),
        reply: "lab/infrastructure/pipelines/node7/reply/1".into(),
        work: Some(Work {
            kind: "align".into(),
            params: "aa".into(),
            length: 3,
            sha256: "bb".into(),
        }),
    }
}

fn claims() -> Claims {
    Claims {
        request: request(),
        iat: NOW,
        exp: NOW + 600,
        jti: "01ARZ3NDEKTSV4RRFFQ69G5FAW".into(),
    }
}

fn token(key: &Signer, header: &Value, claims: &Value) -> String {
    let part = |json: &Value| base64::encode(json.to_string().as_bytes());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = key.sign(signed.as_bytes()).expect("sign");
    format!("{signed}.{}", base64::encode(&signature))
}

#[test]
fn keys_of_openssl_sign_and_verify() {
    for name in ["rsa-pkcs8", "rsa-pkcs1", "ed25519"] {
        let (signer, verifier) = pair(name);
        assert_eq!(signer.id(), verifier.id(), "{name}");
        assert_eq!(signer.algorithm(), verifier.algorithm(), "{name}");
        let token = sign(&signer, &claims()).expect(name);
        assert!(token.len() <= MAX_TOKEN);
        let keys = Keys(vec![verifier]);
        assert_eq!(keys.verify(&token, &request(), NOW), Ok(claims()), "{name}");
    }
}

#[test]
fn the_id_of_a_key_is_the_digest_that_openssl_prints() {
    // openssl pkey -pubin -in ed25519.pub.pem -outform DER | sha256sum
    let (_, verifier) = pair("ed25519");
    let id = "453f2c71ed3475921e630b1bb7e073a69af503a6269315acbabfdfdc1099c816";
    assert_eq!(verifier.id(), id);
}

#[test]
fn several_keys_are_in_force_at_once() {
    let (old, old_public) = pair("rsa-pkcs8");
    let (new, new_public) = pair("ed25519");
    let both = Keys(vec![old_public, new_public.clone()]);
    for key in [&old, &new] {
        let token = sign(key, &claims()).expect("sign");
        assert_eq!(both.verify(&token, &request(), NOW), Ok(claims()));
    }
    let later = Keys(vec![new_public]);
    let token = sign(&old, &claims()).expect("sign");
    let refused = later.verify(&token, &request(), NOW);
    assert_eq!(refused, Err(Refusal::UnknownKey));
}

#[test]
fn a_key_decides_the_algorithm() {
    let (signer, verifier) = pair("rsa-pkcs8");
    let keys = Keys(vec![verifier.clone()]);
    let claims = serde_json::to_value(claims()).expect("claims");
    for alg in [
        "none", "None", "NONE", "", "HS256", "HS512", "RS256", "EdDSA",
    ] {
        let header = json!({"alg": alg, "typ": "JWT", "kid": verifier.id()});
        let whole = token(&signer, &header, &claims);
        let expected = Err(Refusal::Algorithm(alg.into()));
        assert_eq!(keys.verify(&whole, &request(), NOW), expected, "{alg}");
        // Without a signature, as `none` has it.
        let (signed, _) = whole.rsplit_once('.').expect("token");
        let unsigned = format!("{signed}.");
        assert_eq!(keys.verify(&unsigned, &request(), NOW), expected, "{alg}");
    }
}

#[test]
fn a_signature_with_the_public_key_as_a_secret_is_refused() {
    let (_, verifier) = pair("rsa-pkcs8");
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA512, &pem("rsa-pkcs8.pub"));
    for alg in ["HS512", "RS512"] {
        let header = json!({"alg": alg, "kid": verifier.id()}).to_string();
        let claims = serde_json::to_string(&claims()).expect("claims");
        let parts = [header, claims].map(|part| base64::encode(part.as_bytes()));
        let signed = parts.join(".");
        let tag = ring::hmac::sign(&secret, signed.as_bytes());
        let token = format!("{signed}.{}", base64::encode(tag.as_ref()));
        let keys = Keys(vec![verifier.clone()]);
        assert!(keys.verify(&token, &request(), NOW).is_err(), "{alg}");
    }
}

#[test]
fn headers_that_change_the_meaning_are_refused() {
    let (signer, verifier) = pair("ed25519");
    let keys = Keys(vec![verifier.clone()]);
    let claims = serde_json::to_value(claims()).expect("claims");
    let headers = [
        json!({"alg": "EdDSA", "kid": verifier.id(), "crit": ["exp"]}),
        json!({"alg": "EdDSA", "kid": verifier.id(), "jwk": {}}),
        json!({"alg": "EdDSA", "kid": verifier.id(), "typ": "other"}),
        json!({"alg": "EdDSA"}),
        json!(["EdDSA"]),
    ];
    for header in headers {
        let token = token(&signer, &header, &claims);
        let refused = keys.verify(&token, &request(), NOW);
        assert_eq!(refused, Err(Refusal::Malformed), "{header}");
    }
}

#[test]
fn a_token_is_for_one_request() {
    let (signer, verifier) = pair("ed25519");
    let keys = Keys(vec![verifier]);
    let token = sign(&signer, &claims()).expect("sign");
    let work = |change: fn(&mut Work)| {
        let mut other = request();
        other.work.iter_mut().for_each(change);
        other
    };
    let others = [
        (
            "operation",
            Request {
                op: Operation::Cancel,
                ..request()
            },
        ),
        (
            "unit",
            Request {
                unit: "01ARZ3NDEKTSV4RRFFQ69G5FAX".into(),
                ..request()
            },
        ),
        (
            "node",
            Request {
                aud: "node8".into(),
                ..request()
            },
        ),
        (
            "requester",
            Request {
                reply: "lab/infrastructure/x".into(),
                ..request()
            },
        ),
        (
            "work type",
            Request {
                work: None,
                ..request()
            },
        ),
        ("work type", work(|work| work.kind = "purge".into())),
        ("set of parameters", work(|work| work.params = "ab".into())),
        ("payload", work(|work| work.length = 4)),
        ("payload", work(|work| work.sha256 = "bc".into())),
    ];
    for (what, other) in others {
        let refused = keys.verify(&token, &other, NOW);
        assert_eq!(refused, Err(Refusal::Other(what)), "{other:?}");
    }
}

#[test]
fn clocks_may_differ_by_a_minute_and_the_refusal_tells_both() {
    let (signer, verifier) = pair("ed25519");
    let keys = Keys(vec![verifier]);
    let token = sign(&signer, &claims()).expect("sign");
    let at = |now| keys.verify(&token, &request(), now);
    assert!(at(NOW - MAX_SKEW).is_ok() && at(NOW + 600 + MAX_SKEW - 1).is_ok());
    let early = at(NOW - MAX_SKEW - 1).expect_err("early").to_string();
    assert!(early.contains("2027-01-15T08:00:00Z"), "{early}");
    assert!(early.contains("2027-01-15T07:58:59Z"), "{early}");
    let late = at(NOW + 600 + MAX_SKEW).expect_err("late").to_string();
    assert!(late.contains("2027-01-15T08:10:00Z"), "{late}");
    assert!(late.contains("2027-01-15T08:11:00Z"), "{late}");
}

#[test]
fn a_token_cannot_be_used_for_ever() {
    let (signer, verifier) = pair("ed25519");
    let keys = Keys(vec![verifier]);
    for exp in [NOW + LIFETIME + 1, i64::MAX] {
        let token = sign(&signer, &Claims { exp, ..claims() }).expect("sign");
        let refused = keys.verify(&token, &request(), NOW);
        assert_eq!(refused, Err(Refusal::TooLasting));
    }
    let mut endless = serde_json::to_value(claims()).expect("claims");
    endless.as_object_mut().expect("object").remove("exp");
    let header = json!({"alg": "EdDSA", "kid": signer.id()});
    let refused = keys.verify(&token(&signer, &header, &endless), &request(), NOW);
    assert_eq!(refused, Err(Refusal::Malformed));
}

#[test]
fn weak_and_foreign_keys_are_refused_when_they_are_read() {
    for name in ["rsa-1024.pub", "ec.pub", "ed25519"] {
        assert!(Verifier::from_pem(&pem(name)).is_err(), "{name}");
    }
    for name in ["ec", "ed25519.pub"] {
        assert!(Signer::from_pem(&pem(name)).is_err(), "{name}");
    }
    let weak = Verifier::from_pem(&pem("rsa-1024.pub")).expect_err("weak");
    assert!(weak.contains("1024 bits"), "{weak}");
}

#[test]
fn a_key_of_our_test_kit_verifies() {
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("key");
    let signer = Signer::from_pem(key.serialize_pem().as_bytes()).expect("private");
    let verifier = Verifier::from_pem(key.public_key_pem().as_bytes()).expect("public");
    let token = sign(&signer, &claims()).expect("sign");
    assert!(Keys(vec![verifier]).verify(&token, &request(), NOW).is_ok());
}

proptest! {
    #[test]
    fn a_changed_token_is_refused(place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (signer, verifier) = pair("ed25519");
        let mut token = sign(&signer, &claims()).expect("sign").into_bytes();
        let place = place.index(token.len());
        prop_assume!(token[place] != byte);
        token[place] = byte;
        let token = String::from_utf8_lossy(&token).into_owned();
        prop_assert!(Keys(vec![verifier]).verify(&token, &request(), NOW).is_err());
    }

    #[test]
    fn no_text_breaks_the_parser_of_tokens(token in "\\PC{0,200}") {
        let (_, verifier) = pair("ed25519");
        prop_assert!(Keys(vec![verifier]).verify(&token, &request(), NOW).is_err());
    }

    #[test]
    fn no_bytes_break_the_parser_of_keys(bytes in any::<Vec<u8>>()) {
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            base64::encode(&bytes).replace('-', "+").replace('_', "/"));
        let _ = Verifier::from_pem(pem.as_bytes());
    }
}
