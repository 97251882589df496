//! Times as people write them: the beginning of an ISO 8601 time stands for its first instant.
//!
//! DataFusion refuses `timestamp > '2026-02-05 03:00'`, which PostgreSQL takes. After its type
//! coercion such a literal is the operand of a cast to a timestamp; here it is completed.

use datafusion::{
    common::{
        Result, ScalarValue,
        config::ConfigOptions,
        tree_node::{Transformed, TreeNode},
    },
    logical_expr::{Cast, Expr, LogicalPlan, TryCast, expr_rewriter::NamePreserver},
    optimizer::AnalyzerRule,
};

/// The analyzer rule. It must run after type coercion.
#[derive(Debug)]
pub(super) struct CompleteTimes;

impl AnalyzerRule for CompleteTimes {
    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| {
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expression| {
                let name = names.save(&expression);
                let rewritten = expression.transform_up(|part| Ok(complete_operand(part)))?;
                Ok(rewritten.update_data(|expression| name.restore(expression)))
            })
        })
        .map(|plan| plan.data)
    }

    fn name(&self) -> &'static str {
        "complete_times"
    }
}

fn complete_operand(mut expression: Expr) -> Transformed<Expr> {
    let (Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field })) =
        &mut expression
    else {
        return Transformed::no(expression);
    };
    if !matches!(field.data_type(), arrow::datatypes::DataType::Timestamp(..)) {
        return Transformed::no(expression);
    }
    let Expr::Literal(
        ScalarValue::Utf8(Some(text))
        | ScalarValue::Utf8View(Some(text))
        | ScalarValue::LargeUtf8(Some(text)),
        _,
    ) = expr.as_mut()
    else {
        return Transformed::no(expression);
    };
    match complete(text) {
        Some(completed) => {
            *text = completed;
            Transformed::yes(expression)
        }
        None => Transformed::no(expression),
    }
}

/// The time whose beginning `text` is, if it is one without its seconds.
fn complete(text: &str) -> Option<String> {
    let text = text.trim();
    let digits = |part: &str, count: usize| {
        part.len() == count && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    let (date, rest) = match text.find(['T', 't', ' ']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next());
    if !digits(year, 4) || !digits(month, 2) || parts.next().is_some() {
        return None;
    }
    match day {
        None if rest.is_none() => return Some(format!("{year}-{month}-01T00:00:00")),
        Some(day) if digits(day, 2) => {}
        _ => return None,
    }
    let Some(rest) = rest else { return Some(format!("{date}T00:00:00")) };
    let zone_at = rest.find(['Z', 'z', '+', '-', ' ']).unwrap_or(rest.len());
    let (time, zone) = rest.split_at(zone_at);
    let zone = match zone.trim() {
        "" => String::new(),
        "Z" | "z" => "Z".to_owned(),
        offset if digits(offset.get(1..)?, 2) => format!("{offset}:00"),
        offset => offset.to_owned(),
    };
    let mut parts = time.split(':');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(hour), None, _) if digits(hour, 2) => Some(format!("{date}T{hour}:00:00{zone}")),
        (Some(hour), Some(minute), None) if digits(hour, 2) && digits(minute, 2) => {
            Some(format!("{date}T{hour}:{minute}:00{zone}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_completed() {
        for (text, expect) in [
            ("2026-02", "2026-02-01T00:00:00"),
            ("2026-02-05", "2026-02-05T00:00:00"),
            ("2026-02-05 03", "2026-02-05T03:00:00"),
            ("2026-02-05 03:00", "2026-02-05T03:00:00"),
            ("2026-02-05T03:00", "2026-02-05T03:00:00"),
            (" 2026-02-05 03:30 ", "2026-02-05T03:30:00"),
            ("2026-02-05T03:00Z", "2026-02-05T03:00:00Z"),
            ("2026-02-05T03Z", "2026-02-05T03:00:00Z"),
            ("2026-02-05 03:00+01:00", "2026-02-05T03:00:00+01:00"),
            ("2026-02-05 03:00 -05", "2026-02-05T03:00:00-05:00"),
        ] {
            assert_eq!(complete(text).as_deref(), Some(expect), "{text}");
        }
    }

    #[test]
    fn what_is_whole_or_no_time_is_left_alone() {
        for text in [
            "",
            "2026",
            "202-02-05",
            "2026-2-5",
            "2026-02-05-06",
            "2026-02-05T",
            "2026-02-05 3:00",
            "2026-02-05T03:00:00Z",
            "2026-02-05 03:00:00.5",
            "yesterday",
            "2026-02-é",
            "2026-02 03:00",
        ] {
            assert_eq!(complete(text), None, "{text}");
        }
    }
}
