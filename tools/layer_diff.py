#!/usr/bin/env python3
"""Compares every layer of a checkpoint's models with diffusers, and names the first that goes wrong.

    python tools/layer_diff.py models/tiny [--width 64 --height 96] [--device cuda --dtype f16]

Both sides see the same token ids, latents and timestep. diffusers computes in f32 on the CPU.
For a machine without Python: --save FILE writes the inputs there and stops; run
`cargo run --release --example dump_layers -- MODEL FILE LAYERS` where the GPU is; then --layers LAYERS.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Scopes that end elsewhere than the module of their name: after the residual, or after what follows.
OTHERWISE = {"attn1", "attn2", "ff", "time_embedding", "context"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--prompt", action="append", help="again for each row of the batch; two by default")
    parser.add_argument("--timestep", type=float, default=501.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype")
    parser.add_argument("--tolerance", type=float, help="relative L2 error; 1e-5 for f32, 2e-2 for halves")
    parser.add_argument("--save", type=pathlib.Path, help="write the inputs and stop")
    parser.add_argument("--layers", type=pathlib.Path, help="what dump_layers wrote for the same flags")
    return parser.parse_args()


def make_inputs(pipeline, flags):
    prompts = flags.prompt or ["", "a lighthouse at dawn"]
    ids = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    h, w = flags.height // pipeline.vae_scale_factor, flags.width // pipeline.vae_scale_factor
    generator = torch.Generator().manual_seed(flags.seed)
    latents = torch.randn(len(prompts), h, w, pipeline.unet.config.in_channels, generator=generator)
    return {"ids": ids.int(), "latents": latents, "timestep": torch.tensor([flags.timestep])}


@torch.no_grad()
def reference(pipeline, inputs):
    """Outputs of all modules, maps as NHWC, by path and in the order in which they are finished."""
    found = {}

    def remember(path):
        def hook(_module, _inputs, output):
            while not isinstance(output, torch.Tensor):
                output = output[0]
            found.setdefault(path, output.permute(0, 2, 3, 1) if output.dim() == 4 else output)

        return hook

    for root, model in (("text_model", pipeline.text_encoder), ("unet", pipeline.unet), ("vae", pipeline.vae)):
        for name, module in model.named_modules():
            name = name.removeprefix("text_model").removeprefix(".")
            module.register_forward_hook(remember(f"{root}.{name}" if name else root))
    latents = inputs["latents"].permute(0, 3, 1, 2).contiguous()
    states = pipeline.text_encoder(inputs["ids"].long()).last_hidden_state
    pipeline.unet(latents, inputs["timestep"].expand(len(latents)), states)
    found["vae"] = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample.permute(0, 2, 3, 1)
    return found


def dump(flags, inputs, folder):
    save_file(inputs, folder / "inputs.safetensors")
    command = ["cargo", "run", "--quiet", "--release", "--example", "dump_layers", "--", flags.model.resolve()]
    command += [folder / "inputs.safetensors", folder / "layers.safetensors", "--device", flags.device]
    command += ["--dtype", flags.dtype] if flags.dtype else []
    subprocess.run(command, check=True, cwd=ROOT)
    return load_file(folder / "layers.safetensors")


def main():
    flags = arguments()
    pipeline = StableDiffusionPipeline.from_pretrained(flags.model, dtype=torch.float32, safety_checker=None)
    inputs = make_inputs(pipeline, flags)
    if flags.save:
        save_file(inputs, flags.save)
        return
    if flags.layers:
        layers = load_file(flags.layers)
    else:
        with tempfile.TemporaryDirectory() as folder:
            layers = dump(flags, inputs, pathlib.Path(folder))
    halves = flags.dtype in ("f16", "bf16") or (flags.dtype is None and flags.device != "cpu")
    tolerance = flags.tolerance or (2e-2 if halves else 1e-5)

    first = None
    for path, want in reference(pipeline, inputs).items():
        if path not in layers or path.rpartition(".")[2] in OTHERWISE:
            continue
        got = layers[path]
        if got.numel() != want.numel():
            sys.exit(f"{path}: {list(got.shape)} here, {list(want.shape)} in diffusers")
        error = ((got.reshape(want.shape) - want).norm() / want.norm()).item()
        # A NaN is wrong, too.
        wrong = not error <= tolerance
        first = first or (path if wrong else None)
        print(f"{error:9.1e} {'WRONG' if wrong else '':5} {path}  {list(want.shape)}")
    if first:
        sys.exit(f"the first layer off by more than {tolerance:g} is {first}")


if __name__ == "__main__":
    main()
