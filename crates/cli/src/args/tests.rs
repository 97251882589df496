//! The help of every command: examples that the command itself takes, and lines that fit.

use clap::{CommandFactory as _, Parser as _};

use super::*;

/// Widest line of the help that is not broken.
const WIDTH: usize = 100;
/// An id such as those that examples cut short.
const ID: &str = "0197f3a0-5b8e-7c11-9c55-0b1f2d3c4e5a";

/// The words of a line as a shell makes them, without redirections and without what is said of the
/// line behind two spaces or more.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let (mut word, mut quote): (Option<String>, Option<char>) = (None, None);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(end), _) if letter == end => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(letter),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '\\') => word.get_or_insert_default().extend(letters.next()),
            (None, '<' | '>') => break,
            (None, ' ') => {
                words.extend(word.take());
                if letters.peek() == Some(&' ') {
                    break;
                }
            }
            _ => word.get_or_insert_default().push(letter),
        }
    }
    assert_eq!(quote, None, "a quote without its end: {line}");
    words.extend(word);
    words.into_iter().map(whole).collect()
}

/// A word, in which an id or a hash that is cut short is a whole one.
fn whole(word: String) -> String {
    match word.strip_suffix("...") {
        Some(start) if start.starts_with("019") => ID.to_owned(),
        Some(start) if start.bytes().all(|byte| byte.is_ascii_hexdigit()) => "0".repeat(64),
        _ => word,
    }
}

#[test]
fn an_example_is_split_as_a_shell_does() {
    let check = |line: &str, expect: &[&str]| assert_eq!(words(line), expect, "{line}");
    check("estoppel serve", &["estoppel", "serve"]);
    check("estoppel sql \"a 'b'\"   say", &["estoppel", "sql", "a 'b'"]);
    check("estoppel report 'it'\\''s' > x", &["estoppel", "report", "it's"]);
    check("estoppel note ''", &["estoppel", "note", ""]);
    check("log 0198... CMD...", &["log", ID, "CMD..."]);
    check("--key 3b6a27bc...", &["--key", &"0".repeat(64)]);
}

/// All commands below one that people can name, with the words that lead there.
fn walk(command: &clap::Command, path: &str, visit: &mut impl FnMut(&clap::Command, &str)) {
    visit(command, path);
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        walk(below, &format!("{path} {}", below.get_name()), visit);
    }
}

/// The command that some words lead to.
fn led_to(words: &[String]) -> String {
    let found = Args::command().try_get_matches_from(words);
    let found = found.unwrap_or_else(|error| panic!("{words:?}: {error}"));
    let (mut path, mut inner) = ("estoppel".to_owned(), &found);
    while let Some((name, below)) = inner.subcommand() {
        path = format!("{path} {name}");
        inner = below;
    }
    path
}

#[test]
fn every_command_has_examples_that_it_takes() {
    let mut leaves = 0;
    walk(&Args::command(), "estoppel", &mut |command, path| {
        let said = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(said.is_empty() || said.starts_with("Example"), "{path}: {said}");
        let examples: Vec<&str> = said
            .lines()
            .filter_map(|line| line.strip_prefix("  "))
            .filter(|line| line.starts_with("estoppel"))
            .collect();
        let plural = said.starts_with("Examples:");
        assert_eq!(examples.len() > 1, plural, "{path}: one example, or several: {said}");
        let mut own = 0;
        for example in &examples {
            let words = words(example);
            let led = led_to(&words);
            Args::try_parse_from(&words).unwrap_or_else(|error| panic!("{path}: {error}"));
            own += usize::from(led == path);
        }
        let wide = said.lines().find(|line| line.chars().count() > WIDTH);
        assert_eq!(wide, None, "{path}");
        if !command.has_subcommands() {
            leaves += 1;
            assert!(own > 0, "`{path} --help` has no example of its own");
        }
    });
    assert!(leaves > 50, "{leaves} commands");
}

/// Each line of usage is one that can be read: no alternatives that are not a choice.
#[test]
fn usage_is_short() {
    walk(&Args::command(), "estoppel", &mut |command, path| {
        let mut command = command.clone().bin_name(path.to_owned());
        let usage = command.render_usage().to_string();
        assert!(!usage.contains('|'), "{usage}");
        assert!(usage.lines().all(|line| line.len() <= WIDTH), "{usage}");
    });
}

/// What a command takes by itself stands before what every command takes.
#[test]
fn a_commands_own_options_come_first() {
    walk(&Args::command(), "estoppel", &mut |_, path| {
        let words: Vec<&str> = path.split(' ').chain(["--help"]).collect();
        let help = Args::command().try_get_matches_from(words).unwrap_err().to_string();
        let (own, common) =
            help.split_once(&format!("\n{COMMON}:")).unwrap_or_else(|| panic!("{help}"));
        for option in ["--json", "--log-format", "--url", "--token-file", "--ca"] {
            let is_listed = |help: &str| {
                help.lines().any(|line| line.trim_start().split(' ').next() == Some(option))
            };
            assert!(!is_listed(own) && is_listed(common), "{path}: {option}: {help}");
        }
    });
}

#[test]
fn the_limits_usage_and_its_bounds() {
    let limit = |words: &[&str]| Args::try_parse_from([&["estoppel", "limit"], words].concat());
    let is_ok = |words: &[&str]| limit(words).is_ok();
    assert!(is_ok(&["user:bob", "--steps", "4", "--reason", "r"]));
    assert!(is_ok(&["user:bob", "--read-only", "--cost", "1.5", "--reason", "r"]));
    assert!(is_ok(&["list"]));
    assert!(!is_ok(&["user:bob", "--reason", "r"]), "no bound");
    assert!(!is_ok(&["user:bob", "--steps", "4"]), "no reason");
    assert!(!is_ok(&["--steps", "4", "--reason", "r"]), "nobody");
    assert!(!is_ok(&["list", "--steps", "4"]));
    let said = limit(&["--help"]).unwrap_err().to_string();
    let usage = "Usage: estoppel limit <SCOPE>... --reason <REASON> <BOUND>... [OPTIONS]\n       estoppel limit list\n";
    assert!(said.contains(usage), "{said}");
    let places: Vec<_> =
        ["\nArguments:", "-r, --reason <", "\nBounds, one at least:", "   --steps <", COMMON]
            .map(|part| said.find(part).unwrap())
            .into();
    assert!(places.is_sorted(), "{said}");
}
