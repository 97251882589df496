//! What a change does to a file, line by line.

use std::fmt::Write as _;

/// Lines that are shown around a change.
const AROUND: usize = 2;
/// Most lines of a file that are compared one by one; of larger ones both ends alone are.
const LINES_MAX: usize = 2_000;

/// Lines of both texts, `-` before what goes, `+` before what comes; empty when they are the same.
pub fn diff(before: &str, after: &str) -> String {
    let (before, after): (Vec<&str>, Vec<&str>) =
        (before.lines().collect(), after.lines().collect());
    let lines = compared(&before, &after);
    let changed: Vec<usize> =
        lines.iter().enumerate().filter(|(_, (sign, _))| *sign != ' ').map(|(at, _)| at).collect();
    let mut shown = String::new();
    let mut last = None;
    for (at, (sign, line)) in lines.iter().enumerate() {
        if !changed.iter().any(|change| change.abs_diff(at) <= AROUND) {
            continue;
        }
        if last.is_some_and(|last| last + 1 != at) {
            shown.push_str("...\n");
        }
        // Writing to a string cannot fail.
        let _ = writeln!(shown, "{sign} {line}");
        last = Some(at);
    }
    shown
}

fn compared<'a>(before: &[&'a str], after: &[&'a str]) -> Vec<(char, &'a str)> {
    let head = before.iter().zip(after).take_while(|(old, new)| old == new).count();
    let (old, new) = (&before[head..], &after[head..]);
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old == new).count();
    let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);
    let mut lines: Vec<(char, &str)> = before[..head].iter().map(|line| (' ', *line)).collect();
    lines.extend(middle(old, new));
    lines.extend(before[before.len() - tail..].iter().map(|line| (' ', *line)));
    lines
}

/// The longest common subsequence by its table.
fn middle<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    if old.len().max(new.len()) > LINES_MAX {
        let gone = old.iter().map(|line| ('-', *line));
        return gone.chain(new.iter().map(|line| ('+', *line))).collect();
    }
    let width = new.len() + 1;
    let mut common = vec![0_u32; (old.len() + 1) * width];
    for (i, old_line) in old.iter().enumerate().rev() {
        for (j, new_line) in new.iter().enumerate().rev() {
            common[i * width + j] = if old_line == new_line {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len()
            && (j == new.len() || common[(i + 1) * width + j] >= common[i * width + j + 1])
        {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_shown_with_what_stands_around_it() {
        let before = "a\nb\nc\nd\ne\nf\ng\nh\n";
        let after = "a\nB\nc\nd\ne\nf\ng\nh\ni\n";
        assert_eq!(diff(before, after), "  a\n- b\n+ B\n  c\n  d\n...\n  g\n  h\n+ i\n");
        assert_eq!(diff(before, before), "");
        assert_eq!(diff("", "x\n"), "+ x\n");
        assert_eq!(diff("x\n", ""), "- x\n");
        let many: String = (0..3_000).map(|line| format!("{line}\n")).collect();
        assert_eq!(diff("y\n", &many).lines().count(), 3_001);
    }
}
