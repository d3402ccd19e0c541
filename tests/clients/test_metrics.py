"""Both parsers of Prometheus' client."""

import urllib.request

from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

FAMILIES = {
    "sdrt_queue_depth": "gauge",
    "sdrt_running": "gauge",
    "sdrt_device_memory_bytes": "gauge",
    "sdrt_rows_per_step": "histogram",
    "sdrt_queue_seconds": "histogram",
    "sdrt_encode_seconds": "histogram",
    "sdrt_denoise_seconds": "histogram",
    "sdrt_decode_seconds": "histogram",
    "sdrt_steps": "counter",
    "sdrt_pictures": "counter",
    "sdrt_cancellations": "counter",
    "sdrt_rejections": "counter",
    "sdrt_failures": "counter",
}


def test_metrics(tiny):
    with urllib.request.urlopen(f"{tiny}/metrics") as response:
        assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        text = response.read().decode()
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(text)}
    assert {name: family.type for name, family in families.items()} == FAMILIES
    assert all(family.documentation for family in families.values())
    samples = {sample.name for family in parser.text_string_to_metric_families(text) for sample in family.samples}
    assert {"sdrt_steps_total", "sdrt_queue_seconds_bucket", "sdrt_running"} <= samples
