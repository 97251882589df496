//! Between a fleet and its server: a listener that takes so many connections a second, enforcers that
//! pause before they try again, and frames that take their time and overtake none.

use std::{sync::Arc, time::Duration};

use estoppel_killswitch::{
    enforcer,
    frame::ToServer,
    server::{ConnectionId, Input},
};
use rand::RngExt as _;

use super::{
    Work, member,
    run::{Event, Fleet},
};

/// Connections that a listener takes each second, and how many may wait to be taken.
pub(super) const ACCEPTS_PER_SECOND: u32 = 10_000;
const WAITING_MAX: u32 = 4_096;
/// An enforcer's pauses between attempts, as the link's.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

impl Fleet {
    pub(super) fn dial(&mut self, member: usize) {
        let pause = Duration::from_secs(1) / ACCEPTS_PER_SECOND;
        let waiting = self.accepts_at.saturating_sub(self.time);
        if self.switch.is_some() && waiting < pause * WAITING_MAX {
            self.accepts_at = self.accepts_at.max(self.time) + pause;
            return self.at(self.accepts_at, Event::Accepted { member });
        }
        self.restart.turned_away += u64::from(self.switch.is_some());
        self.dial_again(member);
    }

    pub(super) fn dial_again(&mut self, member: usize) {
        let failures = &mut self.members[member].failures;
        let longest = PAUSE_MIN.saturating_mul(1 << (*failures).min(16)).min(PAUSE_MAX);
        *failures += 1;
        let pause = self.random.random_range(longest / 2..=longest);
        self.at(self.time + pause, Event::Dial { member });
    }

    pub(super) fn accepted(&mut self, member: usize) {
        if self.switch.is_none() {
            return self.dial_again(member);
        }
        self.next += 1;
        let number = self.next;
        self.connections.insert(number, member);
        let this = &mut self.members[member];
        (this.connection, this.up, this.down) = (Some(number), self.time, self.time);
        let (connection, identity) = (ConnectionId(number), Box::new(member::identity(member)));
        self.at_server(Work::Connection, Input::Connected { connection, identity });
        self.at_member(member, enforcer::Input::Connected);
    }

    /// A connection is gone at the enforcer's end.
    pub(super) fn hung_up(&mut self, member: usize) {
        self.members[member].connection = None;
        self.members[member].failures = 0;
        self.at_member(member, enforcer::Input::Disconnected);
        self.dial_again(member);
    }

    pub(super) fn send_down(&mut self, connection: u64, json: Arc<str>) {
        let Some(member) = self.connections.get(&connection).copied() else { return };
        let due = self.takes();
        let due = due.max(self.members[member].down);
        self.members[member].down = due;
        self.at(due, Event::Down { connection, member, json });
    }

    /// When a frame that is sent now arrives.
    pub(super) fn takes(&mut self) -> Duration {
        self.time + Duration::from_micros(self.random.random_range(200..5_000))
    }

    pub(super) fn send_up(&mut self, member: usize, frame: &ToServer) {
        let Some(connection) = self.members[member].connection else { return };
        let json = serde_json::to_string(frame).expect("frames are plain data");
        let due = self.takes();
        let due = due.max(self.members[member].up);
        self.members[member].up = due;
        self.at(due, Event::Up { connection, member, json });
    }
}
