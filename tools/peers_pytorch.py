#!/usr/bin/env python3
"""Times one way to run a model in PyTorch and diffusers; `tools/peers.py` starts it, a process for each way.

Random weights; the pipeline's own size and guidance; DDIM, whose steps are one evaluation each. A line of JSON for
each stage and number of pictures:

    text_encode   encode_prompt: tokens, and the encoders on the prompt, with SD 1.5 on the empty negative prompt too
    unet_step     one call of the U-Net with 2 rows for each picture; guidance and sampler are not in it
    vae_decode    latents to a picture, which stays on the device
    image         the whole pipeline, prompt to 8-bit pixels in host memory

Pipeline and stages call the same functions of the same shapes, so that what a stage compiled, the picture uses.
All ways let cuDNN try its algorithms; attention is PyTorch's scaled_dot_product_attention, and the rows of the U-Net
name the kernels that it ran. The first call of a stage, in which it compiles or captures, is given apart.

XL's VAE states `force_upcast`: to decode, its pipeline casts an fp16 VAE to fp32, and back afterwards. Graphs and
compiled code would not outlive that, so here it is fp32 from the start, in every way; what the two casts take is not
in the times.
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
from make_checkpoint import MODELS, save_tokenizer

PROMPT = "a lighthouse at dawn"
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


def tensors_in(arguments, place=()):
    """Tensors by their places in a dictionary and in those within it."""
    tensors = {}
    for name, value in arguments.items():
        if isinstance(value, dict):
            tensors |= tensors_in(value, (*place, name))
        elif isinstance(value, torch.Tensor):
            tensors[*place, name] = value
    return tensors


def captured(function):
    """`function` as one CUDA graph for each set of shapes; its outputs are overwritten by the next call."""
    graphs = {}

    def replay(*args, **kwargs):
        tensors = tensors_in({**dict(enumerate(args)), **kwargs})
        shapes = tuple((place, tensor.shape) for place, tensor in tensors.items())
        if shapes not in graphs:
            graphs[shapes] = capture(function, args, kwargs)
        graph, inputs, outputs = graphs[shapes]
        for place, tensor in tensors.items():
            inputs[place].copy_(tensor)
        graph.replay()
        return outputs

    return replay


def capture(function, args, kwargs):
    def own(value):
        if isinstance(value, dict):
            return {name: own(part) for name, part in value.items()}
        return value.clone() if isinstance(value, torch.Tensor) else value

    args, kwargs = [own(value) for value in args], own(kwargs)
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
    return graph, tensors_in({**dict(enumerate(args)), **kwargs}), outputs


def compiled(function):
    return torch.compile(function, mode="reduce-overhead", dynamic=False)


WAYS = {
    "fp32": Way(dtype=torch.float32, memory_format=torch.contiguous_format),
    "eager": Way(memory_format=torch.contiguous_format),
    "channels-last": Way(),
    "graph": Way(wrap=captured),
    "compile": Way(fuse_qkv=True, wrap=compiled),
}


def keep_states(encode):
    """`encode` with a copy of the hidden states that XL takes, which it joins to those of its other encoder: that one's
    call overwrites what compiled code gave before."""

    def encode_and_keep(*args, **kwargs):
        output = encode(*args, **kwargs)
        states = [*output.hidden_states]
        states[-2] = states[-2].clone()
        return type(output)(**{**output, "hidden_states": tuple(states)})

    return encode_and_keep


def upcast(decode):
    """`decode` on fp32 latents. Whoever calls it, it is called with the same arguments."""

    def decode_fp32(latents, return_dict=True, generator=None):
        return decode(latents.float(), return_dict=return_dict, generator=generator)

    return decode_fp32


def make_pipeline(model, way, device):
    torch.manual_seed(0)
    with torch.device(device):
        networks = {
            name: make().to(way.dtype).eval().requires_grad_(False) for name, make in model.networks.items()
        }
    for name in ("unet", "vae"):
        networks[name].to(memory_format=way.memory_format)
    tokenizers = {}
    for name, padding in model.tokenizers.items():
        with tempfile.TemporaryDirectory() as folder:
            save_tokenizer(Path(folder), padding)
            tokenizers[name] = transformers.CLIPTokenizer.from_pretrained(folder)
    pipeline = getattr(diffusers, model.pipeline)(
        **networks,
        **tokenizers,
        scheduler=diffusers.DDIMScheduler.from_config(model.scheduler().config, clip_sample=False),
        **dict.fromkeys(model.absent),
        **model.settings,
    )
    pipeline.set_progress_bar_config(disable=True)
    if way.fuse_qkv:
        pipeline.fuse_qkv_projections()
    xl = isinstance(pipeline, diffusers.StableDiffusionXLPipeline)
    if way.wrap:
        for name, network in networks.items():
            function = "decode" if name == "vae" else "forward"
            setattr(network, function, way.wrap(getattr(network, function)))
        if xl:
            pipeline.text_encoder.forward = keep_states(pipeline.text_encoder.forward)
    if xl:
        pipeline.vae.float()
        pipeline.vae.decode = upcast(pipeline.vae.decode)
    return pipeline


def stages_of(pipeline, way, images, steps):
    """What is timed, by stage, with the arguments that the pipeline itself passes: others would compile anew."""
    device, unet = pipeline.device, pipeline.unet.config

    def noise(*shape):
        return torch.randn(shape, device=device, dtype=way.dtype)

    def latents_of(rows):
        latents = noise(rows, unet.in_channels, unet.sample_size, unet.sample_size)
        return latents.contiguous(memory_format=way.memory_format)

    rows = 2 * images
    latents, both = latents_of(images), latents_of(rows)
    timestep = torch.tensor(500, device=device)
    states = noise(rows, pipeline.tokenizer.model_max_length, unet.cross_attention_dim)
    conditions = dict(timestep_cond=None, cross_attention_kwargs=None, added_cond_kwargs=None)
    if unet.addition_embed_type == "text_time":
        side = unet.sample_size * pipeline.vae_scale_factor
        conditions["added_cond_kwargs"] = {
            "text_embeds": noise(rows, pipeline.text_encoder_2.config.projection_dim),
            "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * rows, device=device, dtype=way.dtype),
        }
    return {
        "text_encode": lambda: pipeline.encode_prompt(
            PROMPT, device=device, num_images_per_prompt=images, do_classifier_free_guidance=True
        ),
        "unet_step": lambda: pipeline.unet(
            both, timestep, encoder_hidden_states=states, **conditions, return_dict=False
        ),
        "vae_decode": lambda: pipeline.vae.decode(latents, return_dict=False, generator=None),
        "image": lambda: pipeline(
            PROMPT,
            latents=latents,
            num_inference_steps=steps,
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


# A part of each attention kernel's name, and what it is called. cuDNN's come first: their names have "flash" in them.
ATTENTION = {
    "cudnn": "cuDNN",
    "pytorch_flash": "FlashAttention-2",
    "fmha_cutlass": "memory-efficient attention",
}


def attention_of(call):
    """The implementations of attention that a call of the U-Net ran, by the names of its kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds_of(call)
    kernels = [event.key for event in profile.key_averages() if "flash" in event.key or "fmha" in event.key]
    found = {next((name for part, name in ATTENTION.items() if part in kernel), kernel) for kernel in kernels}
    return sorted(found)


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
    parser = argparse.ArgumentParser(description="Times one way to run a model in PyTorch.")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--model", choices=MODELS, default="sd15")
    parser.add_argument("--batches", default="1,2,4,8")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    torch.backends.cudnn.benchmark = True
    torch._inductor.config.conv_1x1_as_mm = True

    way = WAYS[arguments.way]
    pipeline = make_pipeline(MODELS[arguments.model], way, "cuda")
    for images in map(int, arguments.batches.split(",")):
        for stage, call in stages_of(pipeline, way, images, arguments.steps).items():
            row = {"stage": stage, "images": images, "steps": arguments.steps, "versions": versions()}
            row |= time_stage(call, arguments.seconds)
            if stage == "unet_step":
                row["attention"] = attention_of(call)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
