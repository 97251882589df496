//! Versions of plugins and ranges of them, such as `>=2.1` or `>=1.0, <1.4.2`.
//!
//! A range here decides what is *stopped*. It therefore errs on the side of stopping: a version
//! that cannot be read, or is not known, lies in every range; a pre-release lies where its place in
//! the order is (`2.2.0-rc1` is in `>=2.1`), which package managers' ranges deny.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text::quoted;

/// A version as its publisher wrote it, ordered by SemVer 2.0.0 section 11 with any number of
/// numeric parts; a leading `v` and a build part behind `+` do not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    parts: Vec<u64>,
    pre: semver::Prerelease,
}

impl Version {
    /// Reads a version; `None` when its order cannot be told.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
        let text = text.split_once('+').map_or(text, |(version, _build)| version);
        let (numbers, pre) = match text.split_once('-') {
            Some((numbers, pre)) => (numbers, semver::Prerelease::new(pre).ok()?),
            None => (text, semver::Prerelease::EMPTY),
        };
        let parts = numbers
            .split('.')
            .map(|part| {
                part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten()
            })
            .collect::<Option<Vec<u64>>>()?;
        Some(Self { parts, pre })
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let part = |version: &Self, index: usize| version.parts.get(index).copied().unwrap_or(0);
        (0..self.parts.len().max(other.parts.len()))
            .map(|index| part(self, index).cmp(&part(other, index)))
            .find(|ordering| ordering.is_ne())
            .unwrap_or_else(|| self.pre.cmp(&other.pre))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
}

impl Comparison {
    /// Longer operators first, so that `>=` is not read as `>`.
    const TABLE: [(&str, Self); 6] = [
        ("<=", Self::LessOrEqual),
        (">=", Self::GreaterOrEqual),
        ("==", Self::Equal),
        ("<", Self::Less),
        (">", Self::Greater),
        ("=", Self::Equal),
    ];

    const fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Equal => ordering.is_eq(),
            Self::GreaterOrEqual => ordering.is_ge(),
            Self::Greater => ordering.is_gt(),
        }
    }
}

/// Comparisons joined by commas, all of which must hold; a version alone means that version.
#[derive(Debug, Clone)]
pub struct VersionRange {
    text: String,
    comparisons: Vec<(Comparison, Version)>,
}

/// Why a text is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{part} is not a version comparison: write `>=2.1`, `<3`, `=2.1.0` or several joined by commas"
)]
pub struct VersionRangeError {
    part: String,
}

impl VersionRange {
    /// Whether a version lies in this range. One that is unknown or cannot be read does.
    pub fn contains(&self, version: Option<&str>) -> bool {
        let Some(version) = version.and_then(Version::parse) else { return true };
        self.comparisons.iter().all(|(comparison, bound)| comparison.holds(version.cmp(bound)))
    }
}

impl FromStr for VersionRange {
    type Err = VersionRangeError;

    fn from_str(text: &str) -> Result<Self, VersionRangeError> {
        let comparisons = text
            .split(',')
            .map(|part| {
                let part = part.trim();
                let (comparison, version) = Comparison::TABLE
                    .iter()
                    .find_map(|(sign, comparison)| Some((*comparison, part.strip_prefix(sign)?)))
                    .unwrap_or((Comparison::Equal, part));
                Version::parse(version)
                    .map(|version| (comparison, version))
                    .ok_or_else(|| VersionRangeError { part: quoted(part) })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let text = text.split_whitespace().collect();
        Ok(Self { text, comparisons })
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
impl PartialEq for VersionRange {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
impl Eq for VersionRange {}
impl PartialOrd for VersionRange {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for VersionRange {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}
impl std::hash::Hash for VersionRange {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}
impl Serialize for VersionRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}
impl<'de> Deserialize<'de> for VersionRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_what_it_says_and_errs_on_the_side_of_stopping() {
        let check = |range: &str, version: &str, expect: bool| {
            let found = range.parse::<VersionRange>().unwrap().contains(Some(version));
            assert_eq!(found, expect, "{version} in {range}");
        };
        check(">=2.1", "2.1", true);
        check(">=2.1", "2.1.0", true);
        check(">=2.1", "v2.10.0+build7", true);
        check(">=2.1", "2.0.9", false);
        check(">=2.1", "2.2.0-rc1", true);
        check(">=2.1", "2.1.0-rc1", false);
        check("2.1", "2.1.0", true);
        check("=2.1.0", "2.1.0.1", false);
        check(">=1.0, <1.4.2", "1.4.1", true);
        check(">=1.0, <1.4.2", "1.4.2", false);
        check(">2", "2", false);
        check("<=2", "2.0.0", true);
        check("<1", "not a version", true);
        check("<1", "99999999999999999999999", true);
        assert!("<1".parse::<VersionRange>().unwrap().contains(None));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", ">=", "^1.2", "~1", ">=1,,<2", "*", ">= 1.x"] {
            assert!(text.parse::<VersionRange>().is_err(), "{text}");
        }
    }
}
