//! Connections: what is sent arrives in order or not at all, late, and the two ends learn of an end
//! at different times.
//!
//! Frames travel as the JSON text that the WebSocket would carry. Beyond what TCP does, an unruly
//! network repeats frames and lets orders change places.

use std::{collections::VecDeque, time::Duration};

use estoppel_killswitch::{
    enforcer,
    frame::{ToEnforcer, ToServer},
    server::{self, ConnectionId, Identity},
};
use estoppel_model::Actor;
use rand::RngExt as _;
use serde::Serialize;

use super::{Event, World};
use crate::{coverage::Fault, scenario};

/// How long an enforcer may be silent before the server takes it for gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long an enforcer waits for a connection to be made.
const CONNECT_MAX: Duration = Duration::from_secs(4);

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) node: usize,
    pub(super) server: usize,
    pub(super) at_node: bool,
    pub(super) at_server: bool,
    up: Lane,
    down: Lane,
    heard_at: Duration,
}

/// One direction.
#[derive(Debug, Default)]
struct Lane {
    frames: VecDeque<Frame>,
    /// When the last frame is due: the next is not before it.
    last_due: Duration,
}

#[derive(Debug, Clone)]
struct Frame {
    due: Duration,
    text: Text,
}

#[derive(Debug, Clone)]
enum Text {
    Json {
        json: String,
        kind: Kind,
    },
    /// The other end has closed, after what it sent before.
    End,
}

/// What an unruly network may do to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Comes twice, and changes places with its like.
    Orders,
    /// Comes twice.
    Repeatable,
    Other,
}

impl Text {
    const fn is_orders(&self) -> bool {
        matches!(self, Self::Json { kind: Kind::Orders, .. })
    }
}

impl World {
    pub(super) fn dial(&mut self, node: usize) {
        if self.nodes[node].connection.is_some() {
            return;
        }
        let server = self.nodes[node].next_server % self.servers.len();
        self.nodes[node].next_server += 1;
        let (up, down) = self.cut_off.get(&(node, server)).copied().unwrap_or_default();
        let cut_off = up > self.time || down > self.time;
        let deaf = self.servers[server].machine.is_asleep(self.time);
        if cut_off {
            self.coverage.happened(Fault::Partition);
        }
        if cut_off || deaf || self.servers[server].switch.is_none() {
            let life = self.nodes[node].life;
            let gives_up = if cut_off || deaf { CONNECT_MAX } else { Duration::ZERO };
            let pause = Duration::from_millis(self.random.random_range(25..2_000));
            self.at(self.time + gives_up + pause, Event::Dial { node, life });
            // That it did not come about, as the link says it.
            return self.at_node(node, enforcer::Input::Disconnected);
        }
        if self.nodes[node].last_server.replace(server).is_some_and(|last| last != server) {
            self.coverage.happened(Fault::FailOver);
        }
        let number = self.number();
        self.tell(|| format!("enforcer {node} connects to server {server} ({number})"));
        let connection = Connection {
            node,
            server,
            at_node: true,
            at_server: true,
            up: Lane::default(),
            down: Lane::default(),
            heard_at: self.time,
        };
        self.connections.insert(number, connection);
        self.nodes[node].connection = Some(number);
        let identity = Identity {
            actor: Actor::new(&format!("token-{node}")).expect("a name"),
            tenant: scenario::tenant_of(node),
            scopes: None,
        };
        let (connection, identity) = (ConnectionId(number), Box::new(identity));
        self.at_server(server, server::Input::Connected { connection, identity });
        self.at_node(node, enforcer::Input::Connected);
    }

    pub(super) fn send_up(&mut self, number: u64, frame: &ToServer) {
        let kind = match frame {
            ToServer::Orders { .. } => Kind::Orders,
            ToServer::Ping { .. } | ToServer::Confirm(_) => Kind::Repeatable,
            _ => Kind::Other,
        };
        self.send(number, true, json(frame, kind));
    }

    pub(super) fn send_down(&mut self, number: u64, frame: &ToEnforcer) {
        let kind = match frame {
            ToEnforcer::Orders { .. } => Kind::Orders,
            ToEnforcer::Pong { .. } | ToEnforcer::InSync => Kind::Repeatable,
            _ => Kind::Other,
        };
        self.send(number, false, json(frame, kind));
    }

    fn send(&mut self, number: u64, up: bool, text: Text) {
        let Some(connection) = self.connections.get(&number) else { return };
        let node = &self.nodes[connection.node];
        let slow = if self.time < node.slow_until { node.slow_by } else { Duration::ZERO };
        let unruly = self.time < node.unruly_until;
        let takes = Duration::from_secs_f64(
            self.random.random_range(0.000_2..0.005)
                + slow.as_secs_f64() * self.random.random_range(0.0..1.0),
        );
        if takes > Duration::from_secs(1) {
            self.coverage.happened(Fault::Delay);
        }
        let (twice, swapped) = (
            unruly && matches!(text, Text::Json { kind, .. } if kind != Kind::Other),
            unruly && text.is_orders() && self.random.random_bool(0.5),
        );
        let twice = twice && self.random.random_bool(0.3);
        let time = self.time;
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let lane = if up { &mut connection.up } else { &mut connection.down };
        lane.last_due = lane.last_due.max(time + takes);
        let due = lane.last_due;
        let before = lane.frames.back_mut().filter(|before| before.text.is_orders());
        let text = match before.filter(|_| swapped) {
            Some(before) => {
                self.coverage.happened(Fault::Reordering);
                std::mem::replace(&mut before.text, text)
            }
            None => text,
        };
        if twice {
            self.coverage.happened(Fault::Duplicate);
            lane.frames.push_back(Frame { due, text: text.clone() });
        }
        lane.frames.push_back(Frame { due, text });
        let event =
            if up { Event::Up { connection: number } } else { Event::Down { connection: number } };
        self.at(due, event);
    }

    /// The frame that is due now; `None` if there is none, or nothing passes.
    fn due(&mut self, number: u64, up: bool) -> Option<Text> {
        let connection = self.connections.get_mut(&number)?;
        let cut_off = self.cut_off.get(&(connection.node, connection.server)).copied();
        let (cut_up, cut_down) = cut_off.unwrap_or_default();
        let lane = if up { &mut connection.up } else { &mut connection.down };
        let due = lane.frames.front()?.due;
        let passes = if up { cut_up } else { cut_down };
        if due > self.time {
            return None;
        }
        if passes > self.time {
            self.coverage.happened(Fault::Partition);
            // TCP sends again when it heals.
            let event = if up {
                Event::Up { connection: number }
            } else {
                Event::Down { connection: number }
            };
            self.at(passes + Duration::from_millis(200), event);
            return None;
        }
        lane.frames.pop_front().map(|frame| frame.text)
    }

    pub(super) fn deliver_up(&mut self, number: u64) {
        while self.failure.is_none()
            && self.connections.get(&number).is_some_and(|connection| connection.at_server)
            && let Some(text) = self.due(number, true)
        {
            let Some(connection) = self.connections.get_mut(&number) else { return };
            connection.heard_at = self.time;
            let server = connection.server;
            match text {
                Text::Json { json, .. } => {
                    let frame = serde_json::from_str(&json).expect("it was written here");
                    let connection = ConnectionId(number);
                    self.at_server(server, server::Input::Frame { connection, frame });
                }
                Text::End => self.close_at_server(number),
            }
        }
    }

    pub(super) fn deliver_down(&mut self, number: u64) {
        while self.failure.is_none()
            && self.connections.get(&number).is_some_and(|connection| connection.at_node)
            && let Some(text) = self.due(number, false)
        {
            let Some(connection) = self.connections.get(&number) else { return };
            let node = connection.node;
            match text {
                Text::Json { json, .. } => {
                    let frame = serde_json::from_str(&json).expect("it was written here");
                    self.at_node(node, enforcer::Input::Frame(frame));
                }
                Text::End => self.close_at_node(number),
            }
        }
    }

    /// The enforcer's end closes; what it has sent still arrives, and then its end.
    pub(super) fn close_at_node(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number).filter(|one| one.at_node) else {
            return;
        };
        connection.at_node = false;
        if !connection.down.frames.is_empty() || !connection.up.frames.is_empty() {
            self.coverage.happened(Fault::Cut);
        }
        let (node, open) = (connection.node, connection.at_server);
        connection.down.frames.clear();
        self.nodes[node].connection = None;
        if open {
            self.send(number, true, Text::End);
        }
        self.forget(number);
        self.at_node(node, enforcer::Input::Disconnected);
        let life = self.nodes[node].life;
        self.soon(25.0, 1_000.0, Event::Dial { node, life });
    }

    /// The server's end closes; what it has sent still arrives, and then its end.
    pub(super) fn close_at_server(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number).filter(|one| one.at_server) else {
            return;
        };
        connection.at_server = false;
        connection.up.frames.clear();
        let (server, open) = (connection.server, connection.at_node);
        if open {
            self.send(number, false, Text::End);
        }
        self.forget(number);
        let connection = ConnectionId(number);
        self.at_server(server, server::Input::Disconnected { connection });
    }

    fn forget(&mut self, number: u64) {
        if self.connections.get(&number).is_some_and(|one| !one.at_node && !one.at_server) {
            self.connections.remove(&number);
        }
    }

    /// A process has ended. Its machine closes its connections, unless the power is gone: then the
    /// other end hears nothing.
    pub(super) fn hang_up(&mut self, is_own: impl Fn(&Connection) -> bool, up: bool, power: bool) {
        let own: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, one)| is_own(one))
            .map(|(number, _)| *number)
            .collect();
        for number in own {
            let Some(connection) = self.connections.get_mut(&number) else { continue };
            let (gone, other) = if up {
                (&mut connection.at_node, connection.at_server)
            } else {
                (&mut connection.at_server, connection.at_node)
            };
            if !std::mem::replace(gone, false) {
                continue;
            }
            let lanes = (&mut connection.up, &mut connection.down);
            let (sent, coming) = if up { lanes } else { (lanes.1, lanes.0) };
            coming.frames.clear();
            if power {
                sent.frames.clear();
            } else if other {
                self.send(number, up, Text::End);
            }
            self.forget(number);
        }
    }

    /// Connections on which a server has heard nothing for too long.
    pub(super) fn silent_at(&self, server: usize) -> Vec<u64> {
        let is_silent = |one: &Connection| {
            one.server == server && one.at_server && self.time - one.heard_at > SILENCE_MAX
        };
        self.connections
            .iter()
            .filter(|(_, one)| is_silent(one))
            .map(|(number, _)| *number)
            .collect()
    }
}

fn json(frame: &impl Serialize, kind: Kind) -> Text {
    Text::Json { json: serde_json::to_string(frame).expect("frames are plain data"), kind }
}
