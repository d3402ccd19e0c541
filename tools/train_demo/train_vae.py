#!/usr/bin/env python3
"""Trains the autoencoder on painted scenes.

    python tools/train_demo/train_vae.py --run RUN [--data .train] [--seconds 470] [--pause-after S]

Runs until the seconds are spent, over as many calls as it takes: a call that finds a state in RUN/vae-state goes on from
it. Writes RUN/vae in half precision.
"""

import argparse
import math
import pathlib
import sys

import torch
import torch.nn.functional as F
from models import half_rounded, make_vae
from torch import nn
from training import Average, Clock, Pictures, add_arguments, allow_fast_arithmetic, load_state, save_state

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from checkpoint_format import save_component  # noqa: E402

BATCH = 48
# As many of them are decoded from half-size latents too.
HALVED = 16
LEARNING_RATE = 8e-4
WARMUP = 200
KL = 1e-4
SEED = 0


def gradients(x):
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def gradient_loss(x, y):
    return sum(F.l1_loss(a, b) for a, b in zip(gradients(x), gradients(y)))


def picture_loss(x, y):
    """L1 and L2, and L1 of edges and of smaller copies: sharp where it counts, and flat colours right."""
    x2, y2 = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    x4, y4 = F.avg_pool2d(x2, 2), F.avg_pool2d(y2, 2)
    small = F.l1_loss(x2, y2) + F.l1_loss(x4, y4)
    return (
        F.l1_loss(x, y)
        + F.mse_loss(x, y)
        + 0.5 * gradient_loss(x, y)
        + 0.5 * small
        + 0.5 * gradient_loss(x2, y2)
    )


class Loss(nn.Module):
    """Reconstruction, a little KL, and equivariance: half-size latents must decode to the half-size picture (EQ-VAE,
    arXiv 2502.09509), which gives latents that a U-Net learns more easily."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, pictures, noise):
        with torch.autocast("cuda", torch.bfloat16):
            mean, logvar = self.vae.quant_conv(self.vae.encoder(pictures)).float().chunk(2, 1)
            logvar = logvar.clamp(-30, 20)
            latents = mean + noise * (0.5 * logvar).exp()
            decoded = self.decode(latents)
            halved = self.decode(F.avg_pool2d(latents[:HALVED], 2))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = picture_loss(decoded, pictures)
        half = picture_loss(halved, F.avg_pool2d(pictures[:HALVED], 2))
        error = F.mse_loss(decoded, pictures).detach()
        return loss + 0.15 * half + KL * kl, error

    def decode(self, latents):
        return self.vae.decoder(self.vae.post_quant_conv(latents)).float()


def learning_rate(step, progress):
    return LEARNING_RATE * min(1, step / WARMUP) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def psnr(error):
    """Of pictures from -1 to 1."""
    return 10 * math.log10(4 / error)


@torch.no_grad()
def measure(vae, pictures):
    """PSNR of fresh pictures with the shipped weights, and the scale that gives latents unit deviation."""
    errors, latents = [], []
    for _ in range(8):
        batch, _ = next(pictures)
        mean = vae.encode(batch).latent_dist.mean
        latents.append(mean)
        errors.append(F.mse_loss(vae.decode(mean).sample, batch, reduction="none").mean((1, 2, 3)))
    errors = torch.cat(errors)
    decibels = 10 * torch.log10(4 / errors)
    print(f"PSNR {decibels.mean():.2f} dB, a tenth below {decibels.quantile(0.1):.2f}", flush=True)
    return 1 / torch.cat(latents).std().item()


def main():
    parser = argparse.ArgumentParser(description="Trains the demo model's autoencoder.")
    add_arguments(parser, seconds=470, workers=6)
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    allow_fast_arithmetic()
    vae = make_vae().cuda().to(memory_format=torch.channels_last)
    parameters = list(vae.parameters())
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, (0.9, 0.99), weight_decay=1e-4, fused=True)
    average = Average(parameters, 0.999)
    step, spent = 0, 0.0
    if state := load_state(arguments.run / "vae-state"):
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, step, spent = state["average"], state["step"], state["spent"]
        torch.manual_seed(SEED + step)
    pictures = Pictures(arguments.data, BATCH, f"vae {SEED} {step}", arguments.workers)
    loss_of = torch.compile(Loss(vae), dynamic=False)
    clock, began = Clock(arguments.seconds, spent), spent
    shape = (BATCH, 4, 32, 32)

    errors = []
    while clock.progress() < 1 and clock.spent() - began < arguments.pause_after:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, clock.progress())
        batch, _ = next(pictures)
        total, error = loss_of(batch, torch.randn(shape, device="cuda"))
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        average.update(step)
        errors.append(error)
        if step % 250 == 0:
            mean = torch.stack(errors).mean().item()
            errors.clear()
            print(f"step {step}, {clock.spent():.0f} s, PSNR {psnr(mean):.2f} dB", flush=True)

    save_state(
        arguments.run / "vae-state",
        {
            "vae": vae.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average.values,
            "step": step,
            "spent": clock.spent(),
        },
    )
    average.apply()
    half_rounded(vae)
    scale = measure(vae, pictures)
    vae.register_to_config(scaling_factor=round(scale, 4))
    (arguments.run / "vae").mkdir(parents=True, exist_ok=True)
    save_component(vae, arguments.run / "vae", torch.float16)
    print(f"{step} steps, scaling factor {vae.config.scaling_factor}, in {arguments.run / 'vae'}")


if __name__ == "__main__":
    main()
