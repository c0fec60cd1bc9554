use super::*;
use proptest::prelude::*;

/// A time at which nothing is old.
const NOW: i64 = 1_614_265_330;

fn secrets(all: &[&str]) -> Vec<Secret> {
    let secrets = all.iter().map(|one| Secret::new(one.as_bytes()));
    secrets.map(|secret| secret.expect("secret")).collect()
}

fn verifier(scheme: Scheme, all: &[&str]) -> Verifier {
    Verifier::new(scheme, None, &secrets(all)).expect("verifier")
}

fn headers(fields: &[(&str, &str)]) -> Headers {
    fields.iter().copied().collect()
}

fn code(hash: Hash, prefix: &str, encoding: Encoding) -> Scheme {
    Scheme::Code(Code {
        hash,
        header: "x-signature".to_owned(),
        prefix: prefix.to_owned(),
        encoding,
    })
}

/// GitHub, "Validating webhook deliveries": the values for tests.
const HUB_SECRET: &str = "It's a Secret to Everybody";
const HUB_BODY: &[u8] = b"Hello, World!";
const HUB_CODE: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

/// Standard Webhooks, the vector of its libraries.
const STANDARD_KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const STANDARD_BODY: &[u8] = br#"{"test": 2432232314}"#;
const STANDARD_CODE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
const STANDARD_MESSAGE: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";

fn standard(time: &str, signature: &str) -> Headers {
    headers(&[
        ("Webhook-Id", STANDARD_MESSAGE),
        ("Webhook-Timestamp", time),
        ("Webhook-Signature", signature),
    ])
}

#[test]
fn a_token_with_blanks_at_an_end_is_refused_and_a_key_may_have_them() {
    for blank in [" secret", "secret ", "secret\t"] {
        let secret = [Secret::new(blank.as_bytes()).expect("secret")];
        let of = |scheme| Verifier::new(scheme, None, &secret);
        for scheme in [Scheme::Bearer, Scheme::GitLab] {
            let wrong = of(scheme).expect_err(blank);
            assert!(wrong.contains("blank"), "{wrong}");
        }
        assert!(of(Scheme::GitHub).is_ok());
    }
}

#[test]
fn github_is_believed_by_its_own_vector() {
    let github = verifier(Scheme::GitHub, &[HUB_SECRET]);
    let signed = format!("sha256={HUB_CODE}");
    let id = "72d3162e-cc78-11e3-81ab-4c9367dc0958";
    let sent = headers(&[("X-Hub-Signature-256", &signed), ("X-GitHub-Delivery", id)]);
    assert_eq!(github.verify(&sent, HUB_BODY, NOW), Ok(Some(id.to_owned())));
    assert_eq!(
        github.verify(&sent, b"Hello, World?", NOW),
        Err(Refusal::Wrong)
    );
    let other = verifier(Scheme::GitHub, &["another"]);
    assert_eq!(other.verify(&sent, HUB_BODY, NOW), Err(Refusal::Wrong));
    // The new secret or an old one.
    let both = verifier(Scheme::GitHub, &["another", HUB_SECRET]);
    assert!(both.verify(&sent, HUB_BODY, NOW).is_ok());
}

#[test]
fn a_signature_in_another_form_is_no_signature() {
    let github = verifier(Scheme::GitHub, &[HUB_SECRET]);
    let refused = |fields: &[(&str, &str)]| {
        let refusal = github.verify(&headers(fields), HUB_BODY, NOW);
        refusal.expect_err("it is wrong").code()
    };
    let hub = "x-hub-signature-256";
    assert_eq!(refused(&[]), "signature-missing");
    // The field of old times has SHA-1.
    assert_eq!(
        refused(&[("x-hub-signature", "sha1=00")]),
        "signature-missing"
    );
    for wrong in ["", "sha256", HUB_CODE, "sha256=x", "sha256=7", "sha1=75"] {
        assert_eq!(refused(&[(hub, wrong)]), "signature-malformed", "{wrong}");
    }
    let short = format!("sha256={}", &HUB_CODE[..62]);
    for wrong in ["sha256=", &short, &format!("sha256={HUB_CODE}00")] {
        assert_eq!(refused(&[(hub, wrong)]), "signature-wrong", "{wrong}");
    }
    let right = format!("sha256={HUB_CODE}");
    assert_eq!(
        refused(&[(hub, &right), (hub, &right)]),
        "signature-malformed"
    );
}

#[test]
fn gitea_and_forgejo_send_the_digits_alone() {
    let gitea = verifier(Scheme::Gitea, &[HUB_SECRET]);
    let hub = format!("sha256={HUB_CODE}");
    for (name, value) in [
        ("X-Gitea-Signature", HUB_CODE),
        ("X-Forgejo-Signature", HUB_CODE),
        ("X-Hub-Signature-256", &hub),
    ] {
        let sent = headers(&[(name, value), ("X-Gitea-Delivery", "f6266f16")]);
        assert_eq!(
            gitea.verify(&sent, HUB_BODY, NOW),
            Ok(Some("f6266f16".to_owned())),
            "{name}"
        );
        assert!(gitea.verify(&sent, b"", NOW).is_err());
    }
    // A wrong one of its own is not saved by a right one of another form.
    let mixed = headers(&[
        ("X-Forgejo-Signature", "00"),
        ("X-Gitea-Signature", HUB_CODE),
    ]);
    assert_eq!(gitea.verify(&mixed, HUB_BODY, NOW), Err(Refusal::Wrong));
}

#[test]
fn standard_webhooks_are_believed_by_their_vector() {
    let keys = [STANDARD_KEY, "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"];
    let time = NOW.to_string();
    for key in keys {
        let standards = verifier(Scheme::Standard, &[key]);
        let id = standards.verify(&standard(&time, STANDARD_CODE), STANDARD_BODY, NOW);
        assert_eq!(id, Ok(Some(STANDARD_MESSAGE.to_owned())));
    }
    // GitLab with a signing token.
    let gitlab = verifier(Scheme::GitLab, &[STANDARD_KEY]);
    let sent = standard(&time, STANDARD_CODE);
    assert!(gitlab.verify(&sent, STANDARD_BODY, NOW).is_ok());
    // It does not fall back to a token.
    let token = headers(&[("X-Gitlab-Token", STANDARD_KEY)]);
    assert!(gitlab.verify(&token, STANDARD_BODY, NOW).is_err());
}

#[test]
fn one_right_signature_of_several_is_enough() {
    let standards = verifier(Scheme::Standard, &[STANDARD_KEY]);
    let verify = |signatures: &str| {
        let sent = standard(&NOW.to_string(), signatures);
        standards.verify(&sent, STANDARD_BODY, NOW).map(|_| ())
    };
    let other = "v1,bm9ldHUjKzFob2VudXRob2VodWUzMjRvdWVvdW9ldQo=";
    assert_eq!(verify(&format!("{other} {STANDARD_CODE}")), Ok(()));
    assert_eq!(verify(&format!("v1a,xyz {STANDARD_CODE} {other}")), Ok(()));
    assert_eq!(verify(other), Err(Refusal::Wrong));
    let malformed = Err(Refusal::Malformed("webhook-signature".to_owned()));
    for none in [
        "",
        "v1",
        "v1,",
        "v1,!",
        "v1a,AAAA",
        &STANDARD_CODE[3..],
        &STANDARD_CODE.replace("v1", "v2"),
    ] {
        let refused = verify(none);
        assert!(
            refused == malformed || refused == Err(Refusal::Wrong),
            "{none}"
        );
    }
    // Work is bounded.
    let many = format!("{} {STANDARD_CODE}", vec![other; MAX_SIGNATURES].join(" "));
    assert_eq!(verify(&many), Err(Refusal::Wrong));
}

#[test]
fn old_and_early_requests_are_refused() {
    let standards = verifier(Scheme::Standard, &["whsec_AAAA", STANDARD_KEY]);
    let sent = standard(&NOW.to_string(), STANDARD_CODE);
    let at = |now: i64| standards.verify(&sent, STANDARD_BODY, now).map(|_| ());
    for now in [NOW, NOW + MAX_AGE, NOW - MAX_AGE] {
        assert_eq!(at(now), Ok(()));
    }
    assert_eq!(at(NOW + MAX_AGE + 1), Err(Refusal::Old(MAX_AGE + 1)));
    assert_eq!(at(NOW - MAX_AGE - 1), Err(Refusal::Early(MAX_AGE + 1)));
    assert!(at(i64::MAX).is_err() && at(i64::MIN).is_err());
    // The time is signed, and is a plain number.
    for time in [
        "1614265331",
        "+1614265330",
        "01614265330",
        "1614265330.0",
        "",
        "-1",
        "99999999999999999999",
    ] {
        let sent = standard(time, STANDARD_CODE);
        assert!(
            standards.verify(&sent, STANDARD_BODY, NOW).is_err(),
            "{time}"
        );
    }
}

#[test]
fn gitlab_without_a_signing_token_sends_its_secret() {
    let gitlab = verifier(Scheme::GitLab, &["tanuki"]);
    let sent = headers(&[("X-Gitlab-Token", "tanuki"), ("Idempotency-Key", "f5e5")]);
    assert_eq!(
        gitlab.verify(&sent, b"{}", NOW),
        Ok(Some("f5e5".to_owned()))
    );
    let bare = headers(&[("X-Gitlab-Token", "tanuki")]);
    assert_eq!(gitlab.verify(&bare, b"{}", NOW), Ok(None));
    for wrong in ["tanuk", "tanuki!", "Tanuki", ""] {
        let sent = headers(&[("X-Gitlab-Token", wrong)]);
        assert_eq!(
            gitlab.verify(&sent, b"{}", NOW),
            Err(Refusal::Wrong),
            "{wrong}"
        );
    }
}

#[test]
fn other_senders_name_their_header_and_its_form() {
    // Computed with hmac of Python for this text, the example of many pages about HMAC.
    const TEXT: &[u8] = b"The quick brown fox jumps over the lazy dog";
    const SHA256: &str = "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8";
    const SHA512: &str = "b42af09057bac1e2d41708e48a902e09b5ff7f12ab428a4fe86653c73dd248fb\
                          82f948a549f7b791a5b41915ee4d1ec3935357e4e2317250d0372afa2ebeeb3a";
    let base64 = base64::encode_padded(&from_hex(SHA256).expect("digits"));
    for (scheme, value) in [
        (code(Hash::Sha256, "", Encoding::Hex), SHA256.to_owned()),
        (code(Hash::Sha256, "", Encoding::Hex), SHA256.to_uppercase()),
        (
            code(Hash::Sha256, "t=", Encoding::Hex),
            format!("t={SHA256}"),
        ),
        (code(Hash::Sha256, "", Encoding::Base64), base64),
        (
            code(Hash::Sha512, "sha512=", Encoding::Hex),
            format!("sha512={SHA512}"),
        ),
    ] {
        let hmac = Verifier::new(scheme, Some("x-id".to_owned()), &secrets(&["key"]));
        let hmac = hmac.expect("verifier");
        let sent = headers(&[("X-Signature", &value), ("X-Id", "17")]);
        assert_eq!(hmac.verify(&sent, TEXT, NOW), Ok(Some("17".to_owned())));
        assert_eq!(hmac.verify(&sent, b"", NOW), Err(Refusal::Wrong));
        assert_eq!(hmac.own_header(), Some("x-signature"));
    }
}

#[test]
fn a_bearer_token_is_compared_whole() {
    let route = verifier(Scheme::Bearer, &["mF_9.B5f-4.1JqM"]);
    let verify = |value: &str| {
        let sent = headers(&[("Authorization", value)]);
        route.verify(&sent, b"", NOW).map(|_| ())
    };
    assert_eq!(verify("Bearer mF_9.B5f-4.1JqM"), Ok(()));
    assert_eq!(verify("bearer  mF_9.B5f-4.1JqM"), Ok(()));
    for wrong in [
        "Bearer mF_9.B5f-4.1Jq",
        "Bearer ",
        "Basic mF_9.B5f-4.1JqM",
        "mF_9.B5f-4.1JqM",
        "",
        "Bearermf",
    ] {
        assert!(verify(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn ids_of_deliveries_are_ids_of_events() {
    let guid = "72d3162e-cc78-11e3-81ab-4c9367dc0958";
    assert_eq!(event_id("push", guid), format!("push:{guid}"));
    // One delivery for two routes is two events.
    assert_ne!(event_id("push", guid), event_id("release", guid));
    let hostile = ["$(reboot)", "a b", "ü", "", &"x".repeat(65)];
    for delivery in hostile {
        let id = event_id("push", delivery);
        assert!(is_id(&id) && id == event_id("push", delivery), "{id}");
    }
    let ids: std::collections::HashSet<_> = hostile.iter().map(|id| event_id("push", id)).collect();
    assert_eq!(ids.len(), hostile.len());
    assert_ne!(event_id("a:b", "c"), event_id("a", "b:c"));

    let github = verifier(Scheme::GitHub, &[HUB_SECRET]);
    let signed = format!("sha256={HUB_CODE}");
    for (id, fits) in [(MAX_DELIVERY, true), (MAX_DELIVERY + 1, false), (0, false)] {
        let id = "x".repeat(id);
        let sent = headers(&[("X-Hub-Signature-256", &signed), ("X-GitHub-Delivery", &id)]);
        assert_eq!(github.verify(&sent, HUB_BODY, NOW).is_ok(), fits);
    }
}

#[test]
fn secrets_of_a_route_are_checked_when_it_is_read() {
    let wrong = |scheme: Scheme, all: &[&str]| {
        let cause = Verifier::new(scheme, None, &secrets(all)).expect_err("it is wrong");
        assert!(!cause.contains('\n') && all.iter().all(|one| !cause.contains(one)));
    };
    wrong(Scheme::GitHub, &[]);
    wrong(Scheme::GitHub, &["x"; MAX_SECRETS + 1]);
    wrong(Scheme::Standard, &["whsec_"]);
    wrong(Scheme::Standard, &["whsec_no base64"]);
    wrong(Scheme::GitLab, &["whsec_é"]);
    assert!(SECRET_HEADERS.is_sorted());
}

proptest! {
    #[test]
    fn no_byte_of_a_signed_body_can_change(
        body in prop::collection::vec(any::<u8>(), 1..80),
        place in any::<prop::sample::Index>(),
        bit in 0_u32..8,
    ) {
        let signed = hmac::sign(&Key::new(HMAC_SHA256, b"key"), &body);
        let sent = headers(&[("x-signature", &hex(signed.as_ref()))]);
        let route = verifier(code(Hash::Sha256, "", Encoding::Hex), &["key"]);
        prop_assert_eq!(route.verify(&sent, &body, NOW), Ok(None));
        let mut other = body;
        let place = place.index(other.len());
        other[place] ^= 1 << bit;
        prop_assert_eq!(route.verify(&sent, &other, NOW), Err(Refusal::Wrong));
    }

    #[test]
    fn no_header_breaks_it(value in any::<Vec<u8>>(), text in "[v1,= a-z0-9]{0,40}") {
        for name in ["x-hub-signature-256", "webhook-signature", "authorization", "x-gitlab-token"] {
            for value in [value.clone(), text.clone().into_bytes()] {
                let sent: Headers = [(name, value), ("webhook-id", b"1".to_vec()), (
                    "webhook-timestamp", NOW.to_string().into_bytes())].into_iter().collect();
                for scheme in [Scheme::GitHub, Scheme::Gitea, Scheme::Bearer, Scheme::Standard] {
                    let route = verifier(scheme, &["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]);
                    prop_assert!(route.verify(&sent, b"", NOW).is_err());
                }
            }
        }
    }
}
