use super::*;
use crate::{Code, Inputs};

const HEAD: &str = "format: estoppel.playbook/v1\nname: t\ntitle: T\ninputs:\n  s: { type: session }\n  d: { type: destination, required: false }\n  t: { type: text }\nsteps:\n";

fn lint(steps: &str) -> Result<Playbook, Diagnostics> {
    Playbook::parse(&format!("{HEAD}{steps}"))
}

/// The steps start at line 9.
fn fails(steps: &str, code: Code, line: u64, expect: &str) {
    let found = lint(steps).expect_err(steps).0;
    let hit = found.iter().find(|it| it.code == code && it.line == line);
    let Some(hit) = hit else {
        panic!("{steps}\nexpected {code} in line {line}, found {found:#?}")
    };
    assert!(hit.to_string().contains(expect), "{hit}");
    assert!(hit.column > 0, "{hit:?}");
}

#[test]
fn the_playbooks_that_come_with_estoppel_hold() {
    for (name, source) in crate::BUILTIN {
        let playbook = Playbook::parse(source).unwrap_or_else(|error| panic!("{name}:\n{error}"));
        assert_eq!(playbook.name, name);
    }
}

#[test]
fn what_is_not_known_is_named_with_its_place_and_a_hint() {
    fails("  - id: a\n    acton: halt\n", Code::UnknownField, 10, "did you mean `action`?");
    fails("  - id: a\n    action: hallt\n", Code::UnknownAction, 10, "did you mean `halt`?");
    fails("  - id: a\n    action: explode\n", Code::UnknownAction, 10, "the actions are halt");
    fails("  - id: a\n", Code::MissingField, 9, "`action` is missing");
    fails(
        "  - id: a\n    action: freeze\n    with: { session: x }\n    on_failure: ende\n",
        Code::UnknownValue,
        12,
        "did you mean `end`?",
    );
    fails(
        "  - id: A b\n    action: freeze\n    with: { session: x }\n",
        Code::Syntax,
        9,
        "lower-case",
    );
    fails("  - id: [\n", Code::Syntax, 9, "PB001: expected string scalar");
    fails(
        "  - id: a\n    id: b\n    action: freeze\n    with: { session: x }\n",
        Code::Syntax,
        10,
        "duplicate",
    );
}

#[test]
fn parameters_are_checked_by_type() {
    fails(
        "  - id: a\n    action: halt\n    with: { scope: global }\n",
        Code::Parameter,
        10,
        "`reason`",
    );
    fails(
        "  - id: a\n    action: freeze\n    with: { sesion: x, session: x }\n",
        Code::Parameter,
        11,
        "did you mean `session`?",
    );
    fails(
        "  - id: a\n    action: freeze\n    with:\n      session: ${x}\n",
        Code::UnknownInput,
        12,
        "${x}".trim_matches(['$', '{', '}']),
    );
    fails(
        "  - id: a\n    action: freeze\n    with:\n      session: ${t}\n",
        Code::Type,
        12,
        "a session is needed",
    );
    fails(
        "  - id: a\n    action: freeze\n    with:\n      session: two words\n",
        Code::Type,
        12,
        "U+0020",
    );
    fails(
        "  - id: a\n    action: halt\n    with:\n      scope: sesion:x\n      reason: r\n",
        Code::Type,
        12,
        "did you mean `session:x`?",
    );
    fails(
        "  - id: a\n    action: freeze\n    with: { session: x }\n    within: soon\n",
        Code::Type,
        12,
        "`30s`",
    );
    fails(
        "  - id: a\n    action: freeze\n    with: { session: x }\n    within: 25h\n",
        Code::Type,
        12,
        "at most `24h`",
    );
}

/// Text of an event is never put together into a scope, an address or a command.
#[test]
fn a_reference_stands_alone() {
    for text in ["session:${s}", "${s}${s}", "x ${s}", "${s} ", "${${s}}", "$${s}"] {
        let steps = format!(
            "  - id: a\n    action: halt\n    with:\n      reason: r\n      scope: '{text}'\n"
        );
        fails(&steps, Code::Interpolation, 13, "one whole `${input}`");
    }
}

#[test]
fn an_input_that_may_be_absent_is_asked_for() {
    let step = "  - id: a\n    action: block\n    with:\n      scope: ${s}\n      reason: ${t}\n      destination: ${d}\n";
    fails(step, Code::AbsentInput, 14, "add `when: {present: d}`");
    assert!(lint(&format!("{step}    when: {{ present: d }}\n")).is_ok());
}

#[test]
fn steps_that_wait_for_each_other_are_found() {
    let freeze = |id: &str, needs: &str| {
        format!(
            "  - id: {id}\n    action: thaw\n    with: {{ session: x }}\n    needs: [{needs}]\n"
        )
    };
    let steps = [freeze("a", "c"), freeze("b", "a"), freeze("c", "b"), freeze("d", "")].concat();
    fails(&steps, Code::Cycle, 9, "`a`, `b`, `c`");
    fails(&freeze("a", "a"), Code::Cycle, 9, "`a`");
    fails(&freeze("a", "b"), Code::UnknownStep, 12, "no step has the id `b`");
    fails(&[freeze("a", ""), freeze("a", "")].concat(), Code::DuplicateStep, 13, "`a`");
    let when = "  - id: a\n    action: thaw\n    with: { session: x }\n    when: { step: b, is: failed }\n  - id: b\n    action: thaw\n    with: { session: x }\n    needs: [a]\n";
    fails(when, Code::Cycle, 9, "`a`, `b`");
}

/// *stop-never-waits*, as far as a playbook can break it.
#[test]
fn a_stop_waits_for_nothing_but_stops() {
    let capture = "  - id: c\n    action: capture\n    with: { session: x }\n";
    let freeze = "  - id: f\n    action: freeze\n    with: { session: x }\n";
    fails(&format!("{capture}{freeze}    needs: [c]\n"), Code::StopWaits, 12, "waits for `c`");
    fails(
        &format!("{freeze}    approval: {{ role: lead, quorum: 1 }}\n"),
        Code::StopWaits,
        9,
        "approval",
    );
    fails(&format!("{capture}    lane: stop\n"), Code::StopWaits, 9, "no stop");
    fails(
        &format!("{capture}{freeze}    when: {{ step: c, is: failed }}\n"),
        Code::StopWaits,
        12,
        "waits for `c`",
    );
    assert!(lint(&format!("{capture}{freeze}    needs: [c]\n    lane: work\n")).is_ok());
}

/// *stops before evidence before destruction*.
#[test]
fn what_destroys_names_its_evidence() {
    let kill = "  - id: k\n    action: kill\n    with: { session: x }\n";
    let capture = "  - id: c\n    action: capture\n    with: { session: x }\n";
    let freeze = "  - id: f\n    action: freeze\n    with: { session: x }\n";
    fails(kill, Code::Evidence, 9, "requires_evidence");
    fails(
        &format!("{kill}    requires_evidence: [f]\n{freeze}"),
        Code::Evidence,
        12,
        "not a capture",
    );
    fails(&format!("{kill}    effect: none\n"), Code::Effect, 12, "`kill` is destructive");
    assert!(lint(&format!("{capture}{kill}    requires_evidence: [c]\n")).is_ok());
}

#[test]
fn sizes_are_bounded() {
    let many: String = (0..65)
        .map(|index| format!("  - id: s{index}\n    action: freeze\n    with: {{ session: x }}\n"))
        .collect();
    let found = lint(&many).unwrap_err().to_string();
    assert!(found.contains("65 steps: a playbook has 1 to 64"), "{found}");
    assert!(Playbook::parse(&" ".repeat(65 * 1024)).unwrap_err().to_string().contains("65536"));
    assert!(lint("  []\n").unwrap_err().to_string().contains("0 steps"));
    let deep = format!("{HEAD}  - id: {}{}\n", "[".repeat(100), "]".repeat(100));
    assert!(Playbook::parse(&deep).is_err());
    // Each anchor ten times the one before: a thousand million nodes, were they expanded.
    let bomb: String = (0..9).fold("a: &a0 [x]\n".to_owned(), |text, index| {
        let next = index + 1;
        format!("{text}b{next}: &a{next} [{}]\n", vec![format!("*a{index}"); 10].join(","))
    });
    assert!(Playbook::parse(&bomb).is_err());
    for other in ["", "null", "[]", "- a", "\u{0}", "{", "format: 3", "a: 1\n---\nb: 2"] {
        assert!(Playbook::parse(other).is_err(), "{other:?}");
    }
}

#[test]
fn all_faults_are_named_at_once() {
    let steps = "  - id: a\n    action: hallt\n  - id: b\n    action: freeze\n    with: { session: ${x} }\n    needs: [z]\n";
    let steps = steps.replace("{ session: ${x} }", "\n      session: ${x}");
    let codes: Vec<Code> = lint(&steps).unwrap_err().0.iter().map(|it| it.code).collect();
    assert_eq!(codes, [Code::UnknownAction, Code::UnknownInput, Code::UnknownStep]);
}

#[test]
fn inputs_are_checked_when_a_run_starts() {
    let playbook = lint("  - id: a\n    action: freeze\n    with:\n      session: ${s}\n").unwrap();
    let read = |texts: &[(&str, &str)]| {
        Inputs::read(&playbook, texts.iter().copied()).map_err(|error| error.to_string())
    };
    assert!(read(&[("s", "abc"), ("t", "why")]).is_ok());
    for (texts, expect) in [
        (vec![("t", "why")], "needs the input `s`"),
        (vec![("s", "a b"), ("t", "")], "input `s`"),
        (vec![("s", "a"), ("t", ""), ("x", "")], "no input `x`"),
        (vec![("s", "a"), ("t", ""), ("d", "http://x")], "input `d`"),
    ] {
        assert!(read(&texts).unwrap_err().contains(expect), "{texts:?}");
    }
}
