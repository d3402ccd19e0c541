#!/usr/bin/env python3
"""Writes what tests/library/emoji knows each name's picture by: tests/fixtures/emoji/gallery.safetensors.

    python tools/train_demo/gallery.py [--model models/emoji] [--data .train] [--out tests/fixtures/emoji]

One tensor emoji.latents u8 [names, 2, 8, 8, 4]: the latents of the object as recognize.py cuts it out, as it is and
mirrored, means of 2x2, stored as 128 + latent / scale; the scale and the names are in the metadata. It is only written
if it names fresh scenes.
"""

import argparse
import json
import pathlib
import random
import sys

import diffusers
import names
import torch
import torch.nn.functional as F
from colours import COLOUR_NAMES, DEFAULT_BACKGROUND
from diffusers import AutoencoderKL
from recognize import BATCH, Recognizer, cut_out, foreground
from render import Painter, load_sprites
from safetensors.torch import save_file
from scenes import Grammar, Placed, Scene

POOL = 2
ZERO = 128
# The share of fresh scenes that must be named rightly, and how many there are.
LEAST, FRESH = 0.95, 512


def looks(recognizer, scenes):
    """What is compared, [n, 8, 8, 4]."""
    pooled = []
    for start in range(0, len(scenes), BATCH):
        pictures = recognizer.paint(scenes[start : start + BATCH])
        latents = recognizer.latents(cut_out(pictures, foreground(pictures)))
        edge = int((latents.shape[1] / recognizer.vae.config.latent_channels) ** 0.5)
        maps = latents.unflatten(1, (-1, edge, edge))
        pooled.append(F.avg_pool2d(maps, POOL).permute(0, 2, 3, 1))
    return torch.cat(pooled).contiguous()


def fresh_scenes(emoji, count):
    """Single objects at random places, sizes and angles, on any background."""
    grammar = Grammar(emoji, random.Random(0))
    backgrounds = range(len(COLOUR_NAMES))
    return [grammar.single(grammar.draw(), grammar.rng.choice(backgrounds)) for _ in range(count)]


def main():
    parser = argparse.ArgumentParser(description="Writes what the tests recognize emoji by.")
    parser.add_argument("--model", type=pathlib.Path, default=pathlib.Path("models/emoji"))
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(".train"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/fixtures/emoji"))
    arguments = parser.parse_args()

    emoji = names.load(arguments.data / "names.json")
    vae = AutoencoderKL.from_pretrained(arguments.model / "vae", dtype=torch.float32)
    recognizer = Recognizer(vae, Painter(load_sprites(arguments.data / "sprites.npz"), "cpu"), emoji)
    variants = [
        Scene("", DEFAULT_BACKGROUND, [Placed(index, 0.5, 0.5, 0.9, 0.0, mirrored, None)])
        for index in range(len(emoji))
        for mirrored in (False, True)
    ]
    latents = looks(recognizer, variants).unflatten(0, (len(emoji), -1))
    scale = latents.abs().max().item() / (ZERO - 1)
    stored = (latents / scale + ZERO).round().byte()

    scenes = fresh_scenes(emoji, FRESH)
    restored = (stored.float() - ZERO) * scale
    distances = torch.cdist(looks(recognizer, scenes).flatten(1), restored.flatten(2).flatten(0, 1))
    found = distances.unflatten(1, stored.shape[:2]).amin(2).argmin(1)
    right = found == torch.tensor([scene.objects[0].emoji for scene in scenes])
    share = right.float().mean().item()
    print(f"of {FRESH} fresh scenes {share:.3f} are named rightly")
    if share < LEAST:
        sys.exit(f"gallery.py: expected at least {LEAST}; nothing is written")

    case = {"names": [entry.label for entry in emoji], "scale": scale}
    about = {"torch": torch.__version__, "diffusers": diffusers.__version__, "cases": {"emoji": case}}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "gallery.safetensors"
    save_file({"emoji.latents": stored}, path, {"about": json.dumps(about)})
    path.chmod(0o644)
    print(f"{path.stat().st_size / 1024:.0f} kB in {path}")


if __name__ == "__main__":
    main()
