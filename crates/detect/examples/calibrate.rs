//! Precision and recall of the structural injection detector over a corpus on standard input: JSON
//! Lines with `text`, `label` (`attack` or `benign`), `channel` (`tool_result` or `user_prompt`).
//!
//! `cargo run -p estoppel-detect --example calibrate < tool-outputs.jsonl`

#![expect(clippy::print_stdout, reason = "it is a command line program")]

use std::{collections::BTreeMap, io::BufRead as _};

use estoppel_detect::{Channel, inspect};

#[derive(serde::Deserialize)]
struct Row {
    text: String,
    label: String,
    channel: String,
}

#[derive(Default)]
struct Count {
    attacks: Vec<f64>,
    benign: Vec<f64>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut counts: BTreeMap<String, (Channel, Count)> = BTreeMap::new();
    let mut reasons: BTreeMap<(String, String), u32> = BTreeMap::new();
    for line in std::io::stdin().lock().lines() {
        let row: Row = serde_json::from_str(&line?)?;
        let channel = match row.channel.as_str() {
            "user_prompt" => Channel::UserPrompt,
            _ => Channel::ToolResult,
        };
        let found = inspect(&row.text, channel);
        for reason in &found.reasons {
            *reasons.entry((row.label.clone(), format!("{reason:?}"))).or_default() += 1;
        }
        let (_, count) = counts.entry(row.channel).or_insert((channel, Count::default()));
        if row.label == "attack" { &mut count.attacks } else { &mut count.benign }
            .push(found.score);
    }
    for (name, (channel, count)) in &counts {
        println!("{name}: {} attacks, {} benign", count.attacks.len(), count.benign.len());
        for threshold in [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9] {
            let hits = |scores: &[f64]| scores.iter().filter(|score| **score >= threshold).count();
            let (found, wrong) = (hits(&count.attacks), hits(&count.benign));
            let share = |part: usize, of: usize| part as f64 / of.max(1) as f64;
            println!(
                "  {}{threshold:.2}: precision {:.3}, recall {:.3}, false positives {wrong} of {}",
                if (threshold - channel.threshold()).abs() < 1e-9 { "*" } else { " " },
                share(found, found + wrong),
                share(found, count.attacks.len()),
                count.benign.len()
            );
        }
    }
    for ((label, reason), count) in &reasons {
        println!("  {label} {reason}: {count}");
    }
    Ok(())
}
