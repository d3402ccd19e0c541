#!/usr/bin/env python3
"""Compares sdrt's pictures with those of diffusers on the same GPU, model, prompts and noise.

For each seed: diffusers in fp32 (no TF32) paints the reference, diffusers in fp16 and sdrt in fp16 paint the
same picture, and each is measured against the reference by PSNR. sdrt also paints twice: the files must be
equal. Ends with exit code 1 when sdrt is more than 1 dB further from fp32 than diffusers' own fp16 is.

    python tools/compare_with_diffusers.py MODEL [--sdrt target/release/sdrt] [--steps 20] [--size 512] [--seeds 3]
"""

import argparse
import math
import pathlib
import subprocess
import sys
import tempfile

import numpy
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

PROMPTS = ["a photograph of an astronaut riding a horse", "a lighthouse at dawn, oil painting", "a bowl of fruit"]
GUIDANCE = 7.5


def diffusers_pictures(model, dtype, arguments):
    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=dtype, safety_checker=None).to("cuda")
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for seed in range(arguments.seeds):
        # One f32 draw for both: diffusers would draw other noise for fp16.
        side = arguments.size // 8
        latents = torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(seed))
        picture = pipeline(
            PROMPTS[seed % len(PROMPTS)],
            latents=latents.to("cuda", dtype),
            num_inference_steps=arguments.steps,
            guidance_scale=GUIDANCE,
            height=arguments.size,
            width=arguments.size,
            output_type="pil",
        ).images[0]
        pictures.append(numpy.asarray(picture, dtype=numpy.float64))
    return pictures


def sdrt_picture(seed, out, arguments):
    command = [arguments.sdrt, "run", "--quiet", "--device", "cuda", "--model", arguments.model]
    command += ["--prompt", PROMPTS[seed % len(PROMPTS)], "--seed", seed, "--steps", arguments.steps]
    command += ["--guidance-scale", GUIDANCE, "--width", arguments.size, "--height", arguments.size]
    subprocess.run([str(word) for word in [*command, "--output", out]], check=True)
    return numpy.asarray(Image.open(out), dtype=numpy.float64)


def psnr(picture, reference):
    error = numpy.mean((picture - reference) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def main():
    parser = argparse.ArgumentParser(description="Compares sdrt's pictures with those of diffusers.")
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--sdrt", type=pathlib.Path, default=pathlib.Path("target/release/sdrt"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

    reference = diffusers_pictures(arguments.model, torch.float32, arguments)
    half = diffusers_pictures(arguments.model, torch.float16, arguments)
    behind = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            files = [pathlib.Path(folder, f"{i}.png") for i in range(2)]
            ours = [sdrt_picture(seed, file, arguments) for file in files][0]
            same = files[0].read_bytes() == files[1].read_bytes()
        ours_db, theirs_db = psnr(ours, reference[seed]), psnr(half[seed], reference[seed])
        behind.append(theirs_db - ours_db)
        print(
            f"seed {seed}: PSNR to diffusers fp32: sdrt f16 {ours_db:.2f} dB, diffusers fp16 {theirs_db:.2f} dB;"
            f" picture std {reference[seed].std():.1f}; same bytes on repeat: {same}",
            flush=True,
        )
        if not same:
            sys.exit("the same request gave two different files")
    mean = sum(behind) / len(behind)
    print(f"sdrt is {mean:.2f} dB behind diffusers' own fp16 (negative: ahead)")
    sys.exit(1 if mean > 1 else 0)


if __name__ == "__main__":
    main()
