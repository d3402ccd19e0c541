//! Keys, origins, and what may be sent.

use serde_json::json;

use super::{Answer, Server, agent, small};

#[test]
fn a_key_is_asked_for() {
    let server = Server::start(&["--api-key", "secret"]);
    let models = |authorization: Option<&str>| {
        let request = agent().get(server.url("/v1/models"));
        let request = authorization.into_iter().fold(request, |r, value| r.header("authorization", value));
        Answer::of(request.call().unwrap())
    };
    models(Some("Bearer secret")).ok();
    models(Some("Basic bWU6c2VjcmV0")).ok();
    models(None).refused(401, None, "is missing");
    for wrong in ["Bearer secre", "Bearer secret2", "Basic bWU6c2VjcmU=", "secret"] {
        models(Some(wrong)).refused(401, None, "is wrong");
    }
    assert_eq!(models(None).header("www-authenticate"), Some("Bearer"));
    server.generate(json!({})).refused(401, None, "is missing");
    server.post("/sdapi/v1/txt2img", &json!({})).refused(401, None, "is missing");
    for open in ["/", "/page.js", "/style.css", "/health", "/ready", "/metrics", "/openapi.json"] {
        assert_eq!(server.get(open).status, 200, "{open}");
    }
}

#[test]
fn pages_of_other_origins_may_not_ask_unless_they_are_let() {
    let body = small(json!({ "num_inference_steps": 1 })).to_string();
    let from = |server: &Server, origin: &str| {
        let request = agent().post(server.url("/v1/images/generations")).header("origin", origin);
        Answer::of(request.header("content-type", "application/json").send(&body).unwrap())
    };
    let allowed = |answer: &Answer| answer.header("access-control-allow-origin").map(String::from);

    let server = Server::start(&[]);
    assert_eq!(from(&server, &server.url("")).status, 200);
    from(&server, "https://example.com").refused(403, None, "--cors");
    assert_eq!(allowed(&from(&server, &server.url(""))), None);

    let server = Server::start(&["--cors", "https://example.com"]);
    let answer = from(&server, "https://example.com");
    assert_eq!((answer.status, allowed(&answer).as_deref()), (200, Some("https://example.com")));
    let answer = from(&server, "https://example.org");
    assert_eq!((answer.status, allowed(&answer)), (403, None));
    let asked = ureq::http::Request::builder().method("OPTIONS").uri(server.url("/v1/images/generations"));
    let asked = asked.header("origin", "https://example.com").header("access-control-request-method", "POST");
    let asked =
        asked.header("access-control-request-headers", "authorization,content-type").body(()).unwrap();
    let answer = Answer::of(agent().run(asked).unwrap());
    assert_eq!(answer.header("access-control-allow-headers"), Some("authorization,content-type"));

    let server = Server::start(&["--cors", "*"]);
    let answer = from(&server, "https://example.org");
    assert_eq!((answer.status, allowed(&answer).as_deref()), (200, Some("*")));
}

#[test]
fn bodies_are_bounded_and_of_their_type() {
    let server = Server::start(&["--max-body", "1000"]);
    let large = small(json!({ "user": "x".repeat(1000) }));
    server.post("/v1/images/generations", &large).refused(413, None, "larger than 1000 bytes");
    let send = |content_type, body: &str| {
        let request = agent().post(server.url("/v1/images/generations")).header("content-type", content_type);
        Answer::of(request.send(body).unwrap())
    };
    send("text/plain", "{}").refused(415, None, "expected application/json");
    send("application/json", "{").refused(400, None, "EOF");
    send("application/json", "[]").refused(400, None, "");
    send("application/json; charset=utf-8", &small(json!({})).to_string()).ok();
    server.get("/v1/images/generations").refused(405, None, "knows no GET");
    server.get("/v1").refused(404, None, "there is no GET /v1");
}
