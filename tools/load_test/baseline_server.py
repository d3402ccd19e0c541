#!/usr/bin/env python3
"""The server to compare with: diffusers behind OpenAI's POST /v1/images/generations, with dynamic batching of requests.

    python tools/load_test/baseline_server.py --random-weights sd15 [--compile | --cuda-graph] [--port 7861]
    python tools/load_test/baseline_server.py --model FOLDER [--device cpu]

Requests wait up to --max-wait seconds (2) for others, --max-batch pictures (12) are one call of the pipeline, and what
comes while it runs waits for it to end. diffusers gives a whole batch one number of steps, one size and one guidance
scale, so only requests that agree in them are batched. fp16 in channels_last on CUDA, fp32 on a CPU; DDIM, whose steps
are one evaluation of the U-Net each. --cuda-graph and --compile (reduce-overhead) need batches of one size: those that
are not full are filled up with their last request. Pictures are packed as PNG on other threads, while the next batch
is painted. Needs aiohttp and tools/requirements.txt.
"""

import argparse
import asyncio
import base64
import io
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import torch._inductor.config
from aiohttp import web
from request_batching import RequestBatcher

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from make_checkpoint import MODELS  # noqa: E402
from peers_pytorch import WAYS, make_pipeline  # noqa: E402

MOST_PICTURES = 10
ENCODERS = 4


@dataclass(frozen=True)
class Key:
    """What one call of the pipeline has one of."""

    steps: int
    width: int
    height: int
    guidance_scale: float


@dataclass(frozen=True)
class Job:
    prompt: str
    negative_prompt: str
    seed: int


class Painter:
    """A pipeline; with `fixed_batch`, all of its calls have as many rows."""

    def __init__(self, pipeline, fixed_batch=None):
        self.pipeline, self.fixed_batch = pipeline, fixed_batch

    def __call__(self, key, jobs):
        """One PIL image for each job."""
        rows = jobs + [jobs[-1]] * ((self.fixed_batch or len(jobs)) - len(jobs))
        images = self.pipeline(
            prompt=[row.prompt for row in rows],
            negative_prompt=[row.negative_prompt for row in rows],
            generator=[torch.Generator(self.pipeline.device).manual_seed(row.seed) for row in rows],
            num_inference_steps=key.steps,
            guidance_scale=key.guidance_scale,
            width=key.width,
            height=key.height,
        ).images
        return images[: len(jobs)]

    def warm_up(self, key, max_batch):
        """Calls with each number of rows: the first is when cuDNN tries its algorithms, and when graphs are made."""
        for rows in [self.fixed_batch] if self.fixed_batch else range(1, max_batch + 1):
            self(key, [Job("", "", 0)] * rows)


def load(folder, device):
    dtype = torch.float32 if device == "cpu" else torch.float16
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    for network in (pipeline.unet, pipeline.vae):
        network.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def parse(body, default_size):
    """The key and the jobs of a request; ValueError says what is wrong with it."""
    if body.get("stream") or body.get("response_format", "b64_json") != "b64_json":
        raise ValueError("response_format: only b64_json, and no stream")
    if body.get("output_format", "png") != "png":
        raise ValueError("output_format: only png")
    if body.get("sampler", "ddim") != "ddim":
        raise ValueError("sampler: only ddim")
    size = body.get("size", "auto")
    width, height = default_size if size == "auto" else map(int, size.split("x"))
    key = Key(int(body.get("num_inference_steps", 20)), width, height, float(body.get("guidance_scale", 7.5)))
    pictures, seed = int(body.get("n", 1)), int(body.get("seed", time.time_ns() & 0xFFFFFFFF))
    if not 1 <= pictures <= MOST_PICTURES:
        raise ValueError(f"n: 1 to {MOST_PICTURES}")
    return key, [Job(body["prompt"], body.get("negative_prompt", ""), seed + i) for i in range(pictures)]


class Server:
    def __init__(self, batcher, default_size):
        self.batcher, self.default_size = batcher, default_size
        self.encoders = ThreadPoolExecutor(ENCODERS)

    async def generate(self, request):
        try:
            key, jobs = parse(await request.json(), self.default_size)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return answer_error(400, "invalid_request_error", repr(error))
        try:
            data = await asyncio.gather(*(self.paint(key, job) for job in jobs))
        except Exception as error:
            return answer_error(500, "server_error", repr(error))
        return web.json_response({"created": int(time.time()), "data": data})

    async def paint(self, key, job):
        image = await asyncio.wrap_future(self.batcher.submit(key, job))
        encoded = await asyncio.get_running_loop().run_in_executor(self.encoders, encode, image)
        return {"b64_json": encoded, "seed": job.seed}


def encode(image):
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def answer_error(status, kind, message):
    error = {"message": message, "type": kind, "param": None, "code": None}
    return web.json_response({"error": error}, status=status)


async def ready(_):
    return web.Response(text="ready")


def main():
    parser = argparse.ArgumentParser(description="diffusers behind OpenAI's interface, batching requests.")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--random-weights", choices=MODELS, help="a model of this shape")
    model.add_argument("--model", help="folder in the layout of diffusers")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--compile", dest="way", action="store_const", const="compile", help="torch.compile")
    speed.add_argument(
        "--cuda-graph", dest="way", action="store_const", const="graph", help="a CUDA graph a network"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--max-batch", type=int, default=12, help="pictures")
    parser.add_argument("--max-wait", type=float, default=2.0, help="seconds")
    parser.add_argument("--warm-up-size", default="512x512", metavar="WxH", help="also where a request says auto")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7861)
    arguments = parser.parse_args()
    if arguments.way and arguments.model:
        parser.error("--compile and --cuda-graph go with --random-weights")

    torch.backends.cudnn.benchmark = True
    torch._inductor.config.conv_1x1_as_mm = True
    if arguments.model:
        pipeline = load(arguments.model, arguments.device)
    else:
        way = WAYS[arguments.way or "channels-last"]
        pipeline = make_pipeline(MODELS[arguments.random_weights], way, arguments.device)
    painter = Painter(pipeline, fixed_batch=arguments.max_batch if arguments.way else None)
    size = tuple(map(int, arguments.warm_up_size.split("x")))
    batcher = RequestBatcher(painter, arguments.max_batch, arguments.max_wait)
    start, warm = time.monotonic(), Future()

    def work():
        # On this thread too: torch.compile's graphs belong to the thread that made them.
        try:
            warm.set_result(painter.warm_up(Key(2, *size, 7.5), arguments.max_batch))
        except Exception as error:
            warm.set_exception(error)
        batcher.run()

    threading.Thread(target=work, daemon=True).start()
    warm.result()
    print(f"warm after {time.monotonic() - start:.0f} s; http://{arguments.host}:{arguments.port}", flush=True)

    app = web.Application()
    app.router.add_post("/v1/images/generations", Server(batcher, size).generate)
    app.router.add_get("/ready", ready)
    web.run_app(app, host=arguments.host, port=arguments.port, print=None)


if __name__ == "__main__":
    main()
