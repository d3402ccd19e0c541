//! The engine on the CPU: pictures in company, and what happens when something goes wrong.

mod company;
mod faults;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::root;
use sdrt::device::Device;
use sdrt::engine::{Engine, Event, Failure, Finished, Job, Observer, Refusal, Settings, Ticket};
use sdrt::location::Location;
use sdrt::pipeline::{Model, ModelFiles, Request};

/// Longer than any of these takes.
const LONG: Duration = Duration::from_secs(120);

fn model(folder: &str) -> Model {
    Model::Files(ModelFiles::from(Location::from(root().join(folder))))
}

fn start(folder: &str, settings: Settings, observer: Arc<dyn Observer>) -> Engine {
    Engine::start(model(folder), Device::Cpu, None, settings, observer).expect("the engine starts")
}

/// Rows of every step.
#[derive(Default)]
struct Rows(Mutex<Vec<usize>>);

impl Observer for Rows {
    fn stepped(&self, rows: usize) {
        self.0.lock().unwrap().push(rows);
    }
}

/// A small request.
fn request(engine: &Engine, steps: usize, seed: u64) -> Request {
    Request {
        prompt: "a red fox in the snow".into(),
        steps,
        seed,
        width: 64,
        height: 64,
        guidance_scale: 4.0,
        ..engine.defaults()
    }
}

fn job(request: Request) -> (Job, Receiver<Event>) {
    let (events, heard): (Sender<Event>, _) = channel();
    let on_event = Box::new(move |event| drop(events.send(event)));
    (Job { request, priority: 0, deadline: None, previews: None, on_event }, heard)
}

fn submit(engine: &Engine, request: Request) -> (Result<Ticket, Refusal>, Receiver<Event>) {
    let (job, heard) = job(request);
    (engine.submit(job), heard)
}

/// Waits for the end of a job.
fn end(heard: &Receiver<Event>) -> Result<Finished, Failure> {
    loop {
        match heard.recv_timeout(LONG).expect("the job comes to its end") {
            Event::Done(finished) => return Ok(*finished),
            Event::Failed(failure) => return Err(failure),
            _ => {}
        }
    }
}

/// Waits for a step of at least `done`.
fn step(heard: &Receiver<Event>, least: usize) {
    loop {
        match heard.recv_timeout(LONG).expect("another event") {
            Event::Step { done, .. } if done >= least => return,
            Event::Done(_) | Event::Failed(_) => panic!("it has come to its end"),
            _ => {}
        }
    }
}
