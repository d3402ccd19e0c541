//! One denoising loop for many pictures, each at a step of its own.
//!
//! The U-Net and the sampler see a picture by its place in the batch alone: its row of the sampler's table, of the
//! time table, its context. So between any two steps pictures may join and leave; for each number of pictures there
//! is one graph, over the same memory.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::denoising::Denoising;
use super::numbers::read_floats;
use super::predicted::State;
use super::ready::{BatchKey, Ready};
use super::stages::Models;
use crate::error::Result;
use crate::ops::*;

/// Pictures of one size that are denoised together.
pub struct Batch<P> {
    pub key: BatchKey,
    capacity: usize,
    models: Arc<Models>,
    /// By the number of pictures, and of those with guidance.
    graphs: HashMap<[usize; 2], Recorded>,
    /// Those with guidance first.
    members: Vec<Member<P>>,
    /// Whether the members lie in the batch's memory in this order.
    composed: bool,
    region: Region,
}

/// A picture, and what its owner knows of it.
pub struct Member<P> {
    pub ready: Ready,
    pub owner: P,
}

struct Recorded {
    denoising: Denoising,
    graph: Graph,
}

impl<P> Batch<P> {
    /// Takes memory for up to `capacity` pictures.
    pub fn new(
        backend: &mut dyn Backend,
        models: &Arc<Models>,
        key: BatchKey,
        capacity: usize,
    ) -> Result<Self> {
        let dtype = backend.dtype();
        let bytes = |guided: usize| {
            let mut count = count::Count::over(Arena::unbounded(), dtype);
            let denoising = Denoising::new(&mut count, models, &key.shape(models, capacity, guided));
            models.denoise(&mut count, &denoising);
            count.peak_bytes()
        };
        // One without guidance among them has all rows begin for themselves.
        let bytes = [0, capacity - 1, capacity].into_iter().map(bytes).max().unwrap_or(0);
        Ok(Batch {
            key,
            capacity,
            models: models.clone(),
            graphs: HashMap::new(),
            members: Vec::new(),
            composed: false,
            region: backend.reserve(bytes, "the latents and activations of a batch")?,
        })
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }
    pub fn bytes(&self) -> usize {
        self.region.bytes
    }
    pub fn members(&self) -> &[Member<P>] {
        &self.members
    }
    /// Rows of a U-Net call.
    pub fn rows(&self) -> usize {
        self.members.iter().map(|member| if member.ready.guided { 2 } else { 1 }).sum()
    }

    /// Records the graph of so many pictures, unless it is there. What lies in the memory is lost.
    fn prepare(&mut self, backend: &mut dyn Backend, [images, guided]: [usize; 2]) -> Result<()> {
        if self.graphs.contains_key(&[images, guided]) {
            return Ok(());
        }
        let models = &self.models;
        let before = backend.use_arena(Arena::new(self.region.base, self.region.bytes));
        let denoising = Denoising::new(backend, models, &self.key.shape(models, images, guided));
        // Recording may run the step, on indices that point into the tables.
        let first = denoising.first_index();
        let graph = backend
            .write(denoising.index, bytemuck::cast_slice(&first))
            .and_then(|()| backend.record_steps(denoising.index, &mut |ops| models.denoise(ops, &denoising)));
        backend.use_arena(before);
        self.graphs.insert([images, guided], Recorded { denoising, graph: graph? });
        Ok(())
    }

    /// Records the graphs of 1 to `capacity` pictures with guidance.
    pub fn prepare_all(&mut self, backend: &mut dyn Backend) -> Result<()> {
        self.store(backend)?;
        (1..=self.capacity).try_for_each(|images| self.prepare(backend, [images, images]))
    }

    /// Takes a picture in, in front of the next step.
    ///
    /// # Panics
    /// If the batch is full, or the picture of another kind.
    pub fn join(&mut self, backend: &mut dyn Backend, ready: Ready, owner: P) -> Result<()> {
        assert!(self.members.len() < self.capacity && ready.key == self.key);
        self.store(backend)?;
        let guided = self.members.iter().filter(|member| member.ready.guided).count();
        let place = if ready.guided { guided } else { self.members.len() };
        self.members.insert(place, Member { ready, owner });
        Ok(())
    }

    /// Gives back the pictures that `leaves` says, with their latents, [h,w,c].
    pub fn leave(
        &mut self,
        backend: &mut dyn Backend,
        mut leaves: impl FnMut(&Member<P>) -> bool,
    ) -> Result<Vec<(Member<P>, Vec<f32>)>> {
        if !self.members.iter().any(&mut leaves) {
            return Ok(Vec::new());
        }
        self.store(backend)?;
        let (gone, stay): (Vec<_>, Vec<_>) = self.members.drain(..).partition(&mut leaves);
        self.members = stay;
        let latents = |member: Member<P>| {
            let latents = read_floats(backend, member.ready.denoising.latents)?;
            Ok((member, latents))
        };
        gone.into_iter().map(latents).collect()
    }

    /// All pictures, when the batch is of no use any more.
    pub fn abandon(&mut self) -> Vec<Member<P>> {
        self.composed = false;
        self.members.drain(..).collect()
    }

    /// The place of the pictures that lie in the batch's memory.
    fn current(&self) -> &Recorded {
        let guided = self.members.iter().filter(|member| member.ready.guided).count();
        &self.graphs[&[self.members.len(), guided]]
    }

    /// Brings what the steps changed back to each picture's own memory.
    fn store(&mut self, backend: &mut dyn Backend) -> Result<()> {
        if !std::mem::take(&mut self.composed) {
            return Ok(());
        }
        let denoising = &self.current().denoising;
        for (i, member) in self.members.iter().enumerate() {
            member.ready.denoising.copy_state(backend, 0, denoising, i)?;
        }
        Ok(())
    }

    /// Brings the members into the batch's memory.
    fn compose(&mut self, backend: &mut dyn Backend) -> Result<()> {
        if self.composed {
            return Ok(());
        }
        let guided = self.members.iter().filter(|member| member.ready.guided).count();
        self.prepare(backend, [self.members.len(), guided])?;
        let denoising = &self.current().denoising;
        let mut done = Vec::new();
        for (i, Member { ready, .. }) in self.members.iter().enumerate() {
            denoising.copy_picture(backend, i, &ready.denoising, 0, &ready.table)?;
            done.push(ready.done);
        }
        backend.write(denoising.index, bytemuck::cast_slice(&denoising.index_at(&done)))?;
        self.composed = true;
        Ok(())
    }

    /// Runs up to `steps` steps of all members; `on_step` hears how many are done, not necessarily of each one, and
    /// may break off. Returns the number of steps done.
    ///
    /// # Panics
    /// If a member has fewer left.
    pub fn run(
        &mut self,
        backend: &mut dyn Backend,
        steps: usize,
        mut on_step: impl FnMut(&[Member<P>], usize) -> ControlFlow<()>,
    ) -> Result<usize> {
        let left = |member: &Member<P>| member.ready.evaluations() - member.ready.done;
        assert!(self.members.iter().all(|member| steps <= left(member)), "too many steps");
        self.compose(backend)?;
        let members = &self.members;
        let steps = backend.replay_steps(&self.current().graph, steps, &mut |done| on_step(members, done))?;
        self.members.iter_mut().for_each(|member| member.ready.done += steps);
        Ok(steps)
    }

    /// Runs one step, and returns the clean sample that it predicted of each member that `shown` says: [h,w,c], or
    /// `None` where the latents do not depend on the model in it.
    pub fn run_watched(
        &mut self,
        backend: &mut dyn Backend,
        shown: impl Fn(&Member<P>) -> bool,
    ) -> Result<Vec<(usize, Option<Vec<f32>>)>> {
        self.compose(backend)?;
        let watched: Vec<usize> = (0..self.members.len()).filter(|&i| shown(&self.members[i])).collect();
        let mut before = Vec::new();
        for &i in &watched {
            let row = self.members[i].ready.done;
            before.push(State::read(backend, &self.current().denoising, i, row)?);
        }
        self.run(backend, 1, |_, _| ControlFlow::Continue(()))?;
        let mut samples = Vec::new();
        for (&i, before) in watched.iter().zip(before) {
            let after = read_floats(backend, self.current().denoising.latents.images(i, 1))?;
            let Ready { table, done, .. } = &self.members[i].ready;
            samples.push((i, before.predicted(&table.rows[done - 1], &after)));
        }
        Ok(samples)
    }
}
