//! Programs: verbs that are recorded once for a key and replayed for every request.
//!
//! A key holds exactly what the verbs depend on; everything else is data that is written in front of a replay. The
//! tensors of all programs of a pipeline lie in one workspace, at its start: a program leaves nothing there that
//! another may rely on, so that the workspace is as large as the largest of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use super::models::Models;
use crate::error::Result;
use crate::ops::count::Count;
use crate::ops::*;

/// The key of a program, which knows its tensors and its verbs.
pub(super) trait Program: Copy + Eq + Hash + Debug {
    /// Inputs and outputs.
    type Tensors;

    fn tensors(&self, models: &Models, ops: &mut dyn Ops) -> Self::Tensors;

    fn run(&self, models: &Models, ops: &mut dyn Ops, tensors: &Self::Tensors);

    /// Its verbs over an arena, without running them.
    fn count(&self, models: &Models, arena: Arena, dtype: DType) -> Count {
        let mut count = Count::over(arena, dtype);
        let tensors = self.tensors(models, &mut count);
        self.run(models, &mut count, &tensors);
        count
    }

    /// Bytes that its tensors and scratch need.
    fn bytes(&self, models: &Models, dtype: DType) -> usize {
        self.count(models, Arena::unbounded(), dtype).peak_bytes()
    }

    /// Runs `body` with the program's tensors at the start of the workspace and the rest of it as scratch. Nothing is
    /// recorded.
    fn unrecorded<T>(
        &self,
        backend: &mut dyn Backend,
        models: &Models,
        workspace: &mut Workspace,
        body: impl FnOnce(&mut dyn Backend, &Self::Tensors) -> Result<T>,
    ) -> Result<T> {
        let bytes = self.bytes(models, backend.dtype());
        let region = workspace.reserve(backend, bytes)?;
        let before = backend.use_arena(Arena::new(region.base, region.bytes));
        let tensors = self.tensors(models, backend);
        let result = body(backend, &tensors);
        backend.use_arena(before);
        result
    }
}

/// Memory that programs take turns in.
#[derive(Default)]
pub(super) struct Workspace {
    region: Option<Arc<Region>>,
}

impl Workspace {
    /// The workspace, enlarged to `bytes` if it is smaller. Programs that were recorded before keep the memory that
    /// they were recorded over.
    pub fn reserve(&mut self, backend: &mut dyn Backend, bytes: usize) -> Result<Arc<Region>> {
        match &self.region {
            Some(region) if region.bytes >= bytes => Ok(region.clone()),
            _ => {
                // The smaller one goes first, unless a program has it.
                self.region = None;
                let region = Arc::new(backend.reserve(bytes, "the activations")?);
                Ok(self.region.insert(region).clone())
            }
        }
    }

    pub fn bytes(&self) -> usize {
        self.region.as_ref().map_or(0, |region| region.bytes)
    }

    pub fn clear(&mut self) {
        self.region = None;
    }
}

/// A program's tensors and its graph.
pub(super) struct Recorded<T> {
    pub tensors: T,
    graph: Graph,
    _workspace: Arc<Region>,
}

impl<T> Recorded<T> {
    pub fn replay(&self, backend: &mut dyn Backend) -> Result<()> {
        backend.replay(&self.graph)
    }
}

/// The recordings of one kind of program, by key.
pub(super) struct Recordings<P: Program>(HashMap<P, Recorded<P::Tensors>>);

impl<P: Program> Default for Recordings<P> {
    fn default() -> Self {
        Recordings(HashMap::new())
    }
}

impl<P: Program> Recordings<P> {
    /// The recording of a program, made now if there is none.
    pub fn get(
        &mut self,
        backend: &mut dyn Backend,
        models: &Models,
        workspace: &mut Workspace,
        program: P,
    ) -> Result<&Recorded<P::Tensors>> {
        let entry = match self.0.entry(program) {
            Entry::Occupied(entry) => return Ok(entry.into_mut()),
            Entry::Vacant(entry) => entry,
        };
        let bytes = program.bytes(models, backend.dtype());
        let region = workspace.reserve(backend, bytes)?;
        let before = backend.use_arena(Arena::new(region.base, region.bytes));
        let tensors = program.tensors(models, backend);
        let graph = backend.record(&mut |ops| program.run(models, ops, &tensors));
        backend.use_arena(before);
        tracing::debug!(?program, workspace = region.bytes, "recorded a program");
        Ok(entry.insert(Recorded { tensors, graph: graph?, _workspace: region }))
    }

    /// Bytes of the workspace that a program needs if it is still to be recorded.
    pub fn bytes_of(&self, models: &Models, dtype: DType, program: P) -> usize {
        if self.0.contains_key(&program) { 0 } else { program.bytes(models, dtype) }
    }
}
