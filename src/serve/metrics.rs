//! What is measured, for Prometheus.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::App;
use super::errors::ApiError;
use crate::engine::{Load, Observer};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Told by the engine, read by `/metrics`.
pub struct Metrics {
    registry: Registry,
    queue_depth: Gauge,
    running: Gauge,
    device_memory: Gauge,
    rows_per_step: Histogram,
    queue: Histogram,
    encode: Histogram,
    denoise: Histogram,
    decode: Histogram,
    steps: Counter<u64, AtomicU64>,
    pictures: Counter<u64, AtomicU64>,
    cancellations: Counter<u64, AtomicU64>,
    rejections: Counter<u64, AtomicU64>,
    failures: Counter<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = |first: f64| Histogram::new(exponential_buckets(first, 2.0, 16));
        let mut metrics = Metrics {
            registry: Registry::with_prefix("sdrt"),
            queue_depth: Gauge::default(),
            running: Gauge::default(),
            device_memory: Gauge::default(),
            rows_per_step: Histogram::new([1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0]),
            queue: seconds(0.005),
            encode: seconds(0.0005),
            denoise: seconds(0.01),
            decode: seconds(0.001),
            steps: Counter::default(),
            pictures: Counter::default(),
            cancellations: Counter::default(),
            rejections: Counter::default(),
            failures: Counter::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("queue_depth", "Pictures that wait", self.queue_depth.clone());
        registry.register("running", "Pictures that are being denoised", self.running.clone());
        let memory = self.device_memory.clone();
        registry.register_with_unit("device_memory", "Device memory in use", Unit::Bytes, memory);
        let rows = self.rows_per_step.clone();
        registry.register("rows_per_step", "Rows of a call of the U-Net", rows);
        for (name, help, histogram) in [
            ("queue", "Waiting of a picture", &self.queue),
            ("encode", "Encoding the prompts of a picture", &self.encode),
            ("denoise", "Denoising a picture", &self.denoise),
            ("decode", "Decoding a picture", &self.decode),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        for (name, help, counter) in [
            ("steps", "Steps of batches", &self.steps),
            ("pictures", "Pictures that were painted", &self.pictures),
            ("cancellations", "Pictures that were cancelled", &self.cancellations),
            ("rejections", "Pictures that were refused", &self.rejections),
            ("failures", "Pictures that failed", &self.failures),
        ] {
            registry.register(name, help, counter.clone());
        }
    }

    /// All metrics in the text format of OpenMetrics.
    fn encode(&self, load: &Load) -> Result<String, std::fmt::Error> {
        let Load { waiting, running, memory_bytes, .. } = *load;
        self.queue_depth.set(waiting as i64);
        self.running.set(running as i64);
        self.device_memory.set(memory_bytes as i64);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Observer for Metrics {
    fn queued(&self, time: Duration) {
        self.queue.observe(time.as_secs_f64());
    }
    fn encoded(&self, time: Duration) {
        self.encode.observe(time.as_secs_f64());
    }
    fn denoised(&self, time: Duration) {
        self.denoise.observe(time.as_secs_f64());
    }
    fn decoded(&self, time: Duration) {
        self.decode.observe(time.as_secs_f64());
    }
    fn stepped(&self, rows: usize) {
        self.rows_per_step.observe(rows as f64);
        self.steps.inc();
    }
    fn painted(&self) {
        self.pictures.inc();
    }
    fn cancelled(&self) {
        self.cancellations.inc();
    }
    fn refused(&self) {
        self.rejections.inc();
    }
    fn failed(&self) {
        self.failures.inc();
    }
}

/// What the server has done, and what it does.
#[utoipa::path(get, path = "/metrics", tag = "operation", responses(
    (status = 200, description = "In the text format of OpenMetrics", body = String, content_type = OPEN_METRICS)
))]
pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let text = app.metrics.encode(&app.engine.load()).map_err(|_| ApiError::internal())?;
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response())
}
