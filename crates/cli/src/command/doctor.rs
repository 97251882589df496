//! `doctor`: what this machine and this installation can do, found by trying.

use std::{path::Path, process::ExitCode};

use estoppel_api::DrillOutcome;
use estoppel_hook::settings;
use estoppel_host::{NetworkMode, Prepared, RunConfig};
use estoppel_model::{Secret, Subject};
use serde::Serialize;

use crate::{
    args::{Connect, DoctorArgs},
    error::{Exit, Result},
    output::Output,
};

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Weaker than it could be; what that means is said.
    Gap,
    /// Must be mended.
    Fault,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    level: Level,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<&'static str>,
}

/// `estoppel doctor`.
pub(crate) fn doctor(args: &DoctorArgs, connect: &Connect, output: &Output) -> Result {
    let mut checks = confinement();
    checks.push(data(&args.data));
    checks.extend(server(connect)?);
    checks.extend(super::hook::checks().into_iter().map(|gap| Check {
        name: "coding agents",
        level: match gap.level {
            settings::Level::Fine => Level::Ok,
            settings::Level::Gap => Level::Gap,
            settings::Level::Fault => Level::Fault,
        },
        found: gap.found,
        mend: gap.mend,
    }));
    let faults = checks.iter().filter(|check| check.level == Level::Fault).count();
    output.answer(&checks, |checks| {
        let lines = checks.iter().map(|check| {
            let word = match check.level {
                Level::Ok => "ok   ",
                Level::Gap => "GAP  ",
                Level::Fault => "FAULT",
            };
            let mend = check.mend.map_or_else(String::new, |mend| format!("\n        {mend}"));
            format!("{word} {}: {}{mend}", check.name, crate::output::inline(&check.found))
        });
        lines.collect::<Vec<_>>().join("\n")
    })?;
    Ok(if faults == 0 { ExitCode::SUCCESS } else { Exit::Unhealthy.into() })
}

/// Makes the confinement of an agent, starts none in it, and says what could be had.
fn confinement() -> Vec<Check> {
    let mut config = RunConfig::new(vec!["true".into()], Subject::default());
    config.network = NetworkMode::NamespaceOr(Secret::new("http://127.0.0.1:1".to_owned()));
    let outlook = match Prepared::new(config) {
        Ok(prepared) => prepared.outlook(),
        Err(error) => {
            let found = error.to_string();
            let mend = Some("`estoppel run` does not work here: run it as root");
            return vec![Check { name: "confinement", level: Level::Fault, found, mend }];
        }
    };
    let root = rustix::process::geteuid().is_root();
    let check = |name, good: bool, found: &str, mend| {
        let (level, mend) = if good { (Level::Ok, None) } else { (Level::Gap, Some(mend)) };
        Check {
            name,
            level,
            found: if good { found.to_owned() } else { "not to be had".to_owned() },
            mend,
        }
    };
    let mut checks = vec![
        check(
            "freezing",
            outlook.cgroup,
            "an agent gets a cgroup v2 of its own",
            "run as root on a host with cgroup v2; without it agents are stopped by signals",
        ),
        check(
            "network",
            outlook.network_namespace,
            "an agent gets a network namespace of its own",
            "run as root; without it an agent can go around its proxy",
        ),
        check(
            "user",
            root,
            "an agent runs as another user",
            "run as root; without it an agent can touch what you can",
        ),
    ];
    checks.extend(outlook.gaps.into_iter().map(|found| Check {
        name: "confinement",
        level: Level::Gap,
        found,
        mend: None,
    }));
    checks
}

/// Whether others can read the keys and tokens.
fn data(folder: &Path) -> Check {
    use std::os::unix::fs::PermissionsExt as _;
    let name = "data folder";
    let shown = folder.display();
    match std::fs::metadata(folder) {
        Err(_) => Check {
            name,
            level: Level::Ok,
            found: format!("{shown} is not here; `estoppel serve` makes one"),
            mend: None,
        },
        Ok(metadata) if metadata.permissions().mode() & 0o077 == 0 => Check {
            name,
            level: Level::Ok,
            found: format!("{shown} is its owner's alone"),
            mend: None,
        },
        Ok(metadata) => Check {
            name,
            level: Level::Fault,
            found: format!(
                "{shown} has mode {:o}: others can reach keys, tokens and evidence",
                metadata.permissions().mode() & 0o777
            ),
            mend: Some("chmod 700 the folder, then mint new tokens"),
        },
    }
}

/// Whether the kill switch was tried, how long it took, and who can reach it (row A1).
fn drilled(status: &estoppel_api::Status) -> Check {
    let who = format!("; may halt: {}", status.on_call.join(", "));
    let check = |level, found: String, mend| Check {
        name: "kill switch",
        level,
        found: format!("{found}{who}"),
        mend,
    };
    match &status.drills.last {
        None => check(
            Level::Gap,
            "was never drilled".to_owned(),
            Some("run `estoppel drill kill-switch`, or set `drill_every` in `[serve]`"),
        ),
        Some(last) if last.outcome != DrillOutcome::Passed => check(
            Level::Fault,
            format!("last drill {}", super::drill::line(last)),
            Some("mend what is named, then `estoppel drill kill-switch`"),
        ),
        Some(last) => {
            let level = if status.drills.overdue { Level::Gap } else { Level::Ok };
            let mend = status.drills.overdue.then_some("a drill is overdue: see the server's log");
            check(level, format!("last drill {}", super::drill::line(last)), mend)
        }
    }
}

/// What a running server says of itself.
fn server(connect: &Connect) -> Result<Vec<Check>> {
    let name = "server";
    let Ok(client) = connect.client() else {
        let found = "no token is given, so no server was asked".to_owned();
        return Ok(vec![Check {
            name,
            level: Level::Gap,
            found,
            mend: Some("set ESTOPPEL_TOKEN to check a server, too"),
        }]);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = match runtime.block_on(client.status()) {
        Ok(status) => status,
        Err(error) => {
            let found = format!("{}: {error}", client.url());
            return Ok(vec![Check {
                name,
                level: Level::Gap,
                found,
                mend: Some("start one with `estoppel serve`"),
            }]);
        }
    };
    let mut checks = vec![Check {
        name,
        level: Level::Ok,
        found: format!("{} runs {}", client.url(), status.version),
        mend: None,
    }];
    for (name, found, good) in [
        ("ledger", status.ledger.clone(), status.ledger == "ok"),
        ("event log", status.event_log.clone(), status.event_log == "ok"),
    ] {
        let level = if good { Level::Ok } else { Level::Fault };
        let mend = (!good).then_some("see the server's log; halts are taken all the same");
        checks.push(Check { name, level, found, mend });
    }
    checks.extend(status.redis.as_ref().map(|redis| {
        let good = redis.connected && redis.problem.is_none();
        Check {
            name: "redis",
            level: if good { Level::Ok } else { Level::Gap },
            found: super::status::redis_line(redis),
            mend: (!good).then_some("docs/redis.md names what its user must be permitted; halts by Estoppel do not need it"),
        }
    }));
    checks.push(drilled(&status));
    checks.extend(status.warnings.iter().map(|warning| Check {
        name: "server",
        level: Level::Gap,
        found: warning.clone(),
        mend: None,
    }));
    checks.extend(status.enforcers.iter().flat_map(|enforcer| {
        enforcer.gaps.iter().map(|gap| Check {
            name: "enforcer",
            level: Level::Gap,
            found: format!("{}: {gap}", enforcer.name),
            mend: None,
        })
    }));
    Ok(checks)
}
