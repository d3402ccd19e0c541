"""Speaks the part of sdrt's HTTP interface that the page uses, and paints gradients.

`python stub_server.py` serves the page at http://127.0.0.1:7860 to look at.
"""

import base64
import json
import random
import struct
import threading
import time
import zlib
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).parents[2] / "src/serve/page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
MODEL = {
    "id": "emoji",
    "object": "model",
    "created": 1767225600,
    "owned_by": "sdrt",
    "sdrt": {
        "family": "sd1",
        "default_size": "256x256",
        "default_steps": 25,
        "default_guidance_scale": 5.0,
        "default_sampler": "ddim",
        "samplers": ["ddim", "euler", "euler-a", "dpm++2m"],
    },
}
FIELDS = {
    "prompt", "n", "size", "response_format", "output_format", "stream", "partial_images", "progress",
    "negative_prompt", "num_inference_steps", "guidance_scale", "sampler", "seed", "strength",
}


def png(width, height, seed, text=""):
    """Hills under a sun, in the colours of the seed."""
    colours = random.Random(seed)
    sky, hill = ([colours.randrange(40, 230) for _ in range(3)] for _ in range(2))
    sun_x, sun_y = colours.uniform(0.2, 0.8) * width, 0.3 * height
    rows = []
    for y in range(height):
        row = bytearray(b"\0")
        for x in range(width):
            if y > height * (0.72 - 0.12 * ((x / width - 0.5) ** 2) * 4):
                row += bytes(hill)
            elif (x - sun_x) ** 2 + (y - sun_y) ** 2 < (0.13 * height) ** 2:
                row += b"\xff\xee\xbb"
            else:
                row += bytes(min(255, c + 60 * y // height) for c in sky)
        rows.append(row)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    described = chunk(b"tEXt", b"parameters\0" + text.encode("latin-1", "replace")) if text else b""
    pixels = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + described + pixels + chunk(b"IEND", b"")


class Stub(ThreadingHTTPServer):
    """Paints two pictures at a time; others wait in its queue."""

    daemon_threads = True

    def __init__(self, port=0, step_seconds=0.02):
        super().__init__(("127.0.0.1", port), Handler)
        self.step_seconds = step_seconds
        self.lock = threading.Lock()
        self.painting = 0
        self.queue = []
        self.cancellations = 0

    def handle_error(self, request, client_address):
        """A client that goes away is no error."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, message):
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self.answer(status, "application/json", json.dumps({"error": error}).encode())

    def do_GET(self):
        if self.path in FILES:
            name, kind = FILES[self.path]
            self.answer(200, kind, (PAGE / name).read_bytes())
        elif self.path == "/v1/models":
            body = json.dumps({"object": "list", "data": [MODEL]})
            self.answer(200, "application/json", body.encode())
        elif self.path == "/metrics":
            self.answer(200, "text/plain", f"sdrt_cancellations_total {self.server.cancellations}\n".encode())
        else:
            self.refuse(404, f"Nothing is at {self.path}.")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/images/generations":
            self.paint("image_generation", json.loads(body))
        elif self.path == "/v1/images/edits":
            kind = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            fields = {
                part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                for part in message_from_bytes(kind + body).get_payload()
            }
            if not fields.pop("image", b"").startswith((b"\x89PNG", b"\xff\xd8", b"RIFF")):
                return self.refuse(400, "image: expected a PNG, JPEG or WebP.")
            self.paint("image_edit", {name: value.decode() for name, value in fields.items()})
        else:
            self.refuse(404, f"Nothing is at {self.path}.")

    def paint(self, kind, body):
        if unknown := body.keys() - FIELDS:
            return self.refuse(400, f"{min(unknown)}: there is no such field.")
        steps = int(body.get("num_inference_steps", MODEL["sdrt"]["default_steps"]))
        previews = int(body.get("partial_images", 0))
        seed = int(body["seed"]) if "seed" in body else random.randrange(2**32)
        size = body.get("size", MODEL["sdrt"]["default_size"])
        width, height = map(int, size.split("x"))
        if width > 1024 or height > 1024:
            return self.refuse(400, f"size: {size} is larger than 1024x1024, the largest that this server paints.")

        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self.wait_for_turn()
            try:
                self.send_progress()
                for step in range(1, steps + 1):
                    time.sleep(self.server.step_seconds)
                    self.send_progress(step, steps, left=(steps - step) * self.server.step_seconds)
                    index = step * (previews + 1) // steps - 1
                    if step < steps and index > (step - 1) * (previews + 1) // steps - 1:
                        preview = base64.b64encode(png(width // 8, height // 8, seed)).decode()
                        self.send(f"{kind}.partial_image", {"b64_json": preview, "partial_image_index": index})
                said = f"{body['prompt']}\nSteps: {steps}, Seed: {seed}"
                picture = base64.b64encode(png(width, height, seed, said)).decode()
                self.send(f"{kind}.completed", {"b64_json": picture, "seed": seed, "size": size})
            finally:
                with self.server.lock:
                    self.server.painting -= 1
        except OSError:
            with self.server.lock:
                self.server.cancellations += 1

    def wait_for_turn(self):
        server = self.server
        server.queue.append(self)
        try:
            while True:
                with server.lock:
                    place = server.queue.index(self) + 1
                    if place == 1 and server.painting < 2:
                        server.painting += 1
                        break
                self.send_progress(place=place, left=place)
                time.sleep(0.05)
        finally:
            server.queue.remove(self)

    def send_progress(self, step=0, steps=0, place=0, left=None):
        self.send("sdrt.progress", {"step": step, "steps": steps, "queue_position": place, "predicted_seconds": left})

    def send(self, event, data):
        self.wfile.write(f"event: {event}\ndata: {json.dumps({'type': event} | data)}\n\n".encode())


if __name__ == "__main__":
    Stub(port=7860, step_seconds=0.1).serve_forever()
