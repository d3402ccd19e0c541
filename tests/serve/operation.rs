//! For those who run the server: its state, its metrics, its description, its log.

use serde_json::{Value, json};

use super::{Answer, Server, agent};

#[test]
fn the_state_is_told() {
    let server = Server::start(&[]);
    let health = server.get("/health").ok();
    assert_eq!(
        (&health["status"], &health["model"], &health["running"]),
        (&json!("ok"), &json!("tiny"), &json!(0))
    );
    assert_eq!(server.get("/ready").ok(), health);
    let page = server.get("/");
    assert!(page.text().starts_with("<!doctype html>"));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
}

#[test]
fn pictures_are_measured() {
    let server = Server::start(&["--max-images", "2"]);
    server.generate(json!({ "n": 2, "num_inference_steps": 3 })).ok();
    server.generate(json!({ "clip_skip": 99 })).refused(400, Some("clip_skip"), "");
    assert_eq!(server.metric("sdrt_pictures_total"), 2.0);
    let steps = server.metric("sdrt_steps_total");
    assert!((3.0..=6.0).contains(&steps), "{steps}");
    assert_eq!(server.metric("sdrt_rows_per_step_count"), steps);
    for stage in ["queue", "encode", "denoise", "decode"] {
        assert_eq!(server.metric(&format!("sdrt_{stage}_seconds_count")), 2.0, "{stage}");
    }
    for none in ["queue_depth", "running", "cancellations_total", "failures_total"] {
        assert_eq!(server.metric(&format!("sdrt_{none}")), 0.0, "{none}");
    }
    assert!(server.metric("sdrt_device_memory_bytes") > 1e5);
}

#[test]
fn the_description_has_what_there_is() {
    let server = Server::start(&[]);
    let document = server.get("/openapi.json").ok();
    for (path, item) in document["paths"].as_object().unwrap() {
        let named = path.replace("{model}", "tiny").replace("{id}", "none");
        for method in item.as_object().unwrap().keys().filter(|name| *name != "parameters") {
            let request = ureq::http::Request::builder().method(method.to_uppercase().as_str());
            let request = request.uri(server.url(&named)).body(()).unwrap();
            let answer = Answer::of(agent().run(request).unwrap());
            assert!(![405, 500].contains(&answer.status), "{method} {path}: {}", answer.text());
            let known = &item[method]["responses"];
            assert!(known.get(answer.status.to_string()).is_some(), "{method} {path}: {}", answer.status);
        }
    }
    let fields = &document["components"]["schemas"]["Fields"];
    assert_eq!((&fields["additionalProperties"], &fields["required"]), (&json!(false), &json!(["prompt"])));
}

#[test]
fn a_request_is_a_line_of_the_log() {
    let server = Server::start(&["--log-format", "json"]);
    let request = agent().get(server.url("/nothing")).header("x-request-id", "mine");
    assert_eq!(Answer::of(request.call().unwrap()).header("x-request-id"), Some("mine"));
    let answer = server.generate(json!({ "n": 2 }));
    let id = answer.header("x-request-id").unwrap().to_string();
    server.generate(json!({ "n": 9 }));
    let lines = || -> Vec<Value> {
        let log = server.log.lock().unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    server.wait_for("two lines", |_| lines().len() >= 2);
    let [done, refused] = &lines()[..] else { panic!("{:?}", lines()) };
    assert_eq!((&done["id"], &done["status"], &done["pictures"]), (&json!(id), &json!(200), &json!(2)));
    assert!(done["seconds"].is_number() && done["queue_seconds"].is_number(), "{done}");
    assert_eq!((&refused["status"], &refused["level"]), (&json!(400), &json!("INFO")));
    assert!(refused["error"].as_str().unwrap().contains("expected 1 to 8"), "{refused}");
}
