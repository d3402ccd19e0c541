//! The weights of a model: safetensors files, looked up by component and key.

use std::ops::Range;

use super::Source;
use super::component::{COMPONENTS, Component, Stored};
use super::folder::ModelFolder;
use super::pack;
use super::plan::Request;
use crate::error::Result;
use crate::location::Location;

/// The weights of a model.
///
/// Files on disk stay mapped: they must not be cut short while this lives.
pub struct Checkpoint {
    components: Vec<Component>,
}

impl Checkpoint {
    /// Opens the weight files of all components of a folder and reads their headers.
    pub fn open(folder: &ModelFolder) -> Result<Self> {
        let is_text_encoder = |name: &str| name.starts_with("text_encoder");
        let there = COMPONENTS
            .iter()
            .filter(|(name, _)| !is_text_encoder(name) || folder.text_encoders.contains(name));
        let open = |&(name, base)| Component::in_folder(&folder.location.join(name), name, base);
        Ok(Checkpoint { components: there.map(open).collect::<Result<_>>()? })
    }

    /// The components of a model in a single file.
    pub fn of(components: Vec<Component>) -> Self {
        Checkpoint { components }
    }

    /// The checkpoint with another component, which replaces one of its name.
    pub fn with(mut self, component: Component) -> Self {
        self.components.retain(|other| other.name != component.name);
        self.components.push(component);
        self
    }

    /// Every tensor with its component, in the order of components and keys.
    pub fn tensors(&self) -> Vec<(&'static str, &Stored)> {
        let mut all: Vec<_> = self
            .components
            .iter()
            .flat_map(|component| component.stored().map(|stored| (component.name, stored)))
            .collect();
        all.sort_by(|a, b| (a.0, &a.1.key).cmp(&(b.0, &b.1.key)));
        all
    }

    /// The files, in the order of components.
    pub fn files(&self) -> impl Iterator<Item = &Location> {
        self.components.iter().flat_map(|component| component.files.iter().map(|file| &file.location))
    }

    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|component| component.name == name)
    }

    fn of_request(&self, request: &Request) -> &Component {
        self.component(request.component).unwrap_or_else(|| panic!("no component for {request:?}"))
    }
}

impl Source for Checkpoint {
    fn check(&self, requests: &[Request]) -> Result<()> {
        requests.iter().try_for_each(|request| self.of_request(request).check(request))?;
        self.components.iter().try_for_each(|component| component.check_leftovers(requests))
    }

    fn fill(&self, request: &Request, rows: Range<usize>, out: &mut [u8]) {
        let component = self.of_request(request);
        pack::pack(request, rows, out, &|key, elements, dtype, out| {
            component.read(&request.keys[key], elements, request.factor, dtype, out);
        });
    }
}
