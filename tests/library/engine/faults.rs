//! What goes wrong, and who suffers from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use sdrt::Error;
use sdrt::engine::{Engine, Event, Failure, Job, Observer, Refusal, Settings};
use sdrt::pipeline::Request;

use super::{LONG, end, job, model, request, start, step, submit};
use crate::faulty::Faults;

#[derive(Default)]
struct Counts {
    cancelled: AtomicUsize,
    failed: AtomicUsize,
    steps: AtomicUsize,
}

impl Observer for Counts {
    fn cancelled(&self) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
    }
    fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
    fn stepped(&self, _rows: usize) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }
}

/// Steps of an image that is cancelled: more than there is time for, however late the test hears of one.
const CANCELLED: usize = 900;

#[test]
fn a_dropped_ticket_cancels_within_a_step() {
    let counts = Arc::new(Counts::default());
    let settings = Settings { max_batch: 1, max_evaluations: CANCELLED, ..Settings::default() };
    let engine = start("models/tiny", settings, counts.clone());
    let (running, running_heard) = submit(&engine, request(&engine, CANCELLED, 1));
    let (waiting, waiting_heard) = submit(&engine, request(&engine, CANCELLED, 2));
    let (_last, last_heard) = submit(&engine, request(&engine, 2, 3));
    step(&running_heard, 1);
    drop(waiting);
    assert!(matches!(end(&waiting_heard), Err(Failure::Cancelled)));
    drop(running);
    assert!(matches!(end(&running_heard), Err(Failure::Cancelled)));
    end(&last_heard).expect("painted");
    assert_eq!(counts.cancelled.load(Ordering::Relaxed), 2);
    assert!(counts.steps.load(Ordering::Relaxed) < CANCELLED);
}

#[test]
fn a_full_queue_refuses() {
    let settings = Settings { max_batch: 1, max_queue: 1, ..Settings::default() };
    let engine = start("models/tiny", settings, Arc::new(()));
    let jobs: Vec<_> = (0..20).map(|seed| submit(&engine, request(&engine, 30, seed))).collect();
    let refused = jobs.iter().filter(|(taken, _)| matches!(taken, Err(Refusal::Full { .. }))).count();
    assert!((10..20).contains(&refused), "{refused} of 20 refused");
}

#[test]
fn jobs_together_are_taken_whole_or_not_at_all() {
    let settings = Settings { max_batch: 1, max_queue: 1, max_evaluations: CANCELLED, ..Settings::default() };
    let engine = start("models/tiny", settings, Arc::new(()));
    // Three of them are begun ahead: one that fits the batch, and two.
    let jobs = || (0..6).map(|seed| job(request(&engine, CANCELLED, seed))).unzip::<_, _, Vec<_>, Vec<_>>();
    let (together, heard) = jobs();
    let tickets = engine.submit_together(together).expect("there is a place");
    assert_eq!(tickets.len(), 6);
    step(&heard[0], 2);
    let refused = engine.submit_together(jobs().0);
    assert!(matches!(refused, Err(Refusal::Full { .. })), "{:?}", refused.err());
    let (mut one_is_bad, _) = jobs();
    one_is_bad[2].request.width = 63;
    drop(tickets);
    let refused = engine.submit_together(one_is_bad);
    assert!(matches!(refused, Err(Refusal::Invalid(_))), "{:?}", refused.err());
    let (taken, heard) = submit(&engine, request(&engine, 2, 9));
    let _ticket = taken.expect("nothing waits any more");
    end(&heard).expect("painted");
}

#[test]
fn deadlines_are_kept_or_refused() {
    let engine = start("models/tiny", Settings { max_batch: 1, ..Settings::default() }, Arc::new(()));
    let soon = |request: Request, left| {
        let (made, heard) = job(request);
        (engine.submit(Job { deadline: Some(Instant::now() + left), ..made }), heard)
    };
    // Nothing is known yet of how long a picture takes: it is taken, and waits in vain.
    let jobs: Vec<_> = (0..4).map(|seed| submit(&engine, request(&engine, 60, seed))).collect();
    let (taken, heard) = soon(request(&engine, 2, 9), Duration::from_millis(1));
    if let Ok(_ticket) = taken {
        assert!(matches!(end(&heard), Err(Failure::DeadlinePassed)));
    }
    step(&jobs[0].1, 2);
    let (taken, _) = soon(request(&engine, 2, 9), Duration::ZERO);
    assert!(matches!(taken, Err(Refusal::TooLate { .. })), "{:?}", taken.err());
    let (taken, heard) = soon(request(&engine, 2, 9), Duration::from_secs(600));
    let _ticket = taken.expect("time enough");
    drop(jobs);
    end(&heard).expect("painted");
}

#[test]
fn bad_requests_harm_nobody() {
    let engine = start("models/tiny", Settings::default(), Arc::new(()));
    let (_good, heard) = submit(&engine, request(&engine, 5, 1));
    for bad in [
        Request { width: 63, ..request(&engine, 5, 1) },
        Request { steps: 0, ..request(&engine, 5, 1) },
        Request { steps: 500, ..request(&engine, 5, 1) },
        Request { images: 2, ..request(&engine, 5, 1) },
        Request { guidance_scale: f32::NAN, ..request(&engine, 5, 1) },
    ] {
        let (taken, _) = submit(&engine, bad);
        assert!(matches!(taken, Err(Refusal::Invalid(_))), "{:?}", taken.err());
    }
    end(&heard).expect("painted");
}

#[test]
fn shutting_down_finishes_or_reports() {
    let engine = start("models/tiny", Settings { max_batch: 1, ..Settings::default() }, Arc::new(()));
    let (_a, a) = submit(&engine, request(&engine, 5, 1));
    assert_eq!(engine.shut_down(Duration::from_secs(60)), 0);
    end(&a).expect("painted");
    assert!(matches!(submit(&engine, request(&engine, 5, 1)).0, Err(Refusal::ShuttingDown)));

    let engine = start("models/tiny", Settings { max_batch: 1, ..Settings::default() }, Arc::new(()));
    let jobs = [1, 2].map(|seed| submit(&engine, request(&engine, 128, seed)));
    step(&jobs[0].1, 1);
    assert_eq!(engine.shut_down(Duration::ZERO), 2);
    for (_, heard) in &jobs {
        assert!(matches!(end(heard), Err(Failure::ShutDown)));
    }
}

fn faulty(settings: Settings) -> (Engine, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let given = faults.clone();
    let engine = Engine::start_on(model("models/tiny"), || given.open(), settings, Arc::new(()));
    (engine.expect("the engine starts"), faults)
}

#[test]
fn a_device_error_fails_its_batch_and_says_so() {
    let (engine, faults) = faulty(Settings::default());
    let (_first, first) = submit(&engine, request(&engine, 3, 1));
    end(&first).expect("painted");
    faults.device_error.store(true, Ordering::Relaxed);
    let jobs = [1, 2].map(|seed| submit(&engine, request(&engine, 20, seed)));
    for (_, heard) in &jobs {
        let Err(Failure::Error(error)) = end(heard) else { panic!("painted") };
        assert!(error.to_string().contains("injected"), "{error}");
    }
    assert!(!engine.load().alive);
    assert!(
        matches!(submit(&engine, request(&engine, 3, 1)).0, Err(Refusal::Dead(why)) if why.contains("injected"))
    );
}

/// Whoever hears of the failure asks at once, on the engine's own thread.
#[test]
fn the_engine_has_stopped_before_it_tells_of_a_device_error() {
    let (engine, faults) = faulty(Settings::default());
    faults.device_error.store(true, Ordering::Relaxed);
    let (heard, answers) = channel();
    let mut asked = Some(engine.clone());
    let on_event = Box::new(move |event| {
        if let Event::Failed(Failure::Error(_)) = event
            && let Some(asked) = asked.take()
        {
            let _ = heard.send((asked.load().alive, asked.submit(job(request(&asked, 2, 2)).0)));
        }
    });
    let _ticket = engine.submit(Job { on_event, ..job(request(&engine, 2, 1)).0 }).expect("taken");
    let (alive, again) = answers.recv_timeout(LONG).expect("it fails");
    assert!(!alive && matches!(again, Err(Refusal::Dead(_))));
}

struct Bug;

impl Observer for Bug {
    fn encoded(&self, _time: Duration) {
        panic!("a bug, on purpose");
    }
}

#[test]
fn a_panic_is_an_internal_error_and_ends_the_engine() {
    let engine = start("models/tiny", Settings::default(), Arc::new(Bug));
    let (_ticket, heard) = submit(&engine, request(&engine, 3, 1));
    let Err(Failure::Error(error)) = end(&heard) else { panic!("painted") };
    assert!(matches!(*error, Error::Internal(_)) && error.is_fatal(), "{error}");
    let message = error.to_string();
    assert!(message.starts_with("internal error: ") && !message.contains("CUDA"), "{message}");
    assert!(!engine.load().alive);
}

#[test]
fn a_picture_too_large_for_the_memory_fails_alone() {
    let (engine, faults) = faulty(Settings::default());
    let (_small, small) = submit(&engine, request(&engine, 30, 1));
    step(&small, 1);
    faults.most_bytes.store(4 << 20, Ordering::Relaxed);
    let (_large, large) = submit(&engine, Request { width: 512, height: 512, ..request(&engine, 3, 1) });
    let Err(Failure::Error(error)) = end(&large) else { panic!("painted") };
    assert!(matches!(*error, Error::OutOfMemory { .. }), "{error}");
    end(&small).expect("painted");
    let (_again, again) = submit(&engine, request(&engine, 3, 2));
    end(&again).expect("painted");
    assert!(engine.load().alive);
}
