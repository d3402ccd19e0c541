#!/usr/bin/env python3
"""Puts what was trained together as a model folder in the diffusers layout.

    python tools/train_demo/export.py --run RUN [--data .train] [--out models/emoji]

RUN holds vae/, unet/ and text_encoder/ as the training scripts left them.
"""

import argparse
import json
import pathlib
import shutil

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from models import GUIDANCE_SCALE, STEPS, make_scheduler
from transformers import CLIPTextModel, CLIPTokenizer

COMPONENTS = ("text_encoder", "unet", "vae")
TOKENIZER = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
# What sdrt takes where the command line names nothing; diffusers ignores keys with an underscore.
DEFAULTS = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE_SCALE}


def main():
    parser = argparse.ArgumentParser(description="Writes the trained demo model as a diffusers folder.")
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(".train"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("models/emoji"))
    arguments = parser.parse_args()

    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(arguments.run / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(arguments.run / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(arguments.data / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(arguments.run / "unet"),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_config(arguments.out)
    index = arguments.out / "model_index.json"
    config = {"_sdrt": DEFAULTS} | json.loads(index.read_text())
    index.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    pipeline.scheduler.save_pretrained(arguments.out / "scheduler")
    for component in COMPONENTS:
        shutil.copytree(arguments.run / component, arguments.out / component, dirs_exist_ok=True)
    (arguments.out / "tokenizer").mkdir(exist_ok=True)
    for file in TOKENIZER:
        shutil.copyfile(arguments.data / "tokenizer" / file, arguments.out / "tokenizer" / file)
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    print(f"{size / 1e6:.1f} MB in {arguments.out}")


if __name__ == "__main__":
    main()
