#!/usr/bin/env python3
"""Times one way to run SD 1.5 in PyTorch and diffusers; `tools/peers.py` starts it, a process for each way.

Random weights, 512x512, guidance on, DDIM, whose steps are one evaluation each. A line of JSON for each stage
and number of pictures:

    text_encode   StableDiffusionPipeline.encode_prompt: tokens, and the encoder on the prompt and on its negative
    unet_step     one call of the U-Net with 2 rows for each picture; guidance and sampler are not in it
    vae_decode    latents to a picture, which stays on the device
    image         the whole pipeline, prompt to 8-bit pixels in host memory

Pipeline and stages call the same functions of the same shapes, so that what a stage compiled, the picture uses.
All ways let cuDNN try its algorithms. The first call of a stage, in which it compiles or captures, is given apart.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import torch._inductor.config
import transformers
from checkpoint_format import END
from make_checkpoint import make_scheduler, make_text_encoder, make_unet, make_vae, save_tokenizer

PROMPT = "a lighthouse at dawn"
GUIDANCE = 7.5
LATENT_SIDE = 64
# Calls between two looks at the clock: enough of them hide the wait for the device, as a denoising loop does.
BLOCK_SECONDS = 0.1
MOST_CALLS = 50
FEWEST_REPEATS, MOST_REPEATS = 3, 50


@dataclass
class Way:
    dtype: torch.dtype = torch.float16
    memory_format: torch.memory_format = torch.channels_last
    fuse_qkv: bool = False
    # Takes a model's function and gives the one that is called instead.
    wrap: Callable | None = None


def captured(function):
    """`function` as one CUDA graph for each set of shapes; its outputs are overwritten by the next call."""
    graphs = {}

    def replay(*args, **kwargs):
        given = {**dict(enumerate(args)), **kwargs}
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        shapes = tuple((name, value.shape) for name, value in tensors.items())
        if shapes not in graphs:
            graphs[shapes] = capture(function, args, kwargs)
        graph, inputs, outputs = graphs[shapes]
        for name, value in tensors.items():
            inputs[name].copy_(value)
        graph.replay()
        return outputs

    return replay


def capture(function, args, kwargs):
    def own(value):
        return value.clone() if isinstance(value, torch.Tensor) else value

    args, kwargs = [own(value) for value in args], {name: own(value) for name, value in kwargs.items()}
    # Capture allows no first calls: cuDNN would look for algorithms, cuBLAS would allocate.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*args, **kwargs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*args, **kwargs)
    return graph, {**dict(enumerate(args)), **kwargs}, outputs


def compiled(function):
    return torch.compile(function, mode="reduce-overhead", dynamic=False)


WAYS = {
    "fp32": Way(dtype=torch.float32, memory_format=torch.contiguous_format),
    "eager": Way(memory_format=torch.contiguous_format),
    "channels-last": Way(),
    "graph": Way(wrap=captured),
    "compile": Way(fuse_qkv=True, wrap=compiled),
}


def make_pipeline(way, device):
    torch.manual_seed(0)
    models = {"text_encoder": make_text_encoder, "unet": make_unet, "vae": make_vae}
    with torch.device(device):
        models = {name: make().to(way.dtype).eval().requires_grad_(False) for name, make in models.items()}
    for name in ("unet", "vae"):
        models[name].to(memory_format=way.memory_format)
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder), END)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    pipeline = diffusers.StableDiffusionPipeline(
        **models,
        tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler.from_config(make_scheduler().config, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    if way.fuse_qkv:
        pipeline.fuse_qkv_projections()
    if way.wrap:
        pipeline.text_encoder.forward = way.wrap(pipeline.text_encoder.forward)
        pipeline.unet.forward = way.wrap(pipeline.unet.forward)
        pipeline.vae.decode = way.wrap(pipeline.vae.decode)
    return pipeline


def stages_of(pipeline, way, images, steps):
    """What is timed, by stage, with the arguments that the pipeline itself passes: others would compile anew."""
    device, unet = pipeline.device, pipeline.unet.config

    def noise(*shape):
        return torch.randn(shape, device=device, dtype=way.dtype)

    def latents_of(rows):
        latents = noise(rows, unet.in_channels, LATENT_SIDE, LATENT_SIDE)
        return latents.contiguous(memory_format=way.memory_format)

    latents, both = latents_of(images), latents_of(2 * images)
    timestep = torch.tensor(500, device=device)
    states = noise(2 * images, pipeline.tokenizer.model_max_length, unet.cross_attention_dim)
    no_conditions = dict(timestep_cond=None, cross_attention_kwargs=None, added_cond_kwargs=None)
    return {
        "text_encode": lambda: pipeline.encode_prompt(PROMPT, device, images, True, ""),
        "unet_step": lambda: pipeline.unet(
            both, timestep, encoder_hidden_states=states, **no_conditions, return_dict=False
        ),
        "vae_decode": lambda: pipeline.vae.decode(latents, return_dict=False, generator=None),
        "image": lambda: pipeline(
            PROMPT,
            negative_prompt="",
            latents=latents,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            num_images_per_prompt=images,
            output_type="pil",
        ),
    }


def seconds_of(call, count=1):
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def time_stage(call, seconds):
    """Milliseconds of a call, and seconds of the first, which compiles; the second still warms up."""
    first_s = seconds_of(call)
    count = max(1, min(MOST_CALLS, int(BLOCK_SECONDS / seconds_of(call))))
    start, times = time.perf_counter(), []
    while len(times) < FEWEST_REPEATS or (len(times) < MOST_REPEATS and time.perf_counter() - start < seconds):
        times.append(1e3 * seconds_of(call, count))
    return {
        "median_ms": statistics.median(times),
        "min_ms": min(times),
        "max_ms": max(times),
        "repeats": len(times),
        "first_s": first_s,
    }


def versions():
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


# Not inference_mode: the pipeline runs under no_grad, and torch.compile compiles for each of them.
@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description="Times one way to run SD 1.5 in PyTorch.")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--batches", default="1,2,4,8")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    torch.backends.cudnn.benchmark = True
    torch._inductor.config.conv_1x1_as_mm = True

    way = WAYS[arguments.way]
    pipeline = make_pipeline(way, "cuda")
    for images in map(int, arguments.batches.split(",")):
        for stage, call in stages_of(pipeline, way, images, arguments.steps).items():
            row = {"stage": stage, "images": images, "steps": arguments.steps, "versions": versions()}
            print(json.dumps(row | time_stage(call, arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
