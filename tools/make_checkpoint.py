#!/usr/bin/env python3
"""Writes a Stable Diffusion checkpoint of full size with random weights, in the diffusers layout.

Configurations and shapes are those of the public checkpoint, so speed, memory and numerics can be
measured without its weights. Needs torch, diffusers and transformers. On disk, in fp16: 2 GB, and 7 GB of XL.

    python tools/make_checkpoint.py OUT [--model sd15|sdxl|sdxl-refiner] [--dtype fp16|bf16|fp32] [--seed 0]

The tokenizers are CLIP's and OpenCLIP's, from the merges that sdrt embeds.
"""

import argparse
import gzip
import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from checkpoint_format import END, make_clip, save_component, write_clip_tokenizer
from diffusers import AutoencoderKL, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
VOCABULARY = 49408
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def make_text_encoder():
    """CLIP ViT-L/14's: of 1.5, and the first of XL."""
    return make_clip(VOCABULARY, width=768, layers=12, heads=12)


def make_text_encoder_2():
    """OpenCLIP ViT-bigG/14's."""
    return make_clip(VOCABULARY, width=1280, layers=32, heads=20, activation="gelu", projected=True)


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


def make_unet_xl():
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        layers_per_block=2,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=768 + 1280,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=1280 + 6 * 256,
    )


def make_unet_refiner():
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(384, 768, 1536, 1536),
        layers_per_block=2,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        attention_head_dim=(6, 12, 24, 24),
        transformer_layers_per_block=4,
        cross_attention_dim=1280,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=1280 + 5 * 256,
    )


def make_vae(sample_size=512, **config):
    return AutoencoderKL(
        sample_size=sample_size,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **config,
    )


def make_vae_xl():
    return make_vae(sample_size=1024, scaling_factor=0.13025, force_upcast=True)


def make_scheduler():
    return PNDMScheduler(**BETAS, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1)


def make_scheduler_xl():
    return EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)


@dataclass
class Model:
    # Its name in diffusers.
    pipeline: str
    # What makes them, by component.
    networks: dict[str, Callable]
    scheduler: Callable
    # What they pad with.
    tokenizers: dict[str, str]
    # Components that the pipeline does without, and its other arguments.
    absent: tuple[str, ...]
    settings: dict[str, bool]


MODELS = {
    "sd15": Model(
        pipeline="StableDiffusionPipeline",
        networks={"text_encoder": make_text_encoder, "unet": make_unet, "vae": make_vae},
        scheduler=make_scheduler,
        tokenizers={"tokenizer": END},
        absent=("feature_extractor", "image_encoder", "safety_checker"),
        settings={"requires_safety_checker": False},
    ),
    "sdxl": Model(
        pipeline="StableDiffusionXLPipeline",
        networks={
            "text_encoder": make_text_encoder,
            "text_encoder_2": make_text_encoder_2,
            "unet": make_unet_xl,
            "vae": make_vae_xl,
        },
        scheduler=make_scheduler_xl,
        tokenizers={"tokenizer": END, "tokenizer_2": "!"},
        absent=("feature_extractor", "image_encoder"),
        settings={"force_zeros_for_empty_prompt": True, "add_watermarker": False},
    ),
    "sdxl-refiner": Model(
        pipeline="StableDiffusionXLImg2ImgPipeline",
        networks={"text_encoder_2": make_text_encoder_2, "unet": make_unet_refiner, "vae": make_vae_xl},
        scheduler=make_scheduler_xl,
        tokenizers={"tokenizer_2": "!"},
        absent=("text_encoder", "tokenizer", "feature_extractor", "image_encoder"),
        settings={
            "requires_aesthetics_score": True,
            "force_zeros_for_empty_prompt": False,
            "add_watermarker": False,
        },
    ),
}


def save_tokenizer(folder, padding):
    merges = pathlib.Path(__file__).resolve().parent.parent / "src" / "text" / "clip_merges.txt.gz"
    merges = gzip.decompress(merges.read_bytes()).decode().splitlines()
    assert write_clip_tokenizer(folder, [merge.split(" ") for merge in merges], padding) == VOCABULARY


def class_of(component):
    """As model_index.json has it: the library and the class."""
    return [type(component).__module__.split(".")[0], type(component).__name__]


def main():
    parser = argparse.ArgumentParser(description="Writes a Stable Diffusion checkpoint with random weights.")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--model", choices=MODELS, default="sd15")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    model = MODELS[arguments.model]
    index = {"_class_name": model.pipeline, **model.settings}
    index |= {name: [None, None] for name in model.absent}
    for name, padding in model.tokenizers.items():
        save_tokenizer(arguments.out / name, padding)
        index[name] = ["transformers", "CLIPTokenizer"]
    for name, make in model.networks.items():
        network = make()
        numbers = save_component(network, arguments.out / name, DTYPES[arguments.dtype])
        print(f"{arguments.out / name}: {numbers:,} numbers")
        index[name] = class_of(network)
    scheduler = model.scheduler()
    scheduler.save_pretrained(arguments.out / "scheduler")
    index["scheduler"] = class_of(scheduler)
    (arguments.out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
