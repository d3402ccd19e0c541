//! What clients may do wrong, and that it harms nobody else.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{PATIENCE, Server, small};

/// Takes many seconds.
const LONG: [&str; 2] = ["--max-steps", "1000"];

fn long() -> serde_json::Value {
    small(json!({ "num_inference_steps": 900, "size": "128x128" }))
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(&server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn request(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: \
         {length}\r\n\r\n{body}"
    )
}

fn send(server: &Server, body: &serde_json::Value) -> TcpStream {
    let mut stream = connect(server);
    stream.write_all(request(&body.to_string()).as_bytes()).unwrap();
    stream
}

/// Clients of a server with batches of one. The next picture may be prepared already while one is denoised.
fn until_one_waits(server: &Server) -> Vec<TcpStream> {
    let mut clients = Vec::new();
    while server.metric("sdrt_queue_depth") == 0.0 {
        assert!(clients.len() < 5);
        clients.push(send(server, &long()));
        thread::sleep(Duration::from_millis(300));
    }
    clients
}

fn is_idle(server: &Server) -> bool {
    server.metric("sdrt_running") == 0.0 && server.metric("sdrt_queue_depth") == 0.0
}

#[test]
fn pictures_of_clients_that_are_gone_are_cancelled() {
    let server = Server::start(&LONG);
    let mut streamed = long();
    streamed["stream"] = true.into();
    streamed["progress"] = true.into();
    let mut several = long();
    several["n"] = 3.into();
    for (body, pictures) in [(long(), 1.0), (streamed, 1.0), (several, 3.0)] {
        let before = server.metric("sdrt_cancellations_total");
        let client = send(&server, &body);
        server.wait_for("it runs", |server| server.metric("sdrt_running") > 0.0);
        drop(client);
        let start = Instant::now();
        server.wait_for("it is cancelled", |server| {
            server.metric("sdrt_cancellations_total") == before + pictures && is_idle(server)
        });
        println!("cancelled after {:?}", start.elapsed());
    }
    server.wait_for("lines", |server| server.log.lock().unwrap().matches("the client is gone").count() == 3);
    assert_eq!(server.metric("sdrt_pictures_total"), 0.0);
}

#[test]
fn what_is_sent_by_half_waits_for_nobody() {
    let server = Server::start(&["--read-timeout", "1"]);
    let whole = request(&small(json!({})).to_string());
    let mut clients: Vec<TcpStream> = [5, 60, whole.len() - 10]
        .map(|sent| {
            let mut client = connect(&server);
            client.write_all(&whole.as_bytes()[..sent]).unwrap();
            client
        })
        .into();
    server.generate(json!({})).ok();
    let answers: Vec<String> = clients
        .iter_mut()
        .map(|client| {
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            answer
        })
        .collect();
    assert!(answers[2].starts_with("HTTP/1.1 408 ") && answers[2].contains("within 1 s"), "{answers:?}");
    assert!(answers[0].is_empty() || answers[0].starts_with("HTTP/1.1 4"), "{answers:?}");
    // One that goes away in the middle.
    let mut client = connect(&server);
    client.write_all(&whole.as_bytes()[..whole.len() - 10]).unwrap();
    drop(client);
    server.generate(json!({})).ok();
}

#[test]
fn slow_readers_hold_up_nobody() {
    let server = Server::start(&[]);
    let body = small(json!({ "n": 8, "size": "256x256", "stream": true, "partial_images": 5 }));
    let slow: Vec<TcpStream> = (0..4).map(|_| send(&server, &body)).collect();
    server.wait_for("all are painted", |server| server.metric("sdrt_pictures_total") == 32.0);
    assert!(is_idle(&server));
    server.generate(json!({})).ok();
    for mut client in slow {
        let mut answer = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while answer.windows(5).rev().take(64).all(|end| end != b"0\r\n\r\n") {
            let read = client.read(&mut buffer).unwrap();
            assert!(read > 0);
            answer.extend(&buffer[..read]);
        }
        let text = String::from_utf8_lossy(&answer);
        assert_eq!(text.matches("event: image_generation.completed").count(), 8);
    }
}

#[test]
fn ten_thousand_junk_requests_change_nothing() {
    let server = Server::start(&[]);
    let before = server.generate(json!({ "seed": 1 })).ok()["data"].clone();
    let fields = |fields| request(&small(fields).to_string());
    let junk = [
        "\0\x01\x02 nonsense\r\n\r\n".to_string(),
        "GET / HTTP/9.9\r\n\r\n".to_string(),
        "GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n".to_string(),
        "BREW / HTTP/1.1\r\nHost: a\r\n\r\n".to_string(),
        "POST /v1/images/edits HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n\
         Content-Length: 9\r\n\r\n--x\r\n\r\n\r\n"
            .to_string(),
        "POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n".to_string(),
        "POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n".to_string(),
        request("{"),
        request("null"),
        request(&"[".repeat(10_000)),
        fields(json!({ "prompt": 5 })),
        fields(json!({ "n": 1e300 })),
        fields(json!({ "size": "99999x99999" })),
        fields(json!({ "size": "18446744073709551615x8" })),
        fields(json!({ "num_inference_steps": 1_000_000_000_000_u64 })),
        fields(json!({ "guidance_scale": 1e39, "num_inference_steps": 0 })),
        fields(json!({ "sampler": "\u{0}", "clip_skip": 0 })),
        fields(json!({ "sigmas": "1,2,3" })),
        fields(json!({ "prompt": "(a:1e999)", "prompt_style": "a1111", "guidance_rescale": -1 })),
        format!("GET /pictures/{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(10_000)),
    ];
    const CLIENTS: usize = 8;
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, junk) = (&server, &junk);
            scope.spawn(move || {
                for i in 0..10_000 / CLIENTS {
                    let text = &junk[(i + client) % junk.len()];
                    let mut stream = connect(server);
                    // The server may have answered and closed before it has read all.
                    let _ = stream.write_all(text.as_bytes());
                    let mut head = [0; 16];
                    let read = stream.read(&mut head).unwrap_or(0);
                    let head = String::from_utf8_lossy(&head[..read]);
                    let is_refused = head.is_empty() || head.starts_with("HTTP/1.1 4");
                    assert!(is_refused || text.contains("passwd"), "{text}: {head}");
                }
            });
        }
    });
    assert_eq!(server.generate(json!({ "seed": 1 })).ok()["data"], before);
    assert_eq!(server.metric("sdrt_failures_total"), 0.0);
    assert!(is_idle(&server) && !server.log.lock().unwrap().contains("panic"));
}

#[test]
fn a_full_queue_and_a_short_deadline_are_answered_with_429() {
    let server = Server::start(&[&LONG[..], &["--max-batch", "1", "--max-queue", "1"]].concat());
    let clients = until_one_waits(&server);
    let full = server.generate(json!({}));
    full.refused(429, None, "too many pictures wait");
    assert_eq!(full.json()["error"]["code"], "queue_full");
    assert!(full.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    drop(clients);
    server.wait_for("all are cancelled", is_idle);

    server.generate(json!({})).ok();
    let late = server.generate(json!({ "num_inference_steps": 900, "size": "256x256", "deadline": 0.01 }));
    late.refused(429, None, "deadline");
    assert!(late.header("retry-after").is_some());
    server.generate(json!({ "deadline": 60 })).ok();
    assert_eq!(server.metric("sdrt_rejections_total"), 2.0);
}

#[test]
fn the_important_are_painted_first() {
    let server = Server::start(&[&LONG[..], &["--max-batch", "1"]].concat());
    let clients = until_one_waits(&server);
    thread::scope(|scope| {
        let finished = |priority: i32| {
            let server = &server;
            scope.spawn(move || {
                server.generate(json!({ "priority": priority, "size": "128x128" })).ok();
                Instant::now()
            })
        };
        let low = finished(-1);
        server.wait_for("two wait", |server| server.metric("sdrt_queue_depth") == 2.0);
        let high = finished(1);
        server.wait_for("three wait", |server| server.metric("sdrt_queue_depth") == 3.0);
        drop(clients);
        assert!(high.join().unwrap() < low.join().unwrap());
    });
}
