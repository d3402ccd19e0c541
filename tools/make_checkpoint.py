#!/usr/bin/env python3
"""Writes a Stable Diffusion 1.5 checkpoint of full size with random weights, in the diffusers layout.

Configurations and shapes are those of the public checkpoint, so speed, memory and numerics can be
measured without its weights. Needs torch, diffusers and transformers; 2 GB of disk in fp16.

    python tools/make_checkpoint.py OUT [--dtype fp16|bf16|fp32] [--seed 0]

The tokenizer is CLIP's, from the merges that sdrt embeds.
"""

import argparse
import gzip
import json
import pathlib

import torch
from checkpoint_format import byte_symbols, save_component
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
CLASSES = {
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def make_text_encoder():
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            projection_dim=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )


def make_unet():
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=8,
        cross_attention_dim=768,
    )


def make_vae():
    return AutoencoderKL(
        sample_size=512,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def make_scheduler():
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )


def save_tokenizer(folder):
    """CLIP's vocabulary in the order that its ids have: bytes, bytes that end a word, merges, specials."""
    merges = pathlib.Path(__file__).resolve().parent.parent / "src" / "text" / "clip_merges.txt.gz"
    merges = gzip.decompress(merges.read_bytes()).decode().splitlines()
    symbols = byte_symbols()
    tokens = symbols + [symbol + "</w>" for symbol in symbols] + [merge.replace(" ", "") for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    assert len(tokens) == len(set(tokens)) == 49408
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": tokens[-2], "eos_token": tokens[-1], "unk_token": tokens[-1], "pad_token": tokens[-1]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    configuration = {**special, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration))


def main():
    parser = argparse.ArgumentParser(description="Writes a Stable Diffusion 1.5 checkpoint with random weights.")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    save_tokenizer(arguments.out / "tokenizer")
    for component, make in (("text_encoder", make_text_encoder), ("unet", make_unet), ("vae", make_vae)):
        numbers = save_component(make(), arguments.out / component, DTYPES[arguments.dtype])
        print(f"{arguments.out / component}: {numbers:,} numbers")
    make_scheduler().save_pretrained(arguments.out / "scheduler")
    absent = {name: [None, None] for name in ("feature_extractor", "image_encoder", "safety_checker")}
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **absent, **CLASSES}
    (arguments.out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
