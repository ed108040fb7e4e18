//! What happens, told to whoever listens.

use prost_types::Any;

use crate::namespace::Namespace;

/// Passes events on. A clone is another handle on the same exchange.
#[derive(Clone, Debug, Default)]
pub struct Exchange {}

impl Exchange {
    /// Tells the subscribers that `event` has happened in `namespace`.
    pub fn publish(&self, namespace: &Namespace, topic: &str, event: Any) {
        tracing::debug!(%namespace, topic, kind = event.type_url, "event");
    }
}
