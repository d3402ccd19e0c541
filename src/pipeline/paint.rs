//! Painting a request on one thread: a batch of its own images.

use std::ops::ControlFlow;
use std::time::Instant;

use super::batch::Batch;
use super::prepare::{Prepared, Task};
use super::preview::Previews;
use super::request::{Painting, Request, Times};
use super::state::{Canvas, State};
use super::tiling::Tiled;
use super::{OnStep, Pipeline};
use crate::error::{Error, Result};
use crate::ops::count::Count;

impl Pipeline {
    /// Paints a request.
    ///
    /// # Errors
    /// A value that cannot be used, memory that is not there, or [`Error::Cancelled`].
    pub fn paint(&mut self, request: &Request, on_step: OnStep) -> Result<Painting> {
        self.paint_with_previews(request, on_step, None)
    }

    /// Paints a request, and shows it while it is painted. The picture is the same.
    ///
    /// # Errors
    /// Besides those of [`Pipeline::paint`], a [`PreviewMethod`](super::PreviewMethod) that the model does not have, and
    /// that of [`OnPreview`](super::OnPreview).
    pub fn paint_with_previews(
        &mut self,
        request: &Request,
        on_step: OnStep,
        mut previews: Option<Previews>,
    ) -> Result<Painting> {
        if let Some(previews) = &previews {
            assert!(previews.every > 0, "previews of every evaluation are every 1");
            previews.method.check(&self.description)?;
        }
        let passes = request.check(&self.description)?;
        let evaluations = passes.iter().map(|pass| pass.table.evaluations()).sum();
        let mut times = Times { evaluations, ..Times::default() };
        let mut warnings = Vec::new();
        let mut before = 0;
        let mut denoised: Option<(Canvas, Vec<Vec<f32>>)> = None;
        for (number, pass) in passes.iter().enumerate() {
            let latents = denoised.take().map(|(_, latents)| latents);
            let left = latents.as_deref();
            let task = Task { request, passes: &passes, number, before: left, here: true };
            let Prepared { states, times: preparing, warnings: others } = self.prepare_pass(&task)?;
            times.add(&preparing);
            for warning in others {
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
            let canvas = states[0].canvas;
            let mut is_broken_off = false;
            let mut on_step = |done: usize| {
                let flow = on_step(before + done, evaluations);
                is_broken_off = flow.is_break();
                flow
            };
            let mut watch = Watch { request, before, on_step: &mut on_step, previews: previews.as_mut() };
            match self.of_pass(pass).denoise(states, &mut watch, &mut times)? {
                Ok(latents) => denoised = Some((canvas, latents)),
                Err(done) => return Err(Error::Cancelled { done: before + done, steps: evaluations }),
            }
            before += pass.table.evaluations();
            if is_broken_off && before < evaluations {
                return Err(Error::Cancelled { done: before, steps: evaluations });
            }
        }
        let (canvas, latents) = denoised.expect("at least one pass");

        let start = Instant::now();
        let pictures = self.decode(request, canvas, &latents.concat())?;
        times.decode = start.elapsed();
        if let (Some([h, w]), Tiled::Auto) = (canvas.tile, request.tiling.when) {
            let done = if request.init.is_some() { "encoded and decoded" } else { "decoded" };
            warnings.push(format!(
                "{done} in tiles of {w}x{h} latents: the whole picture does not fit; VAE tiling set to on avoids \
                 this warning"
            ));
        }
        Ok(Painting { pictures, times, warnings })
    }

    /// Runs all steps of the images of a request, which are left in their order: their latents [h,w,c], or the
    /// evaluations done where it was cancelled.
    fn denoise(
        &mut self,
        states: Vec<State>,
        watch: &mut Watch,
        times: &mut Times,
    ) -> Result<Result<Vec<Vec<f32>>, usize>> {
        let start = Instant::now();
        let mut batch = self.take_batch(&states)?;
        batch.prepare_for(&mut *self.backend, &states)?;
        times.record += start.elapsed();
        let start = Instant::now();
        let canvas = states[0].canvas;
        for (i, state) in states.into_iter().enumerate() {
            batch.join(state, i);
        }
        let ran = self.run(&mut batch, canvas, watch);
        let done = batch.members()[0].state.done;
        let left = batch.left();
        let members = match ran {
            Ok(()) => batch.leave(&mut *self.backend, |_| true),
            Err(error) => Err(error),
        };
        // Whatever happened, no image stays in it.
        batch.abandon();
        self.batches.push(batch);
        let mut members = members?;
        times.denoise += start.elapsed();
        if left > 0 {
            return Ok(Err(done));
        }
        members.sort_by_key(|(member, _)| member.owner);
        Ok(Ok(members.into_iter().map(|(_, latents)| latents).collect()))
    }

    /// The batch of these images, which have been prepared together.
    fn take_batch(&mut self, states: &[State]) -> Result<Batch<usize>> {
        let key = states[0].key();
        let fits = |batch: &Batch<usize>| batch.key() == key && batch.capacity() >= states.len();
        if let Some(at) = self.batches.iter().position(fits) {
            return Ok(self.batches.swap_remove(at));
        }
        let Pipeline { backend, programs, .. } = self;
        Batch::new(&mut **backend, &mut programs.workspace, key.clone(), states.len())
    }

    /// Runs the first step of images verb by verb; returns its verbs.
    pub(super) fn trace_step(&mut self, states: Vec<State>) -> Result<Count> {
        let mut batch = self.take_batch(&states)?;
        for (i, state) in states.into_iter().enumerate() {
            batch.join(state, i);
        }
        let traced = batch.trace(&mut *self.backend);
        batch.abandon();
        self.batches.push(batch);
        traced
    }

    /// Runs a batch to its end, or until it is cancelled.
    fn run(&mut self, batch: &mut Batch<usize>, canvas: Canvas, watch: &mut Watch) -> Result<()> {
        while batch.left() > 0 {
            let done = batch.members()[0].state.done;
            let every = watch.previews.as_ref().map(|previews| previews.every);
            let until_shown = every.and_then(|every| batch.members()[0].state.until_preview(every));
            let steps = until_shown.unwrap_or(batch.left());
            let mut flow = ControlFlow::Continue(());
            if steps > 0 {
                batch.run(&mut *self.backend, steps, |members, ran| {
                    flow = (watch.on_step)(members[0].state.done + ran);
                    flow
                })?;
            } else {
                let mut samples = batch.run_previewed(&mut *self.backend, |_| true)?;
                samples.sort_by_key(|&(i, _)| batch.members()[i].owner);
                let samples: Option<Vec<Vec<f32>>> = samples.into_iter().map(|(_, sample)| sample).collect();
                flow = (watch.on_step)(done + 1);
                if let (Some(samples), Some(previews)) =
                    (samples.filter(|_| flow.is_continue()), &mut watch.previews)
                {
                    let pictures = self.preview(watch.request, canvas, previews.method, &samples.concat())?;
                    (previews.on_preview)(watch.before + done + 1, pictures)?;
                }
            }
            if flow.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Who hears of a pass.
struct Watch<'a, 'b> {
    request: &'a Request,
    /// Evaluations of the passes before.
    before: usize,
    /// Hears the evaluations of this pass.
    on_step: &'a mut dyn FnMut(usize) -> ControlFlow<()>,
    previews: Option<&'a mut Previews<'b>>,
}
