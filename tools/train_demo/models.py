"""The three networks of the demo model: Stable Diffusion's, small.

Together 15.6 million parameters, 31 MB in half precision.
"""

import pathlib
import sys

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from checkpoint_format import make_clip  # noqa: E402

LATENT_CHANNELS = 4
# Defaults that model_index.json states for sdrt.
STEPS = 20
GUIDANCE_SCALE = 4.0


def make_vae():
    """8 groups a norm: with 32, the 32 channels at full size would each be a group, and lose flat colours."""
    return AutoencoderKL(
        sample_size=256,
        block_out_channels=(32, 64, 96, 96),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def make_text_encoder(vocabulary):
    return make_clip(vocabulary, width=192, layers=4, heads=3)


def make_unet():
    """Attention at 16x16 and 8x8 alone, as in SDXL: at 32x32 it would add 40% to the multiplications of a step."""
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4, 6),
        cross_attention_dim=192,
        use_linear_projection=True,
    )


def make_scheduler():
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def half_rounded(model):
    """The weights as they ship: rounded to half precision."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model
