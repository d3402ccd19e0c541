//! How a server ends.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Server, small};

fn runs(server: &Server) -> bool {
    server.metric("sdrt_running") == 1.0
}

#[test]
fn what_is_in_flight_is_finished() {
    let mut server = Server::start(&["--max-steps", "1000"]);
    thread::scope(|scope| {
        let server = &server;
        let painted = scope.spawn(|| server.generate(json!({ "num_inference_steps": 300 })));
        let streamed = scope.spawn(|| server.generate(json!({ "num_inference_steps": 300, "stream": true })));
        server.wait_for("both run", |server| server.metric("sdrt_running") == 2.0);
        server.terminate();
        painted.join().unwrap().ok();
        assert_eq!(streamed.join().unwrap().events().last().unwrap().0, "image_generation.completed");
    });
    assert_eq!(server.exit_code(), 0, "{}", server.log.lock().unwrap());
    assert!(TcpStream::connect(&server.address).is_err());
}

#[test]
fn what_is_not_finished_within_the_grace_is_told() {
    let mut server = Server::start(&["--max-steps", "1000", "--grace", "0.2"]);
    let body = small(json!({ "num_inference_steps": 900, "size": "256x256" }));
    thread::scope(|scope| {
        let server = &server;
        let painted = scope.spawn(|| server.post("/v1/images/generations", &body));
        server.wait_for("it runs", runs);
        server.terminate();
        let answer = painted.join().unwrap();
        answer.refused(503, None, "shutting down");
        assert!(answer.header("retry-after").is_some());
    });
    assert_eq!(server.exit_code(), 1);
    let told = |server: &Server| server.log.lock().unwrap().contains("1 pictures were not finished");
    server.wait_for("it is said", told);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start(&["--max-steps", "1000"]);
    let body = small(json!({ "num_inference_steps": 900, "size": "256x256" }));
    let url = server.url("/v1/images/generations");
    thread::spawn(move || {
        let request = super::agent().post(url).header("content-type", "application/json");
        // The connection breaks off.
        drop(request.send(body.to_string()));
    });
    server.wait_for("it runs", runs);
    server.terminate();
    server.wait_for("it stops", |server| server.log.lock().unwrap().contains("stopping"));
    let start = Instant::now();
    server.terminate();
    assert_eq!(server.exit_code(), 128 + 15);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn what_cannot_start_says_why() {
    let server = Server::start(&[]);
    let port = server.address.rsplit(':').next().unwrap();
    for (flags, sentence) in [
        (vec!["--port", port], "cannot listen there"),
        (vec!["--port", "0", "--cors", "example"], "--cors example: expected an origin"),
        (vec!["--port", "0", "--api-key", ""], "--api-key: is empty"),
        (vec!["--port", "0", "--max-batch", "0"], "--max-batch"),
    ] {
        let output = super::sdrt().args(["serve", "--device", "cpu"]).args(&flags).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(sentence), "{said}");
    }
}
