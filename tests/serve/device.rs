//! A device that fails: the server in this process, on a machine that does so on command.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sdrt::engine::{self, Engine};
use sdrt::location::Location;
use sdrt::pipeline::{Model, ModelFiles};
use sdrt::serve::{self, Limits, Metrics, Timeouts};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::faulty::Faults;
use super::{Answer, agent, small, tiny};

struct Local {
    address: String,
    faults: Arc<Faults>,
    _runtime: Runtime,
}

impl Local {
    fn start() -> Self {
        let faults = Arc::new(Faults::default());
        let given = faults.clone();
        let model = Model::Files(ModelFiles::from(Location::from(std::path::PathBuf::from(tiny()))));
        let metrics = Arc::new(Metrics::default());
        let engine = Engine::start_on(model, || given.open(), engine::Settings::default(), metrics.clone());
        let settings = serve::Settings {
            model: "tiny".into(),
            refiner: None,
            api_key: None,
            cors: Vec::new(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            grace: Duration::ZERO,
        };
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        runtime.spawn(serve::serve(listener, engine.unwrap(), metrics, settings, std::future::pending()));
        Local { address, faults, _runtime: runtime }
    }

    fn generate(&self, fields: Value) -> Answer {
        let request = agent().post(format!("http://{}/v1/images/generations", self.address));
        let request = request.header("content-type", "application/json");
        Answer::of(request.send(small(fields).to_string()).unwrap())
    }

    fn get(&self, path: &str) -> Answer {
        Answer::of(agent().get(format!("http://{}{path}", self.address)).call().unwrap())
    }
}

#[test]
fn an_error_of_the_device_is_told_and_the_server_is_not_ready() {
    let server = Local::start();
    server.generate(json!({})).ok();
    server.faults.device_error.store(true, Ordering::Relaxed);
    let failed = server.generate(json!({ "n": 2 }));
    failed.refused(500, None, "injected");
    assert_eq!(failed.json()["error"]["code"], "device_error");
    let streamed = server.generate(json!({ "stream": true }));
    streamed.refused(503, None, "the engine has stopped");
    for path in ["/health", "/ready"] {
        server.get(path).refused(503, None, "the engine has stopped");
    }
    assert_eq!(server.get("/metrics").status, 200);
}

#[test]
fn an_error_in_a_stream_is_its_last_event() {
    let server = Local::start();
    server.faults.device_error.store(true, Ordering::Relaxed);
    let events = server.generate(json!({ "stream": true })).events();
    let (name, event) = events.last().unwrap();
    assert_eq!((name.as_str(), &event["error"]["code"]), ("error", &json!("device_error")));
}

#[test]
fn a_picture_too_large_for_the_memory_fails_alone() {
    let server = Local::start();
    server.generate(json!({})).ok();
    server.faults.most_bytes.store(4 << 20, Ordering::Relaxed);
    let failed = server.generate(json!({ "size": "512x512" }));
    failed.refused(500, None, "out of memory");
    assert_eq!(failed.json()["error"]["code"], "out_of_memory");
    server.generate(json!({})).ok();
    assert_eq!(server.get("/ready").status, 200);
}
