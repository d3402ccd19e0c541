//! The denoising loop: many images, each at a step of its own.
//!
//! An image is in a batch as numbers alone: the slot of its latents, the rows of its schedule, the tokens of its
//! prompts. So between any two steps images may join and leave, and nothing of them is copied. For each number of
//! images and rows there is one graph, over the same memory.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::models::Models;
use super::numbers::read_floats;
use super::predicted::StepInputs;
use super::program::Workspace;
use super::slots::Room;
use super::state::{BatchKey, Conditioning, State};
use super::step::{Form, ImageRoute, Routes, RowRoute, Step};
use crate::error::Result;
use crate::ops::*;

/// Images of one size that are denoised together.
pub struct Batch<P> {
    key: BatchKey,
    capacity: usize,
    routes: Routes,
    graphs: HashMap<Form, Graph>,
    /// Those whose next evaluation has guidance first.
    members: Vec<Member<P>>,
    /// Whether the routes are those of the members.
    routed: bool,
    /// Of the routes.
    region: Region,
    workspace: Arc<Region>,
}

/// An image, and what its owner knows of it.
pub struct Member<P> {
    pub state: State,
    pub owner: P,
}

impl<P> Batch<P> {
    /// A batch of up to `capacity` images.
    pub(super) fn new(
        backend: &mut dyn Backend,
        workspace: &mut Workspace,
        key: BatchKey,
        capacity: usize,
    ) -> Result<Self> {
        let (models, room) = (&key.models, key.slots.room);
        let bytes = workspace_bytes(models, backend.dtype(), &room, key.contexts.tokens(), capacity);
        let workspace = workspace.reserve(backend, bytes)?;
        let rows = models.config.most_rows();
        let mut count = count::Count::new(backend.dtype());
        Routes::new(&mut count, &room, capacity, rows);
        let region = backend.reserve(count.peak_bytes(), "the routes of a batch")?;
        let before = backend.use_arena(Arena::new(region.base, region.bytes));
        let routes = Routes::new(backend, &room, capacity, rows);
        backend.use_arena(before);
        Ok(Batch {
            key,
            capacity,
            routes,
            graphs: HashMap::new(),
            members: Vec::new(),
            routed: false,
            region,
            workspace,
        })
    }

    pub fn key(&self) -> &BatchKey {
        &self.key
    }
    pub fn capacity(&self) -> usize {
        self.capacity
    }
    /// Bytes of memory of its own, beside the workspace that it shares with others.
    pub fn bytes(&self) -> usize {
        self.region.bytes
    }
    pub fn members(&self) -> &[Member<P>] {
        &self.members
    }

    /// Rows of a U-Net call.
    pub fn rows(&self) -> usize {
        self.form().rows()
    }

    /// Model evaluations that all members have left.
    pub fn left(&self) -> usize {
        self.members.iter().map(|member| member.state.left()).min().unwrap_or(0)
    }

    fn form(&self) -> Form {
        form(&self.key.models, || self.members.iter().map(|member| &member.state))
    }

    /// Records the graph of a form, unless it is there.
    fn record(&mut self, backend: &mut dyn Backend, form: Form) -> Result<()> {
        if self.graphs.contains_key(&form) {
            return Ok(());
        }
        // Recording may run the step: on the slot that belongs to nobody.
        self.routed = false;
        let slot = self.key.slots.spare();
        let image = |i: usize| ImageRoute { slot, rows: form.rows_of(i), index: 0 };
        let images: Vec<ImageRoute> = (0..form.images).map(image).collect();
        let row = RowRoute { slot, tokens: 1, ..RowRoute::default() };
        self.routes.write(backend, &images, &vec![row; form.rows()])?;
        let step = self.step(form);
        let before = backend.use_arena(Arena::new(self.workspace.base, self.workspace.bytes));
        let graph = backend.record_steps(self.routes.advancing(), &mut |ops| step.run(ops));
        backend.use_arena(before);
        tracing::debug!(?form, "recorded a step");
        self.graphs.insert(form, graph?);
        Ok(())
    }

    /// Records the graph of images that are to join it while it is empty.
    pub(super) fn prepare_for(&mut self, backend: &mut dyn Backend, states: &[State]) -> Result<()> {
        let form = form(&self.key.models, || states.iter());
        self.record(backend, form)
    }

    /// Records the graphs of so many images with guidance and prompts of one chunk.
    pub fn prepare(
        &mut self,
        backend: &mut dyn Backend,
        images: impl IntoIterator<Item = usize>,
    ) -> Result<()> {
        images.into_iter().try_for_each(|images| self.record(backend, Form::guided(&self.key.models, images)))
    }

    /// Runs the next step verb by verb, without recording or counting it, and returns its verbs.
    pub(super) fn trace(&mut self, backend: &mut dyn Backend) -> Result<count::Count> {
        let form = self.route(backend)?;
        let step = self.step(form);
        let arena = || Arena::new(self.workspace.base, self.workspace.bytes);
        let before = backend.use_arena(arena());
        let ran = backend.run(&mut |ops| step.run(ops));
        backend.use_arena(before);
        ran?;
        let mut count = count::Count::over(arena(), backend.dtype());
        step.run(&mut count);
        Ok(count)
    }

    fn step(&self, form: Form) -> Step<'_> {
        let BatchKey { models, slots, contexts } = &self.key;
        Step { models, slots: &slots.tensors, contexts: &contexts.tables, routes: &self.routes, form }
    }

    /// Takes an image in, in front of the next step.
    ///
    /// # Panics
    /// If the batch is full, or the image of another kind.
    pub fn join(&mut self, state: State, owner: P) {
        assert!(self.members.len() < self.capacity && *state.key() == self.key);
        self.members.push(Member { state, owner });
        self.routed = false;
    }

    /// Gives back the images that `leaves` says, with their latents, [h,w,c].
    pub fn leave(
        &mut self,
        backend: &mut dyn Backend,
        mut leaves: impl FnMut(&Member<P>) -> bool,
    ) -> Result<Vec<(Member<P>, Vec<f32>)>> {
        if !self.members.iter().any(&mut leaves) {
            return Ok(Vec::new());
        }
        self.routed = false;
        let (gone, stay): (Vec<_>, Vec<_>) = self.members.drain(..).partition(&mut leaves);
        self.members = stay;
        let latents = &self.key.slots.tensors.latents;
        let with_latents = |member: Member<P>| {
            let latents = read_floats(backend, latents.images(member.state.slot.first, 1))?;
            Ok((member, latents))
        };
        gone.into_iter().map(with_latents).collect()
    }

    /// All images, when the batch is of no use any more.
    pub fn abandon(&mut self) -> Vec<Member<P>> {
        self.routed = false;
        self.members.drain(..).collect()
    }

    /// Writes where the members find everything, unless it is there, and records their graph.
    fn route(&mut self, backend: &mut dyn Backend) -> Result<Form> {
        if self.routed {
            return Ok(self.form());
        }
        self.members.sort_by_key(|member| !member.state.is_guided());
        let form = self.form();
        self.record(backend, form)?;
        let tables = self.key.models.time_tables();
        let row = |state: &State, text: &Conditioning, sees_beside: bool| RowRoute {
            index: state.row(),
            time: state.time_row(text, tables),
            slot: state.slot.first,
            sees_beside,
            first_token: text.context.first(),
            tokens: text.context.tokens,
        };
        let states = || self.members.iter().map(|member| &member.state);
        let negative = |state: &State, sees_beside: bool| {
            let text = state.negative.as_ref().expect("prepared for guidance");
            row(state, text, sees_beside)
        };
        // Without image guidance, the unconditional row sees what the conditional one does.
        let image_guided = states().take(form.image_guided).map(|state| negative(state, true));
        let sees_beside = form.image_guided == 0;
        let guided = states().take(form.guided).map(|state| negative(state, sees_beside));
        let conditional = states().map(|state| row(state, &state.prompt, true));
        let rows: Vec<RowRoute> = image_guided.chain(guided).chain(conditional).collect();
        let images = states().enumerate().map(|(i, state)| ImageRoute {
            index: state.row(),
            slot: state.slot.first,
            rows: form.rows_of(i),
        });
        self.routes.write(backend, &images.collect::<Vec<_>>(), &rows)?;
        self.routed = true;
        Ok(form)
    }

    /// Runs up to `steps` steps of all members, and no further than to where guidance of one begins or ends, since rows
    /// come or go there. `on_step` hears how many are done beyond those that the members know of, not necessarily of each
    /// one, and may break off. Returns the number of steps done.
    ///
    /// # Panics
    /// If a member has fewer left.
    pub fn run(
        &mut self,
        backend: &mut dyn Backend,
        steps: usize,
        mut on_step: impl FnMut(&[Member<P>], usize) -> ControlFlow<()>,
    ) -> Result<usize> {
        assert!(steps <= self.left(), "too many steps");
        let form = self.route(backend)?;
        let members = &self.members;
        let until_change = members.iter().map(|member| member.state.until_change());
        let steps = until_change.fold(steps, usize::min);
        let done = backend.replay_steps(&self.graphs[&form], steps, &mut |done| on_step(members, done))?;
        for Member { state, .. } in &mut self.members {
            let before = state.is_guided();
            state.done += done;
            self.routed &= state.is_guided() == before;
        }
        Ok(done)
    }

    /// Runs one step, and returns the clean sample that it predicted of each member that `shown` says: [h,w,c], or
    /// `None` where the latents do not depend on the model in it. Members are counted as they are after the step.
    pub fn run_previewed(
        &mut self,
        backend: &mut dyn Backend,
        shown: impl Fn(&Member<P>) -> bool,
    ) -> Result<Vec<(usize, Option<Vec<f32>>)>> {
        // The order of members is that of the step.
        self.route(backend)?;
        let slots = self.key.slots.clone();
        let mut before = Vec::new();
        for (i, member) in self.members.iter().enumerate().filter(|(_, member)| shown(member)) {
            let state = &member.state;
            before.push((i, StepInputs::read(backend, &slots.tensors, state.slot.first, state.row())?));
        }
        self.run(backend, 1, |_, _| ControlFlow::Continue(()))?;
        let mut samples = Vec::new();
        for (i, before) in before {
            let State { slot, table, done, .. } = &self.members[i].state;
            let after = read_floats(backend, slots.tensors.latents.images(slot.first, 1))?;
            samples.push((i, before.predicted(&table.rows[done - 1], &after)));
        }
        Ok(samples)
    }
}

/// The step that images need next.
fn form<'a, I: Iterator<Item = &'a State>>(models: &Models, states: impl Fn() -> I) -> Form {
    let guided = states().filter(|state| state.is_guided()).count();
    let texts = states().flat_map(|state| {
        let negative = state.negative.as_ref().filter(|_| state.is_guided());
        std::iter::once(&state.prompt).chain(negative)
    });
    Form {
        images: states().count(),
        guided,
        image_guided: if models.has_image_guidance() { guided } else { 0 },
        long: texts.map(|text| text.context.padded()).any(|tokens| tokens > KeyRows::PADDING),
    }
}

/// Bytes of scratch of a step of up to `capacity` images.
pub(super) fn workspace_bytes(
    models: &Models,
    dtype: DType,
    room: &Room,
    tokens: usize,
    capacity: usize,
) -> usize {
    let whole = Form::guided(models, capacity);
    // One without guidance among them has all rows begin for themselves.
    let guided = capacity - 1;
    let mixed = Form { guided, image_guided: whole.image_guided.min(guided), ..whole };
    let plain = Form { guided: 0, image_guided: 0, ..whole };
    let bytes = [whole, mixed, plain].map(|form| Step::count(models, dtype, room, tokens, form).peak_bytes());
    bytes.into_iter().max().unwrap_or(0)
}
