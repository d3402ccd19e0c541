#!/usr/bin/env python3
"""Writes models/tiny: a Stable Diffusion model in the diffusers layout with random weights, 2.6 MB.

The weights are drawn so that pictures have colours and shapes instead of grey noise: 3x3 kernels
mostly blur, and the U-Net predicts its own input (which removes the noise) plus what its random layers say.

    python tools/make_tiny_model.py [--out models/tiny] [--picture FILE [--prompt TEXT]]
"""

import argparse
import pathlib

import torch
from checkpoint_format import make_clip, save_component, write_clip_tokenizer
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTokenizer

SEED = 4
# The U-Net's answer is this much of its own input ...
SHARE = 1.2
# ... and this much of its random layers.
LOUD = 0.5
# Standard deviation of a colour over a picture; a pixel spans -1 to 1.
VIVID = 0.5


@torch.no_grad()
def randomize(model, generator):
    """Every parameter anew, biases and norms too, so that no mistake with one hides behind a zero."""
    blur = torch.tensor([1.0, 3.0, 1.0])
    blur = torch.outer(blur, blur)
    blur /= blur.norm()
    for name, parameter in model.named_parameters():
        value = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            value = 0.1 * value + ("norm" in name and name.endswith("weight"))
        else:
            value /= parameter.shape[1] ** 0.5
        if parameter.shape[2:] == blur.shape:
            value = value[:, :, 1:2, 1:2] * blur + 0.1 * value
        parameter.copy_(value)


@torch.no_grad()
def predict_input(unet, share):
    """Lets the U-Net answer `share` times its input: x and -x pass along the channels 0-3 and 4-7 of the
    outermost skip connection, and SiLU(x) - SiLU(-x) = x in front of conv_out puts them together again."""
    passing = 8
    conv_in, conv_out, last = unet.conv_in, unet.conv_out, unet.up_blocks[-1]
    channels = conv_in.out_channels
    conv_in.weight[:passing] = 0
    conv_in.bias[:passing] = 0
    for channel in range(4):
        conv_in.weight[channel, channel, 1, 1] = 1
        conv_in.weight[4 + channel, channel, 1, 1] = -1
    shortcut = last.resnets[-1].conv_shortcut
    shortcut.weight[:passing] = 0
    shortcut.weight[range(passing), range(channels, channels + passing), 0, 0] = 1
    shortcut.bias[:passing] = 0
    attentions = getattr(last, "attentions", [])
    for added in (last.resnets[-1].conv2, *(attention.proj_out for attention in attentions[-1:])):
        added.weight[:passing] = 0
        added.bias[:passing] = 0
    unet.conv_norm_out.weight[:passing] = 1
    unet.conv_norm_out.bias[:passing] = 0
    conv_out.weight[:, :passing] = 0
    for channel in range(4):
        conv_out.weight[channel, channel, 1, 1] = share
        conv_out.weight[channel, 4 + channel, 1, 1] = -share


@torch.no_grad()
def balance_colours(pipeline):
    """Centres the decoder's last layer: over a few pictures each colour has mean 0 and deviation VIVID."""
    decoder = pipeline.vae.decoder.conv_out
    prompts = ["a lighthouse at dawn", "a red fox in the snow", "three boats", "the moon over a city"]
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    latents = pipeline(prompts, num_inference_steps=10, generator=noise, output_type="latent").images
    pictures = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    deviation, mean = torch.std_mean(pictures, dim=(0, 2, 3))
    decoder.weight *= (VIVID / deviation)[:, None, None, None]
    decoder.bias -= mean
    decoder.bias *= VIVID / deviation
    pipeline.vae.half().float()


def make_pipeline(tokenizer_folder):
    generator = torch.Generator().manual_seed(SEED)
    # No merges: one token a byte.
    vocabulary = write_clip_tokenizer(tokenizer_folder, [])
    text_encoder = make_clip(vocabulary, width=64, layers=2, heads=4)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(4, 4),
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        sample_size=256,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    for model in (text_encoder, unet, vae):
        randomize(model, generator)
    with torch.no_grad():
        unet.conv_out.weight *= LOUD
        predict_input(unet, SHARE)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae.half().float(),
        text_encoder=text_encoder.half().float(),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer_folder),
        unet=unet.half().float(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    balance_colours(pipeline)
    return pipeline


def main():
    parser = argparse.ArgumentParser(description="Writes a tiny Stable Diffusion model with random weights.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("models/tiny"))
    parser.add_argument("--prompt", default="a lighthouse at dawn")
    parser.add_argument("--picture", help="also paint with it, in diffusers, and save the picture here")
    arguments = parser.parse_args()

    pipeline = make_pipeline(arguments.out / "tokenizer")
    pipeline.save_config(arguments.out)
    pipeline.scheduler.save_pretrained(arguments.out / "scheduler")
    for component in ("text_encoder", "unet", "vae"):
        model = getattr(pipeline, component)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        save_component(model, arguments.out / component, torch.float16)
    if arguments.picture:
        seed = torch.Generator().manual_seed(0)
        pipeline(arguments.prompt, num_inference_steps=20, generator=seed).images[0].save(arguments.picture)


if __name__ == "__main__":
    main()
