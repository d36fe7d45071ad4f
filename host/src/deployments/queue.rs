//! The queue of rebuilds: a fixed number run at once, the others wait in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// The queue. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Queue {
    inner: Arc<Line>,
}

#[derive(Debug)]
struct Line {
    at_once: usize,
    next: AtomicU64,
    /// Tickets in the order in which they came: running ones first, then waiting ones.
    order: watch::Sender<Vec<u64>>,
}

/// A place in the queue; dropping it leaves the queue.
#[derive(Debug)]
pub struct Ticket {
    number: u64,
    inner: Arc<Line>,
}

impl Queue {
    /// A queue with this many running at once.
    pub fn new(at_once: usize) -> Self {
        let order = watch::Sender::new(Vec::new());
        Self {
            inner: Arc::new(Line {
                // With 0 nothing would ever run.
                at_once: at_once.max(1),
                next: AtomicU64::new(0),
                order,
            }),
        }
    }

    /// How many run at once.
    pub fn at_once(&self) -> usize {
        self.inner.at_once
    }

    /// Takes the last place.
    pub fn enter(&self) -> Ticket {
        // Only unique numbers are needed; the order is that of the list.
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        self.inner.order.send_modify(|order| order.push(number));
        Ticket {
            number,
            inner: Arc::clone(&self.inner),
        }
    }
}

impl Ticket {
    /// Waits for the turn, and reports each new place: how many must end first. Cancel-safe: the
    /// ticket keeps the place.
    pub async fn turn(&self, mut report: impl FnMut(u64)) {
        let mut order = self.inner.order.subscribe();
        loop {
            let place = self.place(&order.borrow_and_update());
            report(place);
            if place == 0 || order.changed().await.is_err() {
                return;
            }
        }
    }

    fn place(&self, order: &[u64]) -> u64 {
        let index = order
            .iter()
            .position(|number| *number == self.number)
            .unwrap_or(0);
        (index + 1).saturating_sub(self.inner.at_once) as u64
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.inner
            .order
            .send_modify(|order| order.retain(|number| *number != self.number));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn has_turn(ticket: &Ticket) -> bool {
        tokio::time::timeout(Duration::from_millis(20), ticket.turn(|_| ()))
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn only_this_many_run_and_the_others_wait_in_order() {
        let queue = Queue::new(2);
        let tickets: Vec<_> = (0..4).map(|_| queue.enter()).collect();
        let [first, second, third, fourth] = <[Ticket; 4]>::try_from(tickets).expect("four");
        assert!(has_turn(&first).await && has_turn(&second).await);
        assert!(!has_turn(&third).await && !has_turn(&fourth).await);
        let mut places = Vec::new();
        let waiting = fourth.turn(|place| places.push(place));
        let release = async {
            drop(second);
            drop(third);
        };
        tokio::join!(waiting, release);
        assert_eq!(places.first(), Some(&2));
        assert_eq!(places.last(), Some(&0));
    }
}
