//! Markdown that stays inert, whatever an agent wrote (invariant *inert*).
//!
//! Foreign text stands in code spans only, where CommonMark and its table extensions interpret
//! nothing but backquotes and pipes; both are written as `\u{..}`, as are line ends and whatever
//! is invisible. Escaping by backslashes would depend on the renderer: links without brackets,
//! mentions and pipes in table cells are read differently by each.

use estoppel_model::text::is_invisible;

/// Longest foreign text in a cell or a line, in characters.
pub(crate) const CHARS_MAX: usize = 300;

/// The text as a code span on one line.
pub(crate) fn code(text: &str) -> String {
    code_up_to(text, CHARS_MAX)
}

/// The text as a code span on one line, at most so many characters of it.
pub(crate) fn code_up_to(text: &str, chars_max: usize) -> String {
    if text.is_empty() {
        return "(empty)".to_owned();
    }
    let mut out = String::from("`");
    for (count, c) in text.chars().enumerate() {
        if count == chars_max {
            out.push_str("...");
            break;
        }
        if c == '`' || c == '|' || is_invisible(c) || (c.is_whitespace() && c != ' ') {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out.push('`');
    out
}

/// A table; cells are Markdown already.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = format!("| {} |\n|{}\n", header.join(" | "), " --- |".repeat(header.len()));
    for row in rows {
        out.push_str("| ");
        out.push_str(&row.join(" | "));
        out.push_str(" |\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_does_not_leave_its_code_span() {
        for text in [
            "` <img src=x onerror=alert(1)> `",
            "``\n# Contained\n",
            "| 0 bytes | nothing happened |",
            "\\| x |\\\\|",
            "[click](javascript:alert(1)) ![](https://evil.example/?q=1)",
            "\u{1b}[2J\u{1b}]8;;https://evil.example\u{7}link",
            "a\u{202e}b\u{200b}c\r\nd\u{2028}e",
            "=cmd|' /C calc'!A0",
        ] {
            let span = code(text);
            let inside = span.strip_prefix('`').unwrap().strip_suffix('`').unwrap();
            assert!(!inside.contains(['`', '|', '\n', '\r', '\u{1b}', '\u{202e}']), "{span}");
        }
        assert_eq!(code(""), "(empty)");
        assert_eq!(code_up_to("abcdef", 3), "`abc...`");
    }
}
