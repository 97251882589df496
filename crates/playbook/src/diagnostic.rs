//! What is wrong with a playbook, and where: a stable code, line and column, a hint.

use std::fmt;

/// What is wrong, as a code that stays the same over versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// The text is no YAML, or a value is of the wrong shape.
    Syntax,
    /// A field is not known.
    UnknownField,
    /// A field is missing.
    MissingField,
    /// A value is not one of those that its field knows.
    UnknownValue,
    /// The text, or a list in it, is longer than it may be.
    TooLarge,
    /// An action is not known.
    UnknownAction,
    /// A parameter is not known to the action, or one that it needs is missing.
    Parameter,
    /// A parameter or input is of the wrong type.
    Type,
    /// A text with a reference inside it: references stand alone.
    Interpolation,
    /// A reference names no input.
    UnknownInput,
    /// A step uses an input that may be absent, and does not say when.
    AbsentInput,
    /// Two steps have one id.
    DuplicateStep,
    /// A step that is referred to does not exist.
    UnknownStep,
    /// Steps wait for each other.
    Cycle,
    /// A stop waits for work.
    StopWaits,
    /// A step says that it does less than its action does.
    Effect,
    /// A step that destroys does not name the evidence that it waits for.
    Evidence,
}

impl Code {
    /// The code.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "PB001",
            Self::UnknownField => "PB002",
            Self::MissingField => "PB003",
            Self::UnknownValue => "PB004",
            Self::TooLarge => "PB005",
            Self::UnknownAction => "PB006",
            Self::Parameter => "PB007",
            Self::Type => "PB008",
            Self::Interpolation => "PB009",
            Self::UnknownInput => "PB010",
            Self::AbsentInput => "PB011",
            Self::DuplicateStep => "PB012",
            Self::UnknownStep => "PB013",
            Self::Cycle => "PB014",
            Self::StopWaits => "PB015",
            Self::Effect => "PB016",
            Self::Evidence => "PB017",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What, as a code.
    pub code: Code,
    /// Where: the line, from 1; 0 when it is not known.
    pub line: u64,
    /// Where: the column in characters, from 1; 0 when it is not known.
    pub column: u64,
    /// What, in words.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.line, self.column, self.code, self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

/// All that is wrong with a playbook, in the order of its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// The known word that a wrong one was probably meant to be.
pub(crate) fn did_you_mean<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    known
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(&word.to_lowercase(), known), known))
        .min()
        .filter(|(distance, known)| *distance <= (known.len() / 3).max(1))
        .map(|(_, known)| format!("did you mean `{known}`?"))
}
