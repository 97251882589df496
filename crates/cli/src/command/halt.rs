//! `halt`, `release`, `kill-task`, `block`, `limit`.

use std::{process::ExitCode, time::Duration};

use estoppel_api::{
    ApproveReleaseRequest, BlockRequest, Client, Durable, HaltAccepted, HaltRequest, LimitRequest,
    LimitSummary, ReleaseAccepted, ReleaseRequest,
};
use estoppel_host::control::{LocalReport, halt_local};
use estoppel_model::{Kind, Limit, OrderId, Scope, SystemClock};

use super::{plan, union};
use crate::{
    args::{BlockArgs, Connect, HaltArgs, KillTaskArgs, LimitArgs, LimitCommand, ReleaseArgs},
    error::{CommandError, Exit, Result},
    output::{Output, inline, table},
    span::Span,
};

/// `estoppel halt`.
pub(crate) async fn halt(args: HaltArgs, connect: &Connect, output: &Output) -> Result {
    let client = connect.client()?;
    let scope = union(args.scope)?;
    if args.plan {
        return plan::plan(&client, scope, output).await;
    }
    let mut request = HaltRequest::new(scope, args.reason.unwrap_or_default());
    request.until = args.until;
    let accepted = send(&client, &request, output).await?;
    let code = if args.wait {
        super::wait::wait(&client, &accepted, Duration::from_secs(args.timeout), output).await?
    } else {
        output.answer(&accepted, said)?;
        ExitCode::SUCCESS
    };
    plan::afterwards(&client, request.scope, output).await;
    Ok(code)
}

/// `estoppel kill-task` (row K10).
pub(crate) async fn kill_task(args: KillTaskArgs, connect: &Connect, output: &Output) -> Result {
    let request = HaltRequest::new(Scope::entity(Kind::Task, args.task_id).into(), args.reason);
    let client = connect.client()?;
    let accepted = send(&client, &request, output).await?;
    output.answer(&accepted, said)?;
    plan::afterwards(&client, request.scope, output).await;
    Ok(ExitCode::SUCCESS)
}

/// Sends a halt; once more, under the same id, when the connection broke.
async fn send(client: &Client, request: &HaltRequest, output: &Output) -> Result<HaltAccepted> {
    let accepted = match client.halt(request).await {
        Err(estoppel_api::ClientError::Unreachable { .. }) => client.halt(request).await?,
        result => result?,
    };
    if accepted.durable == Durable::No {
        output.note("warning: the halt is in force, but the server's disk has not kept it yet");
    }
    Ok(accepted)
}

fn said(accepted: &HaltAccepted) -> String {
    let durable = match accepted.durable {
        Durable::No => "not on disk yet",
        Durable::Node => "kept on the node's disk",
        Durable::Ledger => "in the ledger",
    };
    format!(
        "halted {} for {} enforcers ({durable})\nhalt     {}\nincident {}\nfollow it with `estoppel status --halt {}`",
        accepted.scope, accepted.enforcers, accepted.id, accepted.incident, accepted.id
    )
}

/// `estoppel release`.
pub(crate) async fn release(args: ReleaseArgs, connect: &Connect, output: &Output) -> Result {
    let client = connect.client()?;
    let accepted = match args.approve {
        Some(id) => {
            let request = ApproveReleaseRequest { reason: args.reason };
            client.approve_release(id, &request).await?
        }
        None => {
            let watch_seconds = match (args.no_watch, args.watch) {
                (true, _) => Some(0),
                (false, watch) => watch.map(|span| span.duration().as_secs()),
            };
            let request = ReleaseRequest {
                scope: union(args.scope)?,
                reason: args.reason,
                halts: (!args.halts.is_empty()).then_some(args.halts),
                id: Some(OrderId::new()),
                watch_seconds,
            };
            client.release(&request).await?
        }
    };
    output.answer(&accepted, released)?;
    Ok(if accepted.pending.is_some() { Exit::Pending.into() } else { ExitCode::SUCCESS })
}

fn released(accepted: &ReleaseAccepted) -> String {
    let mut lines = Vec::new();
    if let Some(pending) = &accepted.pending {
        lines.push(format!(
            "NOT RELEASED: a second person must approve it until {}\nrequest {} by {}\nanother lead runs `estoppel release --approve {} --reason WHY`, or the same release",
            pending.expires_at, pending.id, pending.requested_by, pending.id
        ));
    } else {
        lines.push(format!("released {} halts", accepted.halts.len()));
        lines.extend(accepted.halts.iter().map(|id| format!("  {id}")));
    }
    if let Some(watch) = &accepted.watch {
        let until = watch.until.map_or_else(String::new, |at| format!(" until {at}"));
        lines.push(format!("watched closely{until}: {} (order {})", watch.scope, watch.id));
    }
    for halt in &accepted.still_active {
        lines.push(format!("still active: {} {} ({})", halt.id, halt.scope, inline(&halt.reason)));
    }
    lines.join("\n")
}

/// `estoppel block`.
pub(crate) async fn block(args: BlockArgs, connect: &Connect, output: &Output) -> Result {
    let request = BlockRequest {
        scope: union(args.scope)?,
        destination: args.destination,
        reason: args.reason,
        id: Some(OrderId::new()),
        incident: None,
    };
    let accepted = connect.client()?.block(&request).await?;
    output.answer(&accepted, |accepted| {
        format!("blocked {} for {}\norder {}", request.destination, accepted.scope, accepted.id)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn milliseconds(span: Span) -> u64 {
    u64::try_from(span.duration().as_millis()).unwrap_or(u64::MAX)
}

/// The limits in force, for people.
pub(crate) fn limit_table(limits: &[LimitSummary]) -> String {
    let rows: Vec<Vec<String>> = limits
        .iter()
        .map(|limit| {
            vec![
                limit.id.to_string(),
                limit.scope.to_string(),
                limit.limit.to_string(),
                limit.activated_by.to_string(),
                limit.timestamp.to_string(),
                limit.reason.clone(),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "no limits in force".to_owned();
    }
    table(&["limit", "scope", "bounds", "by", "since", "reason"], &rows)
}

/// `estoppel limit`.
pub(crate) async fn limit(args: LimitArgs, connect: &Connect, output: &Output) -> Result {
    if let Some(LimitCommand::List) = args.command {
        let limits = connect.client()?.limits().await?;
        output.answer(&limits, |limits| limit_table(limits))?;
        return Ok(ExitCode::SUCCESS);
    }
    let bounds = args.bounds;
    let request = LimitRequest {
        scope: union(args.scope)?,
        limit: Limit {
            steps_max: bounds.steps,
            wall_clock_ms_max: bounds.wall_clock.map(milliseconds),
            cost_usd_max: bounds.cost,
            tokens_max: bounds.tokens,
            concurrency_max: bounds.concurrency,
            errors_in_a_row_max: bounds.errors,
            identical_calls_max: bounds.identical,
            requests_per_minute: bounds.requests_per_minute,
            read_only: bounds.read_only,
            tenant_validation_strict: bounds.tenant_validation_strict,
        },
        reason: args.reason.unwrap_or_default(),
        id: Some(OrderId::new()),
        incident: None,
    };
    let accepted = connect.client()?.limit(&request).await?;
    output.answer(&accepted, |accepted| {
        format!("limited {} to {}\norder {}", accepted.scope, accepted.limit, accepted.id)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `estoppel halt --local`: through the doors of `estoppel run` on this host, without a server.
pub(crate) fn local(args: HaltArgs, output: &Output) -> Result {
    let (scope, reason) = (union(args.scope)?, args.reason.unwrap_or_default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run_dir = super::run::run_dir();
    let halt = halt_local(&run_dir, scope, &reason, &SystemClock);
    let (order, reports) = runtime.block_on(halt).map_err(|error| {
        CommandError::new(Exit::Failed, error)
            .hint("as the user who started `estoppel run`, usually root")
    })?;
    if reports.is_empty() {
        return Err(CommandError::message(
            Exit::NotFound,
            "nothing runs under `estoppel run` on this host",
        ));
    }
    let document: Vec<_> = reports
        .iter()
        .map(|report| match &report.result {
            Ok(halted) => serde_json::json!({ "order": order, "halted": halted }),
            Err(error) => {
                serde_json::json!({ "order": order, "error": error, "socket": report.socket })
            }
        })
        .collect();
    output.answer(&document, |_| reports.iter().map(local_line).collect::<Vec<_>>().join("\n"))?;
    let reached = |report: &LocalReport| report.result.as_ref().is_ok_and(|halted| halted.reaches);
    let failed = reports.iter().any(|report| match &report.result {
        Ok(halted) => !halted.not_stopped.is_empty(),
        Err(_) => true,
    });
    Ok(match (reports.iter().any(reached), failed) {
        (_, true) => Exit::Failed.into(),
        (true, false) => ExitCode::SUCCESS,
        (false, false) => Exit::NotFound.into(),
    })
}

fn local_line(report: &LocalReport) -> String {
    match &report.result {
        Err(error) => format!("{}: FAILED: {}", report.socket.display(), inline(error)),
        Ok(halted) if !halted.reaches => format!("{}: not reached by this scope", halted.subject),
        Ok(halted) => {
            let kept = if halted.durable {
                "kept on this host's disk"
            } else {
                "NOT on disk: it would not outlast a restart"
            };
            let rest: Vec<String> = halted
                .not_stopped
                .iter()
                .map(|what| format!("; NOT STOPPED: {}", inline(what)))
                .collect();
            format!(
                "{}: {} processes frozen, {kept} ({}){}",
                halted.subject,
                halted.processes_frozen,
                inline(&halted.containment),
                rest.concat()
            )
        }
    }
}
