//! What stands around the server: a host with a session's processes, and a pager.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::{Arc, Mutex},
};

use estoppel_link::{
    Link, LinkConfig, LinkEvent,
    frame::{ActionResult, EnforcerKind, Outcome, Settlement, Verb},
};
use estoppel_model::{EntityId, Secret, Subject, SystemClock};
use serde_json::Value;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::play::SESSION;

/// The processes of a session on a host: killed once, and then there are none.
#[derive(Debug, Default)]
pub(crate) struct World {
    dead: bool,
    pub(crate) kills: usize,
    pub(crate) frozen: bool,
    pub(crate) captures: usize,
    /// Actions by id: the same one again is answered and not done again.
    answered: BTreeMap<uuid::Uuid, (ActionResult, String)>,
}

impl World {
    fn act(&mut self, id: uuid::Uuid, verb: Verb) -> (ActionResult, String) {
        if let Some(answer) = self.answered.get(&id) {
            return answer.clone();
        }
        let answer = match verb {
            _ if self.dead => (ActionResult::NoSuchSubject, "no processes".to_owned()),
            Verb::Freeze => {
                self.frozen = true;
                (ActionResult::Done, "3 processes frozen".to_owned())
            }
            Verb::Capture => {
                self.captures += 1;
                (ActionResult::Done, "captured".to_owned())
            }
            Verb::Kill => {
                self.kills += 1;
                self.dead = true;
                (ActionResult::Done, "3 processes killed".to_owned())
            }
            Verb::Thaw | Verb::Observe => (ActionResult::Done, "3 processes".to_owned()),
        };
        if verb != Verb::Observe {
            self.answered.insert(id, answer.clone());
        }
        answer
    }
}

/// A host as the server sees one, over the real link.
pub(crate) fn host(
    address: &str,
    token: String,
    world: Arc<Mutex<World>>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let servers = vec![format!("http://{address}").parse().unwrap()];
    let config = LinkConfig {
        subjects: vec![Subject::session(EntityId::new(SESSION).unwrap())],
        ..LinkConfig::new(servers, Secret::new(token), EnforcerKind::Host, "test host")
    };
    let (link, mut events) =
        Link::start(config, Arc::new(SystemClock), tasks, stop.clone()).unwrap();
    tasks.spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                LinkEvent::Ordered(order) => link.settled(order.id, Settlement::default()),
                LinkEvent::Action(action) => {
                    let (result, observed) = world.lock().unwrap().act(action.id, action.verb);
                    link.outcome(Outcome {
                        action: action.id,
                        result,
                        observed,
                        detail: Value::Null,
                    });
                }
                _ => {}
            }
        }
    });
}

/// A pager that remembers the keys of the pages that came.
pub(crate) fn pager() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/page", listener.local_addr().unwrap());
    let keys = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&keys);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_err() {
                continue;
            }
            // A server that is killed while it pages leaves half a request behind.
            let Ok(page) = serde_json::from_slice::<Value>(&body) else { continue };
            seen.lock().unwrap().push(page["id"].as_str().unwrap().to_owned());
            let mut stream = stream;
            let _ = stream.write_all(
                b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
    });
    (url, keys)
}
