//! The programs of a pipeline beside the denoising loop.

mod context;
mod control;
mod decode;
mod encode;
mod text;
mod times;

pub(super) use self::context::ContextProgram;
pub(super) use self::control::ControlProgram;
pub(super) use self::decode::{DecodeProgram, TileDecodeProgram};
pub(super) use self::encode::{EncodeProgram, TileEncodeProgram};
pub(super) use self::text::{TextCache, TextProgram};
pub(super) use self::times::{TimesInputs, TimesProgram};
use super::models::Models;
use super::program::{Program, Recordings, Workspace};
use crate::error::Result;
use crate::ops::{Backend, DType};

/// All recordings of a pipeline and the workspace that they share.
#[derive(Default)]
pub(super) struct Programs {
    pub workspace: Workspace,
    text: Recordings<TextProgram>,
    context: Recordings<ContextProgram>,
    times: Recordings<TimesProgram>,
    control: Recordings<ControlProgram>,
    encode: Recordings<EncodeProgram>,
    decode: Recordings<DecodeProgram>,
}

/// The programs that a pass of a request replays, and how its image is encoded and decoded.
#[derive(Clone, Debug, Default)]
pub(super) struct Needs {
    pub texts: Vec<TextProgram>,
    pub context: Option<ContextProgram>,
    pub times: Option<TimesProgram>,
    pub controls: Vec<ControlProgram>,
    pub encode: Option<EncodeProgram>,
    pub decode: Option<DecodeProgram>,
    pub tile_encode: Option<TileEncodeProgram>,
    pub tile_decode: Option<TileDecodeProgram>,
}

impl Programs {
    /// Takes the workspace that the programs need together with one that needs `others` bytes, then records them.
    pub fn prepare(
        &mut self,
        backend: &mut dyn Backend,
        models: &Models,
        needs: &Needs,
        others: usize,
    ) -> Result<()> {
        let bytes = self.bytes_of(models, backend.dtype(), needs).max(others);
        self.workspace.reserve(backend, bytes)?;
        let Programs { workspace, text, context, times, control, encode, decode } = self;
        for program in &needs.texts {
            text.get(backend, models, workspace, *program)?;
        }
        if let Some(program) = &needs.context {
            context.get(backend, models, workspace, *program)?;
        }
        if let Some(program) = &needs.times {
            times.get(backend, models, workspace, *program)?;
        }
        for program in &needs.controls {
            control.get(backend, models, workspace, *program)?;
        }
        if let Some(program) = &needs.encode {
            encode.get(backend, models, workspace, *program)?;
        }
        if let Some(program) = &needs.decode {
            decode.get(backend, models, workspace, *program)?;
        }
        Ok(())
    }

    /// Bytes of the workspace that these need, as far as they are still to be recorded.
    fn bytes_of(&self, models: &Models, dtype: DType, needs: &Needs) -> usize {
        let texts = needs.texts.iter().map(|program| self.text.bytes_of(models, dtype, *program));
        let context = needs.context.iter().map(|program| self.context.bytes_of(models, dtype, *program));
        let times = needs.times.iter().map(|program| self.times.bytes_of(models, dtype, *program));
        let controls = needs.controls.iter().map(|program| self.control.bytes_of(models, dtype, *program));
        let encode = needs.encode.iter().map(|program| self.encode.bytes_of(models, dtype, *program));
        let decode = needs.decode.iter().map(|program| self.decode.bytes_of(models, dtype, *program));
        let tile_encode = needs.tile_encode.iter().map(|program| program.bytes(models, dtype));
        let tile_decode = needs.tile_decode.iter().map(|program| program.bytes(models, dtype));
        let recorded = texts.chain(context).chain(times).chain(controls).chain(encode).chain(decode);
        recorded.chain(tile_encode).chain(tile_decode).max().unwrap_or(0)
    }

    /// Gives all graphs and their memory back.
    pub fn clear(&mut self) {
        *self = Programs::default();
    }
}
