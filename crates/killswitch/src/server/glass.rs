//! What enforcers tell of their use of break-glass files.

use super::{ConnectionId, Effect, Switch};
use crate::break_glass::GlassUse;

/// Most such words of one connection: a connection that lies must not fill the ledger.
const WORDS_MAX: usize = 256;

impl Switch {
    /// Takes an enforcer's word for what it has used. The file proves itself, the use does not.
    pub(super) fn glass_used(
        &mut self,
        id: ConnectionId,
        usage: Box<GlassUse>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(enforcer) = connection.enforcer() else { return };
        connection.glass_words += 1;
        if connection.glass_words > WORDS_MAX {
            return super::close(id, "it tells of break-glass too often", effects);
        }
        match usage.file.open(self.signer.key(), &*self.signer) {
            Ok(glass) => {
                let glass = Box::new(glass);
                effects.push(Effect::BreakGlassUsed { enforcer, glass, usage });
            }
            Err(error) => {
                let reason = format!("it went on by a break-glass file that is not ours: {error}");
                effects.push(Effect::Rejected { connection: id, reason });
            }
        }
    }
}
