#!/usr/bin/env python3
"""Answers OpenAI's image endpoints with one picture of noise: shows how many requests a second `run.py` can make.

    python tools/load_test/stub_server.py [--port 7861] [--delay 0] [--reject 0]

Needs aiohttp and pillow.
"""

import argparse
import asyncio
import base64
import functools
import io
import json
import random

from aiohttp import web
from PIL import Image


@functools.cache
def picture(size):
    width, height = map(int, size.split("x"))
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), random.randbytes(3 * width * height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def answer(request):
    """A picture, with previews before it where they are asked for."""
    settings = await (request.post() if request.path.endswith("edits") else request.json())
    options = request.app["options"]
    await asyncio.sleep(options.delay)
    if random.random() < options.reject:
        error = {"message": "the queue is full", "type": "rate_limit_error", "param": None, "code": "queue_full"}
        return web.json_response({"error": error}, status=429, headers={"Retry-After": "1"})
    encoded = picture(settings["size"])
    if not settings.get("stream"):
        return web.json_response({"created": 0, "data": [{"b64_json": encoded, "seed": int(settings["seed"])}]})
    names = ["partial_image"] * settings["partial_images"] + ["completed"]
    events = [{"type": f"image_generation.{name}", "b64_json": encoded} for name in names]
    text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return web.Response(text=text, content_type="text/event-stream")


async def ready(_):
    return web.Response(text="ready")


def main():
    parser = argparse.ArgumentParser(description="Answers OpenAI's image endpoints with one picture of noise.")
    parser.add_argument("--port", type=int, default=7861)
    parser.add_argument("--delay", type=float, default=0, help="seconds before each answer")
    parser.add_argument("--reject", type=float, default=0, help="share of requests answered with 429")
    app = web.Application(client_max_size=64 << 20)
    app["options"] = parser.parse_args()
    app.router.add_post("/v1/images/generations", answer)
    app.router.add_post("/v1/images/edits", answer)
    app.router.add_get("/ready", ready)
    web.run_app(app, host="127.0.0.1", port=app["options"].port, print=None)


if __name__ == "__main__":
    main()
