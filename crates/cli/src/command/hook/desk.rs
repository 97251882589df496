//! What the resident process answers: may this be, by the guard's own check at that moment.
//!
//! A call of a tool is a step of the guard from the moment it is let go until its result comes in: so
//! it has one record with its duration, and a halt that arrives meanwhile names it, in its
//! confirmation, as work that could not be interrupted. An agent that never tells of a result (the
//! person said no, the turn was broken off) ends its steps with its next prompt or with its turn.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use estoppel_guard::{Denied, Guard, StepError, StepSpec};
use estoppel_hook::{
    answer::Refusal,
    input::Call,
    moment::Moment,
    wire::{Answer, Standing},
};
use estoppel_model::{
    AuditEvent, Clock as _, EntityId, Event, IdError, Subject, SystemClock, Untrusted,
};
use serde_json::{json, value::RawValue, value::to_raw_value};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

/// How long a tool is waited for before its step is given up.
const TOOL_MAX: Duration = Duration::from_secs(2 * 60 * 60);
/// Most tools that are waited for at a time: each has a thread.
const TOOLS_MAX: usize = 256;
/// How long a session is a canary.
const CANARY_MAX: Duration = Duration::from_secs(30);
/// Most canaries at a time.
const CANARIES_MAX: usize = 16;

/// Names a call of a tool: its session, and the agent's id for the call.
type ToolUse = (String, String);

/// A tool under way.
struct Tool {
    sub_agent: Option<String>,
    /// Takes what came out; dropped, it ends the step without.
    result: SyncSender<Box<RawValue>>,
}

/// The desk at which hooks ask.
pub(super) struct Desk {
    guard: Guard,
    base: Subject,
    /// Whether a hook that asks before the first lease waits for it.
    waits: bool,
    tasks: TaskTracker,
    tools: Mutex<HashMap<ToolUse, Tool>>,
    canaries: Mutex<HashMap<String, Instant>>,
}

impl Desk {
    pub(super) fn new(guard: Guard, base: Subject, waits: bool, tasks: TaskTracker) -> Self {
        let (tools, canaries) = (Mutex::default(), Mutex::default());
        Self { guard, base, waits, tasks, tools, canaries }
    }

    /// Tools under way.
    pub(super) fn under_way(&self) -> usize {
        self.tools().len()
    }

    /// Refuses a session for a while; only names that no agent uses.
    pub(super) fn canary(&self, session: String) {
        let now = Instant::now();
        let mut canaries = self.canaries.lock().unwrap_or_else(PoisonError::into_inner);
        canaries.retain(|_, until| *until > now);
        if canaries.len() < CANARIES_MAX {
            canaries.insert(session, now + CANARY_MAX);
        }
    }

    /// How the process stands, once it has a lease or the wait is over.
    pub(super) async fn standing(&self, wait: Duration) -> Answer {
        self.ready(wait).await;
        let status = self.guard.status();
        let now = SystemClock.boottime();
        let lease = [status.lease_until, status.goes_on_until];
        Answer::Standing(Standing {
            pid: std::process::id(),
            connected_to: status.connected_to.map(|url| url.to_string()),
            lease: lease.iter().flatten().any(|until| now < *until),
            orders_in_force: status.orders_in_force,
            tools_under_way: self.under_way(),
            problem: status.problem,
        })
    }

    /// May this be?
    pub(super) async fn call(&self, call: Call, wait: Duration) -> Answer {
        if self.is_canary(&call.session) {
            return Answer::Refuse(Refusal {
                whole: true,
                ..Refusal::for_want("this session is a canary, by which the hook is tried")
            });
        }
        let subject = match self.subject(&call) {
            Ok(subject) => subject,
            // No halt could name it.
            Err(error) => return Answer::Refuse(Refusal::for_want(&error.to_string())),
        };
        self.ready(wait).await;
        match call.moment() {
            Moment::BeforeTool => return self.before_tool(call, subject).await,
            Moment::AfterTool => self.after_tool(&call, &subject),
            Moment::Prompt | Moment::TurnEnd | Moment::SubagentEnd => {
                self.end_tools(&call.session, |tool| tool.sub_agent == call.sub_agent);
            }
            Moment::SessionEnd => self.end_tools(&call.session, |_| true),
            Moment::Other => {}
        }
        let refused = self.guard.check(&subject).err();
        if call.moment() != Moment::AfterTool {
            self.record(&call, &subject, refused.is_some());
        }
        refused.map_or(Answer::Go, |denied| Answer::Refuse(words(&denied, self.whole(&subject))))
    }

    /// Who acts: the session, and the sub-agent as a task of its own.
    fn subject(&self, call: &Call) -> std::result::Result<Subject, IdError> {
        let task = call.sub_agent.as_deref().map(EntityId::new).transpose()?;
        let session = Some(EntityId::new(&call.session)?);
        Ok(Subject { session, task, ..self.base.clone() })
    }

    /// Whether the whole session is refused, and not only a sub-agent, a tool or a plugin.
    fn whole(&self, subject: &Subject) -> bool {
        self.guard.check(&Subject { task: None, ..subject.clone() }).is_err()
    }

    /// Ends the guard, with what is still to be sent.
    pub(super) async fn close(&self) {
        self.tools().clear();
        self.guard.clone().close().await;
    }

    fn tools(&self) -> MutexGuard<'_, HashMap<ToolUse, Tool>> {
        // Each change is one call.
        self.tools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_canary(&self, session: &str) -> bool {
        let canaries = self.canaries.lock().unwrap_or_else(PoisonError::into_inner);
        canaries.get(session).is_some_and(|until| Instant::now() < *until)
    }

    /// Waits for the first lease of this process.
    async fn ready(&self, wait: Duration) {
        if self.waits && self.guard.status().lease_until.is_none() {
            // What has not come by then is refused by the check.
            let _ = timeout(wait, self.guard.ready()).await;
        }
    }

    async fn before_tool(&self, call: Call, subject: Subject) -> Answer {
        let spec = match spec(&call) {
            Ok(spec) => spec,
            Err(error) => return Answer::Refuse(Refusal::for_want(&error)),
        };
        let whole = self.whole(&subject);
        let (began, mut begun) = oneshot::channel();
        let (result, came_out) = sync_channel::<Box<RawValue>>(1);
        let guard = self.guard.clone();
        let step = async move {
            let work = move |handle: estoppel_guard::StepHandle| {
                let _ = began.send(());
                match came_out.recv_timeout(TOOL_MAX) {
                    Ok(result) => handle.record_result(&result),
                    Err(_) => handle.record_result(&json!({ "not_told": true })),
                }
            };
            guard.step_blocking(&subject, spec, work).await
        };
        let mut step = Box::pin(step);
        let ended = tokio::select! {
            biased;
            // Only a word that came: the work may be dropped unbegun.
            Ok(()) = &mut begun => None,
            ended = &mut step => Some(ended),
        };
        match ended {
            None => {
                self.tasks.spawn(async move {
                    let _ = step.await;
                });
                self.keep(call, result);
                Answer::Go
            }
            Some(Err(error)) => Answer::Refuse(refused(&error, whole)),
            // It cannot end well before it began.
            Some(Ok(())) => Answer::Refuse(Refusal::for_want("the step ended at once")),
        }
    }

    /// Waits for the tool's result. Where too many are waited for, one of them is given up.
    fn keep(&self, call: Call, result: SyncSender<Box<RawValue>>) {
        let Some(tool_use) = call.tool_use else { return };
        let mut tools = self.tools();
        if tools.len() >= TOOLS_MAX
            && let Some(some) = tools.keys().next().cloned()
        {
            tools.remove(&some);
        }
        tools.insert((call.session, tool_use), Tool { sub_agent: call.sub_agent, result });
    }

    fn after_tool(&self, call: &Call, subject: &Subject) {
        let known = call
            .tool_use
            .as_ref()
            .and_then(|id| self.tools().remove(&(call.session.clone(), id.clone())));
        match (known, &call.result) {
            (Some(tool), Some(result)) => {
                // The step's thread has gone when the process ends.
                let _ = tool.result.try_send(result.clone());
            }
            (Some(_), None) => {}
            // Begun before this process was, or by an agent that names no calls.
            (None, _) => self.record(call, subject, false),
        }
    }

    fn end_tools(&self, session: &str, which: impl Fn(&Tool) -> bool) {
        self.tools().retain(|(own, _), tool| own != session || !which(tool));
    }

    fn record(&self, call: &Call, subject: &Subject, refused: bool) {
        let text = |text: &str| Some(Untrusted::new(text.to_owned()));
        let attributes = json!({
            "cwd": call.cwd,
            "permission_mode": call.permission_mode,
            "sub_agent_type": call.sub_agent_type,
        });
        self.guard.send(Event::Audit(Box::new(AuditEvent {
            session_id: subject.session.clone(),
            user_id: subject.user.clone(),
            task_id: subject.task.clone(),
            agent_id: subject.agent.clone(),
            action: text(&format!("hook.{}", call.event)),
            tool: call.tool.as_deref().and_then(text),
            plugin: call.plugin.as_deref().and_then(text),
            params: call.params.clone(),
            result: call.result.clone(),
            decision: text(if refused { "denied" } else { "allowed" }),
            attributes: to_raw_value(&attributes).ok(),
            ..AuditEvent::default()
        })));
    }
}

/// Tools of coding agents that only read files of theirs, by the names that Claude Code gives them. What is
/// fetched from elsewhere is none of them: an address can carry something out.
const READ_ONLY_TOOLS: [&str; 5] = ["Read", "Glob", "Grep", "LS", "NotebookRead"];

/// The step that a call of a tool is.
fn spec(call: &Call) -> std::result::Result<StepSpec, String> {
    let tool = call.tool.as_deref().ok_or("the agent names no tool: `tool_name` is missing")?;
    let mut spec = StepSpec::tool(tool).map_err(|error| error.to_string())?;
    if call.plugin.is_none() && READ_ONLY_TOOLS.contains(&tool) {
        spec = spec.read_only();
    }
    if let Some(plugin) = &call.plugin {
        spec = spec.plugin(plugin, None).map_err(|error| error.to_string())?;
    }
    Ok(match &call.params {
        Some(params) => spec.params(params),
        None => spec,
    })
}

fn refused(error: &StepError, whole: bool) -> Refusal {
    match error.denied() {
        Some(denied) => words(denied, whole),
        None => Refusal::for_want(&error.to_string()),
    }
}

/// Row K4's text, and beside it who, why, since when, which incident and whom to call.
fn words(denied: &Denied, whole: bool) -> Refusal {
    Refusal { text: denied.to_string(), line: format!("{denied:#}"), whole }
}
