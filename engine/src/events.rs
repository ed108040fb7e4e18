//! What happens, told to whoever listens.
//!
//! # Rules
//!
//! - **After the fact.** Whoever publishes has committed what the event says.
//! - **In order.** A subscriber gets events in the order in which they were published. Publishing
//!   never waits, so a source that publishes one event after the other is seen in that order.
//! - **Bounded.** A subscriber that falls behind by [`QUEUE_LEN_MAX`] events or
//!   [`QUEUE_BYTES_MAX`] bytes is cut off: it gets what was queued, and then
//!   [`SubscriptionError::TooSlow`]. It never holds up a publisher or another subscriber, and no
//!   event is left out in silence.
//! - **Not kept.** An event that nobody listens for is gone; state is what clients list afterwards.
//!
//! Source: containerd, `core/events`, `core/events/exchange`.

mod fields;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use prost::Message;
use prost_types::{Any, Timestamp};
use proto::{containerd::types::Envelope, time::known};
use tokio::sync::mpsc;

use crate::{error::Error, filter::Filter, identifier, namespace::Namespace};

use self::fields::EventFields;

/// The most events that wait for one subscriber.
pub const QUEUE_LEN_MAX: usize = 8192;

/// The most bytes of events that wait for one subscriber; subscribers share them.
pub const QUEUE_BYTES_MAX: usize = 16 << 20;

/// Passes events on. A clone is another handle on the same exchange.
#[derive(Clone, Default)]
pub struct Exchange {
    subscribers: Arc<Mutex<Vec<Subscriber>>>,
}

impl Exchange {
    /// Tells the subscribers that `event` has happened in `namespace`, now.
    pub fn publish(&self, namespace: &Namespace, topic: &str, event: Any) {
        self.send(Envelope {
            timestamp: Some(Timestamp::from(SystemTime::now())),
            namespace: namespace.to_string(),
            topic: topic.to_owned(),
            event: Some(event),
        });
    }

    /// Tells the subscribers about an event that another process published.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: the envelope has no namespace, topic or time, or a malformed one.
    pub fn forward(&self, envelope: Envelope) -> Result<(), Error> {
        check(&envelope)?;
        self.send(envelope);
        Ok(())
    }

    /// Listens to what `filter` selects, from now on.
    ///
    /// A filter may ask for `namespace`, `topic`, and `event.<field>` with the fields of the event's
    /// message.
    pub fn subscribe(&self, filter: Filter) -> Subscription {
        let (sender, events) = mpsc::channel(QUEUE_LEN_MAX);
        let queue = Arc::<Queue>::default();
        let subscriber = Subscriber { filter, sender, queue: Arc::clone(&queue) };
        let mut subscribers = self.lock();
        // Those that have left are not kept until something happens.
        subscribers.retain(|subscriber| !subscriber.sender.is_closed());
        subscribers.push(subscriber);
        drop(subscribers);
        Subscription { events, queue }
    }

    fn send(&self, envelope: Envelope) {
        tracing::debug!(
            namespace = envelope.namespace,
            topic = envelope.topic,
            kind = envelope.event.as_ref().map(|event| event.type_url.as_str()),
            "event"
        );
        // The lock is what gives all subscribers the same order.
        let mut subscribers = self.lock();
        if subscribers.is_empty() {
            return;
        }
        let bytes = envelope.encoded_len();
        let envelope = Arc::new(envelope);
        subscribers.retain(|subscriber| subscriber.offer(&envelope, bytes));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Subscriber>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("subscribers", &self.lock().len()).finish()
    }
}

/// How much waits for a subscriber.
#[derive(Debug, Default)]
struct Queue {
    bytes: AtomicUsize,
    overflowed: AtomicBool,
}

#[derive(Debug)]
struct Subscriber {
    filter: Filter,
    sender: mpsc::Sender<Arc<Envelope>>,
    queue: Arc<Queue>,
}

impl Subscriber {
    /// Queues an event if it is selected; `false` when the subscriber has left or is cut off.
    fn offer(&self, envelope: &Arc<Envelope>, bytes: usize) -> bool {
        if self.sender.is_closed() {
            return false;
        }
        if !self.filter.selects_all() && !self.filter.matches(&EventFields(envelope)) {
            return true;
        }
        let waiting = self.queue.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = waiting == 0 || waiting + bytes <= QUEUE_BYTES_MAX;
        if fits && self.sender.try_send(Arc::clone(envelope)).is_ok() {
            return true;
        }
        self.queue.overflowed.store(true, Ordering::Release);
        false
    }
}

/// The events of a subscriber. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    events: mpsc::Receiver<Arc<Envelope>>,
    queue: Arc<Queue>,
}

impl Subscription {
    /// Waits for the next event.
    ///
    /// # Errors
    ///
    /// The end of the subscription. Every later call gives it again.
    pub async fn next(&mut self) -> Result<Arc<Envelope>, SubscriptionError> {
        match self.events.recv().await {
            Some(envelope) => {
                self.queue.bytes.fetch_sub(envelope.encoded_len(), Ordering::Relaxed);
                Ok(envelope)
            }
            None if self.queue.overflowed.load(Ordering::Acquire) => {
                Err(SubscriptionError::TooSlow)
            }
            None => Err(SubscriptionError::Ended),
        }
    }
}

/// Why a subscription ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscriptionError {
    /// More events waited than are kept for one subscriber.
    #[error(
        "subscriber is too slow: more than {QUEUE_LEN_MAX} events or {QUEUE_BYTES_MAX} bytes wait for it"
    )]
    TooSlow,
    /// The exchange is gone.
    #[error("events have ended")]
    Ended,
}

fn check(envelope: &Envelope) -> Result<(), Error> {
    let wrong = |text: String| Err(Error::InvalidArgument(text));
    if let Err(error) = identifier::check(&envelope.namespace) {
        return wrong(format!("event envelope has invalid namespace: {error}"));
    }
    check_topic(&envelope.topic)?;
    if known(envelope.timestamp).is_none() {
        return wrong("timestamp must be set on forwarded event".to_owned());
    }
    Ok(())
}

/// Checks that a topic is a path of identifiers, such as `/tasks/exit`.
///
/// # Errors
///
/// `InvalidArgument`.
pub fn check_topic(topic: &str) -> Result<(), Error> {
    let wrong =
        |text: String| Err(Error::InvalidArgument(format!("envelope topic {topic:?}: {text}")));
    if topic.is_empty() {
        return wrong("must not be empty".to_owned());
    }
    let Some(path) = topic.strip_prefix('/') else {
        return wrong("must start with '/'".to_owned());
    };
    if path.is_empty() {
        return wrong("must have at least one component".to_owned());
    }
    for component in path.split('/') {
        if let Err(error) = identifier::check(component) {
            return wrong(format!("failed validation on component {component:?}: {error}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proto::{any::pack, containerd::events::TaskStart, time::NO_TIME};

    use super::*;

    fn namespace() -> Namespace {
        "default".parse().expect("an identifier")
    }

    fn start(id: &str) -> Any {
        pack(&TaskStart { container_id: id.to_owned(), pid: 7 })
    }

    fn filter(text: &str) -> Filter {
        Filter::parse_all(&[text]).expect("a filter")
    }

    #[tokio::test]
    async fn subscribers_get_what_they_select_in_order() {
        let exchange = Exchange::default();
        let mut all = exchange.subscribe(Filter::default());
        let mut one = exchange.subscribe(filter("topic==\"/tasks/start\",event.container_id==b"));
        for id in ["a", "b", "c", "b"] {
            exchange.publish(&namespace(), "/tasks/start", start(id));
        }
        for id in ["a", "b", "c", "b"] {
            let event = all.next().await.expect("open");
            assert_eq!(event.event, Some(start(id)));
            assert_eq!(event.namespace, "default");
        }
        for _ in 0..2 {
            assert_eq!(one.next().await.expect("open").event, Some(start("b")));
        }
        drop(exchange);
        assert_eq!(one.next().await, Err(SubscriptionError::Ended));
    }

    #[tokio::test]
    async fn slow_subscriber_is_cut_off_alone() {
        let exchange = Exchange::default();
        let mut slow = exchange.subscribe(Filter::default());
        let mut other = exchange.subscribe(Filter::default());
        for i in 0..=QUEUE_LEN_MAX {
            exchange.publish(&namespace(), "/tasks/start", start(&i.to_string()));
            other.next().await.expect("open");
        }
        for i in 0..QUEUE_LEN_MAX {
            let event = slow.next().await.expect("queued");
            assert_eq!(event.event, Some(start(&i.to_string())));
        }
        assert_eq!(slow.next().await, Err(SubscriptionError::TooSlow));
        assert_eq!(exchange.lock().len(), 1);
    }

    #[test]
    fn who_has_left_is_forgotten_before_anything_happens() {
        let exchange = Exchange::default();
        for _ in 0..3 {
            drop(exchange.subscribe(Filter::default()));
        }
        assert_eq!(exchange.lock().len(), 1);
    }

    #[tokio::test]
    async fn bytes_that_wait_are_bounded() {
        let exchange = Exchange::default();
        let mut slow = exchange.subscribe(Filter::default());
        let large = || Any { type_url: "x".to_owned(), value: vec![0; QUEUE_BYTES_MAX / 4 * 3] };
        exchange.publish(&namespace(), "/large", large());
        exchange.publish(&namespace(), "/large", large());
        slow.next().await.expect("the first fits");
        assert_eq!(slow.next().await, Err(SubscriptionError::TooSlow));
    }

    #[test]
    fn forwarded_envelopes_are_checked() {
        let good = Envelope {
            timestamp: Some(Timestamp::default()),
            namespace: "k8s.io".to_owned(),
            topic: "/tasks/exec-added".to_owned(),
            event: None,
        };
        let with = |change: fn(&mut Envelope)| {
            let mut envelope = good.clone();
            change(&mut envelope);
            envelope
        };
        let cases = [
            ("good", good.clone(), true),
            ("no namespace", with(|e| e.namespace.clear()), false),
            ("namespace is a path", with(|e| e.namespace = "../x".to_owned()), false),
            ("no topic", with(|e| e.topic.clear()), false),
            ("topic without slash", with(|e| e.topic = "tasks".to_owned()), false),
            ("topic of a slash", with(|e| e.topic = "/".to_owned()), false),
            ("topic with an empty part", with(|e| e.topic = "/a//b".to_owned()), false),
            ("no time", with(|e| e.timestamp = None), false),
            ("Go's no time", with(|e| e.timestamp = Some(NO_TIME)), false),
        ];
        for (case, envelope, want) in cases {
            assert_eq!(Exchange::default().forward(envelope).is_ok(), want, "{case}");
        }
    }
}
