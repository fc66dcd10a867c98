//! A queue of requests with a limit on its size. Beyond the limit the oldest is dropped and
//! counted: the newest tell more about the present, and totals lose nothing by a gap.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    counters::{Counters, Loss},
    payload::Payload,
};

/// The queue of one destination, between the thread that encodes and the one that sends.
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    max_bytes: usize,
    counters: &'static Counters,
}

#[derive(Default)]
struct State {
    payloads: VecDeque<Payload>,
    bytes: usize,
    points: u64,
    closed: bool,
}

impl State {
    fn added(&mut self, payload: &Payload) {
        self.bytes = self.bytes.saturating_add(payload.body.len());
        self.points = self.points.saturating_add(payload.points);
    }

    fn removed(&mut self, payload: &Payload) {
        self.bytes = self.bytes.saturating_sub(payload.body.len());
        self.points = self.points.saturating_sub(payload.points);
    }
}

impl Queue {
    pub(crate) fn new(max_bytes: usize, counters: &'static Counters) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), max_bytes, counters }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the newest request.
    pub(crate) fn push(&self, mut payload: Payload) {
        // Compression reserves the worst case, several times of what the limit counts.
        payload.body.shrink_to_fit();
        let mut state = self.lock();
        state.added(&payload);
        state.payloads.push_back(payload);
        self.settle(state);
    }

    /// Returns the oldest request, which [`Queue::pop`] took and which was not delivered.
    pub(crate) fn put_back(&self, payload: Payload) {
        let mut state = self.lock();
        state.added(&payload);
        state.payloads.push_front(payload);
        self.settle(state);
    }

    /// Drops the oldest requests beyond the limit.
    fn settle(&self, mut state: MutexGuard<'_, State>) {
        while state.bytes > self.max_bytes {
            let Some(oldest) = state.payloads.pop_front() else { break };
            state.removed(&oldest);
            self.counters.count_lost(Loss::QueueFull, oldest.points);
        }
        self.show(&state);
        drop(state);
        self.changed.notify_all();
    }

    fn show(&self, state: &State) {
        self.counters.set_queued(state.points, u64::try_from(state.bytes).unwrap_or(u64::MAX));
    }

    /// Takes the oldest request, and waits for one; `None` once the queue is closed and empty.
    pub(crate) fn pop(&self) -> Option<Payload> {
        let mut state = self.lock();
        loop {
            if let Some(payload) = state.payloads.pop_front() {
                state.removed(&payload);
                self.show(&state);
                return Some(payload);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends [`Queue::pop`] after what is queued, and every [`Queue::wait`].
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits for `time`, or until the queue is closed.
    pub(crate) fn wait(&self, time: Duration) {
        let deadline = Instant::now() + time;
        let mut state = self.lock();
        while !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Drops everything, because the program ends; the number of points.
    pub(crate) fn clear(&self) -> u64 {
        let mut state = self.lock();
        let points = std::mem::take(&mut state.points);
        (state.payloads, state.bytes) = (VecDeque::new(), 0);
        self.counters.count_lost(Loss::Shutdown, points);
        self.show(&state);
        points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(max_bytes: usize) -> Queue {
        Queue::new(max_bytes, Box::leak(Box::<Counters>::default()))
    }

    fn payload(number: u8, bytes: usize) -> Payload {
        Payload { body: vec![number; bytes], points: 10 }
    }

    fn numbers(queue: &Queue) -> Vec<u8> {
        queue.close();
        std::iter::from_fn(|| queue.pop()).map(|payload| payload.body[0]).collect()
    }

    #[test]
    fn nothing_is_lost_up_to_the_limit() {
        let queue = queue(100);
        for number in 0..4 {
            queue.push(payload(number, 25));
        }
        assert_eq!((queue.counters.lost(Loss::QueueFull), queue.counters.queued_points()), (0, 40));
        assert_eq!(numbers(&queue), [0, 1, 2, 3]);
        assert_eq!(queue.counters.queued_points(), 0);
    }

    #[test]
    fn the_oldest_is_dropped_and_counted_beyond_the_limit() {
        let queue = queue(100);
        for number in 0..6 {
            queue.push(payload(number, 25));
        }
        assert_eq!(queue.counters.lost(Loss::QueueFull), 20);
        assert_eq!(numbers(&queue), [2, 3, 4, 5]);
    }

    #[test]
    fn a_failed_request_is_the_oldest_again() {
        let queue = queue(100);
        queue.push(payload(0, 40));
        queue.push(payload(1, 40));
        let failed = queue.pop().unwrap();
        queue.push(payload(2, 20));
        queue.put_back(failed);
        assert_eq!(queue.counters.lost(Loss::QueueFull), 0, "100 bytes");
        queue.push(payload(3, 1));
        assert_eq!(queue.counters.lost(Loss::QueueFull), 10);
        assert_eq!(numbers(&queue), [1, 2, 3]);
    }

    #[test]
    fn a_request_above_the_limit_is_counted_too() {
        let queue = queue(10);
        queue.push(payload(0, 11));
        assert_eq!(queue.counters.lost(Loss::QueueFull), 10);
        assert!(numbers(&queue).is_empty());
    }

    #[test]
    fn what_is_not_counted_is_not_kept() {
        let queue = queue(100);
        let mut body = vec![7];
        body.reserve(1 << 20);
        queue.push(Payload { body, points: 1 });
        let capacity = queue.pop().unwrap().body.capacity();
        assert!(capacity < 100, "{capacity}");
    }

    #[test]
    fn waiting_ends_with_the_queue() {
        let queue = queue(100);
        queue.push(payload(0, 1));
        std::thread::scope(|scope| {
            scope.spawn(|| queue.wait(Duration::from_secs(60)));
            queue.close();
        });
        assert_eq!(queue.clear(), 10);
        assert_eq!(queue.counters.lost(Loss::Shutdown), 10);
        assert!(queue.pop().is_none());
    }
}
