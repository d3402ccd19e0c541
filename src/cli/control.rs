//! Which ControlNets steer, and by what: groups of flags, each of which a `--controlnet` begins.

use std::path::PathBuf;

use anyhow::Result;
use clap::{ArgMatches, Args, FromArgMatches};
use sdrt::error::Error;
use sdrt::image::{UsedControlNet, image_hash};
use sdrt::location::Location;
use sdrt::pipeline::Control;
use sdrt::raster::Raster;
use sdrt::weights::controlnet;

use super::source::{self, ModelSource, recorded_path};
use crate::progress::Progress;

/// Where nothing was drawn, there are no edges.
const BLACK: [u8; 3] = [0; 3];

#[derive(Args)]
#[command(next_help_heading = "ControlNets")]
struct Flags {
    #[arg(long, value_name = "MODEL", value_parser = source::parser())]
    controlnet: Vec<ModelSource>,
    #[arg(long, value_name = "FILE")]
    control_image: Vec<PathBuf>,
    #[arg(long, value_name = "X")]
    control_strength: Vec<f32>,
    #[arg(long, value_name = "X")]
    control_start: Vec<f64>,
    #[arg(long, value_name = "X")]
    control_end: Vec<f64>,
}

/// A ControlNet and what is said of it.
struct Group {
    controlnet: ModelSource,
    image: Option<PathBuf>,
    strength: Option<f32>,
    start: Option<f64>,
    end: Option<f64>,
}

/// A ControlNet and all that it is given.
pub struct Steering {
    controlnet: ModelSource,
    image: PathBuf,
    pub control: Control,
}

pub struct ControlArgs {
    /// The error is a sentence about the flags.
    groups: Result<Vec<Group>, String>,
}

impl Args for ControlArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        Flags::augment_args(command)
    }
    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Flags::augment_args_for_update(command)
    }
}

impl FromArgMatches for ControlArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(ControlArgs { groups: Flags::from_arg_matches(matches)?.groups(matches) })
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Flags {
    /// Each flag belongs to the last `--controlnet` before it; `matches` know where they stand.
    fn groups(self, matches: &ArgMatches) -> Result<Vec<Group>, String> {
        let places = |id: &str| matches.indices_of(id).map(Vec::from_iter).unwrap_or_default();
        let nets = places("controlnet");
        let images = of_each(&nets, "control-image", &places("control_image"), self.control_image)?;
        let strengths =
            of_each(&nets, "control-strength", &places("control_strength"), self.control_strength)?;
        let starts = of_each(&nets, "control-start", &places("control_start"), self.control_start)?;
        let ends = of_each(&nets, "control-end", &places("control_end"), self.control_end)?;
        let others = images.into_iter().zip(strengths).zip(starts.into_iter().zip(ends));
        let group = |(controlnet, ((image, strength), (start, end)))| Group {
            controlnet,
            image,
            strength,
            start,
            end,
        };
        Ok(self.controlnet.into_iter().zip(others).map(group).collect())
    }
}

/// The values of a flag at their places, one or none for each ControlNet at its own.
fn of_each<T>(
    nets: &[usize],
    flag: &str,
    places: &[usize],
    values: Vec<T>,
) -> Result<Vec<Option<T>>, String> {
    let mut of_each: Vec<Option<T>> = nets.iter().map(|_| None).collect();
    for (place, value) in places.iter().zip(values) {
        let before = nets.iter().filter(|net| *net < place).count();
        let Some(net) = before.checked_sub(1) else {
            return Err(format!("--{flag}: expected behind the --controlnet that it is meant for"));
        };
        if of_each[net].replace(value).is_some() {
            return Err(format!("--{flag}: given twice for one --controlnet"));
        }
    }
    Ok(of_each)
}

impl ControlArgs {
    /// The ControlNets of the flags, or those that steered a picture where there are none. What the flags leave open
    /// of a ControlNet is as it was for the picture's of the same number.
    pub fn steering(&self, recorded: &[UsedControlNet]) -> Result<Vec<Steering>, Error> {
        let groups = self.groups.as_deref().map_err(Error::invalid)?;
        if groups.is_empty() {
            return recorded.iter().map(Steering::of_recorded).collect();
        }
        let numbered = groups.iter().enumerate();
        numbered.map(|(number, group)| Steering::of_flags(group, recorded.get(number))).collect()
    }
}

impl Steering {
    fn of_flags(group: &Group, recorded: Option<&UsedControlNet>) -> Result<Self, Error> {
        let Group { controlnet, image, strength, start, end } = group;
        let (image, whole) = match (image, recorded) {
            (Some(image), None) => (image.clone(), Control::new(Raster::read(image, BLACK)?)),
            (Some(image), Some(used)) => (image.clone(), used.control(Raster::read(image, BLACK)?)),
            (None, Some(used)) => recorded_image(used, controlnet)?,
            (None, None) => {
                let message = format!("--controlnet {controlnet}: expected a --control-image behind it");
                return Err(Error::invalid(message));
            }
        };
        let control = Control {
            strength: strength.unwrap_or(whole.strength),
            start: start.unwrap_or(whole.start),
            end: end.unwrap_or(whole.end),
            ..whole
        };
        Ok(Steering { controlnet: controlnet.clone(), image, control })
    }

    fn of_recorded(used: &UsedControlNet) -> Result<Self, Error> {
        let UsedControlNet { name, model, image, .. } = used;
        let controlnet = ModelSource::of_recorded(model).ok_or_else(|| {
            Error::invalid(format!(
                "--from: the picture was steered by the ControlNet {name}, and there is no {model}; say where it is \
                 with --controlnet, and behind it with --control-image where {image} is, if that has moved too"
            ))
        })?;
        let (image, control) = recorded_image(used, &controlnet)?;
        Ok(Steering { controlnet, image, control })
    }

    /// Where the ControlNet is, downloaded if it has to be.
    pub fn locate(&self, progress: Progress) -> Result<Location> {
        self.controlnet.locate(progress)
    }

    /// What pictures say of it; `location` is where the ControlNet is.
    pub fn used(&self, location: &Location) -> Result<UsedControlNet, Error> {
        let Control { image, strength, start, end } = &self.control;
        Ok(UsedControlNet {
            name: self.controlnet.name(),
            hash: controlnet::hash(location)?,
            model: self.controlnet.recorded(),
            image: recorded_path(&self.image),
            image_hash: image_hash(image),
            strength: *strength,
            start: *start,
            end: *end,
        })
    }
}

/// What a picture's ControlNet read.
fn recorded_image(used: &UsedControlNet, controlnet: &ModelSource) -> Result<(PathBuf, Control), Error> {
    let image = PathBuf::from(&used.image);
    if !image.exists() {
        return Err(Error::invalid(format!(
            "--from: the picture was steered by {}, which is not there; say where it is with --controlnet \
             {controlnet} --control-image FILE",
            used.image
        )));
    }
    let control = used.control(Raster::read(&image, BLACK)?);
    Ok((image, control))
}
