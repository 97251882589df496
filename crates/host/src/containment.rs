//! What really holds the agent, in words.
//!
//! Everything here was seen after the command had started, in the host's `/proc`; what was asked
//! for and did not come about is not claimed.

use std::{fmt, io, path::PathBuf};

use crate::Process;

/// How the agent can be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freezer {
    /// By the freezer of an own cgroup: all of it, and nothing gets out.
    Cgroup,
    /// By a signal to each of the processes.
    Signals,
}

/// What the agent can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Its own network namespace, in which one address answers: the gateway.
    OwnNamespace,
    /// The host's network; it is asked to use the gateway.
    ProxyVariables,
}

/// The containment that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Containment {
    /// Whether the agent could be looked at: one that ended at once could not, and nothing else
    /// here means anything then.
    pub observed: bool,
    /// The agent's uid.
    pub uid: u32,
    /// Whether that is another than the supervisor's, and not root's.
    pub other_uid: bool,
    /// Whether it can gain rights by running set-uid programs.
    pub no_new_privs: bool,
    /// How it can be stopped.
    pub freezer: Freezer,
    /// What it can reach.
    pub network: Network,
    /// Whether the kernel cuts it off the network at a halt, and when its supervisor is gone.
    pub cutoff: bool,
    /// Which paths are hidden from it.
    pub hidden: Vec<PathBuf>,
    /// Whether it can signal and trace its own descendants alone, by Landlock: not seen from outside
    /// but the shim's word.
    pub scoped: bool,
    /// What was asked for and does not hold, in words.
    pub gaps: Vec<String>,
}

/// What only those know who set the confinement up.
#[derive(Debug)]
pub(crate) struct Arranged {
    pub(crate) cgroup: bool,
    pub(crate) cutoff: bool,
    pub(crate) network: bool,
    pub(crate) hidden: Vec<PathBuf>,
    pub(crate) scoped: bool,
    pub(crate) gaps: Vec<String>,
}

impl Containment {
    /// Looks at the agent's first process and takes only what is seen.
    pub(crate) fn observe(agent: &Process, arranged: Arranged) -> io::Result<Self> {
        let own = Process::open(std::process::id())?;
        let status = String::from_utf8_lossy(&agent.small_file("status")?).into_owned();
        let mut gaps = arranged.gaps;
        // What cannot be told apart from root is taken for root.
        let uid = field(&status, "Uid").and_then(same).unwrap_or(0);
        let own_uid = rustix::process::geteuid().as_raw();
        let no_new_privs = field(&status, "NoNewPrivs").is_some_and(|value| value.trim() == "1");
        let apart = |namespace: &str| -> io::Result<bool> {
            Ok(agent.link(namespace)? != own.link(namespace)?)
        };
        let network = if arranged.network && apart("ns/net")? {
            Network::OwnNamespace
        } else {
            Network::ProxyVariables
        };
        let in_cgroup =
            arranged.cgroup && agent.small_file("cgroup")? != own.small_file("cgroup")?;
        let freezer = if in_cgroup { Freezer::Cgroup } else { Freezer::Signals };
        let cutoff = in_cgroup && arranged.cutoff;
        let hidden = if arranged.hidden.is_empty() || apart("ns/mnt")? {
            arranged.hidden
        } else {
            gaps.push("nothing is hidden: the agent is in the host's mount namespace".to_owned());
            Vec::new()
        };
        let other_uid = uid != own_uid && uid != 0;
        let scoped = arranged.scoped;
        Ok(Self {
            observed: true,
            uid,
            other_uid,
            no_new_privs,
            freezer,
            network,
            cutoff,
            hidden,
            scoped,
            gaps,
        })
    }

    /// Of an agent that had ended before it could be looked at.
    pub(crate) const fn ended() -> Self {
        Self {
            observed: false,
            uid: 0,
            other_uid: false,
            no_new_privs: false,
            freezer: Freezer::Signals,
            network: Network::ProxyVariables,
            cutoff: false,
            hidden: Vec::new(),
            scoped: false,
            gaps: Vec::new(),
        }
    }
}

/// A field of `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

/// The one uid that real, effective, saved and file system uid are; `None` if they differ.
fn same(uids: &str) -> Option<u32> {
    let mut uids = uids.split_ascii_whitespace().map(str::parse::<u32>);
    let first = uids.next()?.ok()?;
    uids.all(|uid| uid == Ok(first)).then_some(first)
}

impl fmt::Display for Containment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.observed {
            return f.write_str("agent ended before its containment could be seen");
        }
        match (self.other_uid, self.uid) {
            (true, uid) => write!(f, "agent runs as uid {uid}")?,
            (false, 0) => f.write_str("agent runs as root (which can undo all of this)")?,
            (false, uid) => write!(f, "agent runs as uid {uid} (the supervisor's own)")?,
        }
        match (self.freezer, self.network) {
            (Freezer::Cgroup, Network::OwnNamespace) => f.write_str(
                " in its own cgroup (freezable) and network namespace (only the gateway is reachable)",
            )?,
            (Freezer::Cgroup, Network::ProxyVariables) => {
                f.write_str(" in its own cgroup (freezable)")?;
            }
            (Freezer::Signals, Network::OwnNamespace) => f.write_str(
                " in its own network namespace (only the gateway is reachable)",
            )?,
            (Freezer::Signals, Network::ProxyVariables) => {}
        }
        if self.freezer == Freezer::Signals {
            f.write_str("; without a cgroup: its processes are stopped one by one, by signals")?;
        }
        if self.network == Network::ProxyVariables {
            f.write_str("; its network is not contained: it is only asked to use the gateway")?;
        }
        if self.cutoff {
            f.write_str("; the kernel cuts its network at a halt")?;
        }
        if !self.no_new_privs {
            f.write_str("; it can gain rights by set-uid programs")?;
        }
        if !self.scoped {
            f.write_str("; it can signal and trace other processes of its uid")?;
        }
        for gap in &self.gaps {
            write!(f, "; {gap}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_claims_what_holds_and_no_more() {
        let full = Containment {
            observed: true,
            uid: 65534,
            other_uid: true,
            no_new_privs: true,
            freezer: Freezer::Cgroup,
            network: Network::OwnNamespace,
            cutoff: true,
            hidden: vec![],
            scoped: true,
            gaps: vec![],
        };
        assert_eq!(
            full.to_string(),
            "agent runs as uid 65534 in its own cgroup (freezable) and network namespace \
             (only the gateway is reachable); the kernel cuts its network at a halt"
        );
        let check = |less: Containment, without: &[&str], with: &str| {
            let text = less.to_string();
            assert!(text.contains(with), "{text}");
            assert!(without.iter().all(|claim| !text.contains(claim)), "{text}");
        };
        let network = Network::ProxyVariables;
        check(Containment { network, ..full.clone() }, &["only the gateway is"], "not contained");
        let freezer = Freezer::Signals;
        check(Containment { freezer, ..full.clone() }, &["freezable"], "by signals");
        check(Containment { cutoff: false, ..full.clone() }, &["cuts its network"], "freezable");
        check(Containment { uid: 0, other_uid: false, ..full.clone() }, &["uid 0"], "undo all");
        check(Containment { no_new_privs: false, ..full.clone() }, &[], "set-uid");
        check(Containment { scoped: false, ..full.clone() }, &[], "trace other processes");
        check(Containment { gaps: vec!["no x".into()], ..full }, &[], "; no x");
    }

    #[test]
    fn four_uids_that_differ_are_none() {
        assert_eq!(same("\t65534\t65534\t65534\t65534"), Some(65534));
        assert_eq!(same("\t65534\t0\t65534\t65534"), None);
        assert_eq!(same(""), None);
    }
}
