//! Pictures that wait.

use std::sync::Arc;
use std::time::Instant;

use super::job::Painting;

/// Pictures in the order in which they are begun: by priority, then as they came.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Vec<Arc<Painting>>,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn push(&mut self, painting: Arc<Painting>) {
        let place = self.waiting.partition_point(|other| other.priority >= painting.priority);
        self.waiting.insert(place, painting);
    }

    /// Those in front of a picture of this priority that would come now.
    pub fn before(&self, priority: i32) -> impl Iterator<Item = &Arc<Painting>> {
        self.waiting.iter().take_while(move |other| other.priority >= priority)
    }

    /// How many are in front of a picture that waits.
    pub fn place(&self, id: u64) -> Option<usize> {
        self.waiting.iter().position(|painting| painting.id == id)
    }

    pub fn remove(&mut self, id: u64) -> bool {
        let place = self.place(id);
        place.map(|place| self.waiting.remove(place)).is_some()
    }

    /// Takes the first one that there is room for: a size that is full holds up no other.
    pub fn take(&mut self, has_room: impl Fn(&Painting) -> bool) -> Option<Arc<Painting>> {
        let place = self.waiting.iter().position(|painting| has_room(painting))?;
        Some(self.waiting.remove(place))
    }

    /// Takes those out whose deadline has passed.
    pub fn take_late(&mut self, now: Instant) -> Vec<Arc<Painting>> {
        let is_late = |painting: &Arc<Painting>| painting.deadline.is_some_and(|deadline| deadline < now);
        let (late, waiting) = self.waiting.drain(..).partition(is_late);
        self.waiting = waiting;
        late
    }

    pub fn drain(&mut self) -> Vec<Arc<Painting>> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::job::Job;
    use crate::pipeline::{KnownShapes, Request};
    use crate::sampler::Sampler;

    fn painting(id: u64, priority: i32, side: usize, deadline: Option<Instant>) -> Arc<Painting> {
        let request = Request::defaults(&KnownShapes::Sd15.describe(), Sampler::Ddim);
        let job = Job { request, priority, deadline, previews: None, on_event: Box::new(|_| {}) };
        Arc::new(Painting::new(id, job, [side; 2], vec![20], 1.0))
    }

    #[test]
    fn priority_comes_first_then_the_order_of_coming() {
        let mut queue = Queue::default();
        for (id, priority) in [(1, 0), (2, 5), (3, 0), (4, 5), (5, -1)] {
            queue.push(painting(id, priority, 512, None));
        }
        assert_eq!((queue.place(2), queue.place(5), queue.before(0).count()), (Some(0), Some(4), 4));
        assert!(queue.remove(4) && !queue.remove(4));
        let order: Vec<u64> = std::iter::from_fn(|| queue.take(|_| true)).map(|p| p.id).collect();
        assert_eq!(order, [2, 1, 3, 5]);
    }

    #[test]
    fn a_full_size_holds_up_no_other() {
        let mut queue = Queue::default();
        queue.push(painting(1, 0, 1024, None));
        queue.push(painting(2, 0, 512, None));
        assert_eq!(queue.take(|painting| painting.size[0] < 1024).map(|p| p.id), Some(2));
        assert!(queue.take(|painting| painting.size[0] < 1024).is_none());
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn deadlines_pass() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.push(painting(1, 0, 512, Some(now)));
        queue.push(painting(2, 0, 512, Some(now + Duration::from_secs(60))));
        queue.push(painting(3, 0, 512, None));
        let late = queue.take_late(now + Duration::from_secs(1));
        assert_eq!((late.len(), late[0].id, queue.len()), (1, 1, 2));
    }
}
