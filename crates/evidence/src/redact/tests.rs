use proptest::prelude::*;

use super::*;

fn check_environ(input: &str, expect: &str) {
    let found = environ(input.as_bytes());
    assert_eq!(String::from_utf8_lossy(&found.content), expect);
}

fn check_cmdline(input: &str, expect: &str) {
    let found = cmdline(input.replace(' ', "\0").as_bytes());
    assert_eq!(String::from_utf8_lossy(&found.content).replace('\0', " "), expect.to_owned());
}

fn check_text(input: &str, expect: &str) {
    check_environ(&format!("X={input}"), &format!("X={expect}"));
}

#[test]
fn a_name_gives_a_secret_away() {
    for name in [
        "OPENAI_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "DB_PASSWORD",
        "PGPASSWORD",
        "dbPassword",
        "apiKey",
        "SENTRY_DSN",
        "HTTP_COOKIE",
        "AUTH",
        "X_AUTH",
        "MYSQL_PWD",
        "SSH_PASS",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "OPENAIKEY",
        "secret",
        "session_jwt",
    ] {
        check_environ(&format!("{name}=hunter2\0"), &format!("{name}=[redacted name 7 bytes]\0"));
    }
    for name in ["PATH", "HOME", "PWD", "OLDPWD", "KEYBOARD", "AUTHOR", "PASSAGE", "LS_COLORS"] {
        check_environ(&format!("{name}=hunter2\0"), &format!("{name}=hunter2\0"));
    }
    check_environ("TOKEN=\0A=b\0", "TOKEN=\0A=b\0");
}

#[test]
fn a_shape_gives_a_secret_away_and_only_the_secret_goes() {
    check_text(
        "postgres://app:s3cr3t@db.internal:5432/x",
        "postgres://[redacted userinfo 10 bytes]@db.internal:5432/x",
    );
    check_text("http://u:p/w@d@host/", "http://[redacted userinfo 7 bytes]@host/");
    check_text("https://ghost@example.com", "https://[redacted userinfo 5 bytes]@example.com");
    check_text("https://registry.example/@scope/pkg", "https://registry.example/@scope/pkg");
    check_text("http://[::1]:80/@x", "http://[::1]:80/@x");
    check_text("AKIAIOSFODNN7EXAMPLE", "[redacted token 20 bytes]");
    check_text("a sk-proj-0123456789abcdef0 b", "a [redacted token 25 bytes] b");
    check_text("task-force-0123456789abcdef", "task-force-0123456789abcdef");
    check_text("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_", "[redacted jwt 42 bytes]");
    check_text(
        "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----\nrest",
        "[redacted pem 57 bytes]\nrest",
    );
    check_text("-----BEGIN RSA PRIVATE KEY-----\nMII", "[redacted pem 35 bytes]");
    check_text(
        "curl -H \"Authorization: Bearer abcdef123\" https://x.example",
        "curl -H \"Authorization: [redacted assignment 16 bytes]\" https://x.example",
    );
    check_text("Bearer abcdef123", "Bearer [redacted authorization 9 bytes]");
    check_text(
        "{\"api_key\": \"abc\", \"n\": 1}",
        "{\"api_key\": \"[redacted assignment 3 bytes]\", \"n\": 1}",
    );
    check_text(
        "host=db password=abc user=x",
        "host=db password=[redacted assignment 3 bytes] user=x",
    );
    check_text(
        "https://x.example/?token=abc&n=1",
        "https://x.example/?token=[redacted assignment 3 bytes]&n=1",
    );
    check_text("/usr/key:/usr/bin", "/usr/key:/usr/bin");
}

#[test]
fn arguments_lose_their_secrets_and_keep_the_rest() {
    check_cmdline("tool --token abc --n 1", "tool --token [redacted name 3 bytes] --n 1");
    check_cmdline("tool --api-key=abc x", "tool --api-key=[redacted assignment 3 bytes] x");
    check_cmdline("curl -u alice:pw https://x", "curl -u [redacted name 8 bytes] https://x");
    check_cmdline("id -u alice", "id -u alice");
    check_cmdline("sh -c A_TOKEN=abc;env", "sh -c A_TOKEN=[redacted assignment 3 bytes];env");
    // The program's own name is no flag.
    check_cmdline("--token abc", "--token abc");
}

#[test]
fn records_say_which_why_and_how_long_and_nothing_of_the_value() {
    let found = environ(b"A=1\0B_TOKEN=hunter2\0");
    assert_eq!(
        found.redacted,
        [Redacted { name: Untrusted::new("B_TOKEN".into()), rule: Rule::Name, bytes: 7 }]
    );
}

#[test]
fn a_hostile_environment_is_taken_as_bytes() {
    let check = |input: &[u8], expect: &[u8]| assert_eq!(environ(input).content, expect);
    check(b"", b"");
    check(b"\0\0", b"\0\0");
    check(b"\xff=\xfe\0no equals sign\0=\0", b"\xff=\xfe\0no equals sign\0=\0");
    check(b"\xffTOKEN=\xfe\xfe\0", b"\xffTOKEN=[redacted name 2 bytes]\0");
}

proptest! {
    /// A planted secret is never left, whatever stands around it.
    #[test]
    fn a_planted_secret_is_gone(
        before in "[a-z ,;=:/@\"']{0,12}",
        after in "[a-z ,;=:/@\"']{0,12}",
        which in 0..4_usize,
    ) {
        let secret = [
            "AKIAQWERTYUIOPASDFGH",
            "ghp_0123456789abcdefghij",
            "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
            "sk-ant-api03-0123456789",
        ][which];
        let input = format!("X={before} {secret} {after}\0");
        let found = environ(input.as_bytes());
        prop_assert!(!String::from_utf8_lossy(&found.content).contains(secret));
        prop_assert!(!found.redacted.is_empty());
    }

    /// No bytes make it panic, and what has no secret comes back as it was.
    #[test]
    fn any_bytes_are_taken(content in proptest::collection::vec(any::<u8>(), 0..300)) {
        for found in [environ(&content), cmdline(&content)] {
            if found.redacted.is_empty() {
                prop_assert_eq!(&found.content, &content);
            }
        }
    }

    /// The dense alphabet of the patterns themselves, too.
    #[test]
    fn dense_patterns_are_taken(content in "[kKeEyY=:@/ \"'\\\\.\\-\0]{0,60}") {
        for found in [environ(content.as_bytes()), cmdline(content.as_bytes())] {
            if found.redacted.is_empty() {
                prop_assert_eq!(&found.content, &content.as_bytes());
            }
        }
    }
}
