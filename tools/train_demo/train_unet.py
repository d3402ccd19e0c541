#!/usr/bin/env python3
"""Trains the text encoder and the U-Net together, in the latents of the trained autoencoder.

    python tools/train_demo/train_unet.py --run RUN [--data .train] [--seconds 1200] [--pause-after S] [--start MODEL]

Runs until the seconds are spent, over as many calls as it takes: a call that finds a state in RUN/unet-state goes on from
it; one is written every two minutes. The learning rate is constant and falls over the last --cooldown seconds. Writes
RUN/unet and RUN/text_encoder in half precision. --start begins with the weights of a model folder.
"""

import argparse
import math
import pathlib
import sys

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from models import LATENT_CHANNELS, half_rounded, make_scheduler, make_text_encoder, make_unet
from torch import nn
from training import (
    TOKENS,
    Average,
    Clock,
    Pictures,
    add_arguments,
    allow_fast_arithmetic,
    load_compiled,
    load_state,
    save_compiled,
    save_state,
    tokenize,
)
from transformers import CLIPTextModel, CLIPTokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from checkpoint_format import save_component  # noqa: E402

BATCH = 256
TIMESTEPS = 1000
LEARNING_RATE = 1e-3
WARMUP = 400
# Share of captions that are left out, for classifier-free guidance.
UNCONDITIONAL = 0.1
# min-SNR weighting (arXiv 2303.09556).
SNR_LIMIT = 5.0
# Encoded scenes that are kept, how many of them there are at first, and how many new ones come after how many steps.
POOL, FIRST, RENEWED, EVERY = 1 << 18, 1 << 16, 512, 32
REPORT = 500
# Seconds between states: what a crash can cost.
SAVE = 120
SEED = 1


class Pool:
    """Latents of painted scenes and the tokens of their captions. Painting and encoding a scene takes as long as a step
    of training spends on it, so each is seen about sixteen times, with other noise, before another takes its place."""

    def __init__(self, vae, pictures, first=FIRST, size=POOL):
        self.pictures = pictures
        self.scale = vae.config.scaling_factor
        self.encode = torch.compile(lambda batch: vae.encode(batch).latent_dist.mean, dynamic=False)
        self.latents = torch.empty(size, LATENT_CHANNELS, 32, 32, dtype=torch.half, device="cuda")
        self.tokens = torch.empty(size, TOKENS, dtype=torch.short, device="cuda")
        self.next = self.filled = 0
        while self.filled < first:
            self.renew()

    @torch.no_grad()
    def renew(self):
        pictures, tokens = next(self.pictures)
        with torch.autocast("cuda", torch.bfloat16):
            latents = self.encode(pictures)
        rows = slice(self.next, self.next + RENEWED)
        self.latents[rows] = latents * self.scale
        self.tokens[rows] = tokens
        self.next = rows.stop % len(self.latents)
        self.filled = max(self.filled, rows.stop)

    def draw(self, count):
        rows = torch.randint(self.filled, (count,), device="cuda")
        return self.latents[rows].float(), self.tokens[rows].long()


class Loss(nn.Module):
    """The loss of noisy latents in v-prediction (arXiv 2202.00512): v = sqrt(a) noise - sqrt(1 - a) latents."""

    def __init__(self, unet, text_encoder):
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.register_buffer("alphas", make_scheduler().alphas_cumprod)

    def forward(self, latents, noise, timesteps, tokens):
        alphas = self.alphas[timesteps]
        signal, spread = (share.sqrt()[:, None, None, None] for share in (alphas, 1 - alphas))
        with torch.autocast("cuda", torch.bfloat16):
            context = self.text_encoder(tokens)[0]
            noisy = signal * latents + spread * noise
            output = self.unet(noisy, timesteps, context, return_dict=False)[0]
        error = (output.float() - (signal * noise - spread * latents)).square().mean((1, 2, 3))
        snr = alphas / (1 - alphas)
        weights = snr.clamp(max=SNR_LIMIT) / (snr + 1)
        return (weights * error).mean() / weights.mean()


def draw(pool, unconditional):
    """What a step of training sees: latents, noise, timesteps and tokens."""
    latents, tokens = pool.draw(BATCH)
    dropped = torch.rand(BATCH, 1, device="cuda") < UNCONDITIONAL
    # Every batch covers all timesteps evenly, which makes its loss less noisy.
    spread = (torch.arange(BATCH, device="cuda") + torch.rand(BATCH, device="cuda")) / BATCH
    return latents, torch.randn_like(latents), (spread * TIMESTEPS).long(), torch.where(dropped, unconditional, tokens)


class Step:
    """A step of training as one CUDA graph. Launched one by one its 2,300 kernels keep the host busy for 64 ms, the GPU
    for 28 (H100)."""

    def __init__(self, loss_of, parameters, optimizer, draw):
        self.loss_of = loss_of
        self.parameters = parameters
        self.optimizer = optimizer
        self.inputs = draw()
        # Compiles, and lets the libraries take their memory, which a capture must not.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                optimizer.zero_grad(set_to_none=True)
                self.run()
        torch.cuda.current_stream().wait_stream(side)
        optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.run()

    def run(self):
        loss = self.loss_of(*self.inputs)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return loss.detach()

    def __call__(self, inputs):
        """The loss, until the next step overwrites it."""
        for kept, value in zip(self.inputs, inputs):
            kept.copy_(value)
        self.graph.replay()
        return self.loss


def learning_rate(step, clock, cooldown):
    """Constant, then linear towards zero."""
    left = clock.limit - clock.spent()
    return LEARNING_RATE * min(1, step / WARMUP) * max(0.01, min(1, left / cooldown))


def set_learning_rate(optimizer, value):
    for group in optimizer.param_groups:
        group["lr"].fill_(value)


def parameter_groups(models):
    parameters = [p for model in models for p in model.parameters()]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]


def main():
    parser = argparse.ArgumentParser(description="Trains the demo model's text encoder and U-Net.")
    add_arguments(parser, seconds=1200, workers=10)
    parser.add_argument("--start", type=pathlib.Path, help="model folder whose weights to begin with")
    parser.add_argument("--cooldown", type=float, default=300, help="seconds at the end with a falling learning rate")
    parser.add_argument("--compiled", type=pathlib.Path, help="file that keeps what torch.compile made (100 s)")
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    allow_fast_arithmetic()
    load_compiled(arguments.compiled)
    tokenizer = CLIPTokenizer.from_pretrained(arguments.data / "tokenizer")
    vae = AutoencoderKL.from_pretrained(arguments.run / "vae").cuda().requires_grad_(False)
    vae.to(memory_format=torch.channels_last)
    if arguments.start:
        unet = UNet2DConditionModel.from_pretrained(arguments.start / "unet", torch_dtype=torch.float32)
        text_encoder = CLIPTextModel.from_pretrained(arguments.start / "text_encoder", dtype=torch.float32)
    else:
        unet, text_encoder = make_unet(), make_text_encoder(len(tokenizer))
    models = (unet.cuda().to(memory_format=torch.channels_last).train(), text_encoder.cuda().train())
    groups = parameter_groups(models)
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, torch.zeros((), device="cuda"), (0.9, 0.99), fused=True, capturable=True)
    average = Average(parameters, 0.9995)
    step, spent = 0, 0.0
    if state := load_state(arguments.run / "unet-state"):
        for parameter, value in zip(parameters, state["parameters"]):
            parameter.data.copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        average.values, step, spent = state["average"], state["step"], state["spent"]
        torch.manual_seed(SEED + step)

    clock, began = Clock(arguments.seconds, spent), spent
    pictures = Pictures(arguments.data, RENEWED, f"unet {SEED} {step}", arguments.workers)
    pool = Pool(vae, pictures)
    print(f"{pool.filled} scenes encoded after {clock.spent() - began:.0f} s", flush=True)
    unconditional = tokenize(tokenizer, [""]).cuda()
    loss_of = torch.compile(Loss(unet, text_encoder).cuda(), dynamic=False)
    set_learning_rate(optimizer, 0.0)
    train = Step(loss_of, parameters, optimizer, lambda: draw(pool, unconditional))
    print(f"compiled and captured after {clock.spent() - began:.0f} s", flush=True)

    def save():
        state = {
            "parameters": [p.detach() for p in parameters],
            "optimizer": optimizer.state_dict(),
            "average": average.values,
            "step": step,
            "spent": clock.spent(),
        }
        save_state(arguments.run / "unet-state", state)

    total, reported, saved = torch.zeros((), device="cuda"), step, clock.spent()
    while clock.progress() < 1 and clock.spent() - began < arguments.pause_after:
        set_learning_rate(optimizer, learning_rate(step, clock, arguments.cooldown))
        total += train(draw(pool, unconditional))
        step += 1
        average.update(step)
        if step % EVERY == 0:
            pool.renew()
        if step == reported + REPORT:
            mean, reported = total.item() / REPORT, step
            total.zero_()
            print(f"step {step}, {clock.spent():.0f} s, loss {mean:.5f}", flush=True)
            if not math.isfinite(mean):
                raise SystemExit("the loss is not finite; the last state is untouched")
            if clock.spent() - saved > SAVE:
                saved = clock.spent()
                save()

    save_compiled(arguments.compiled)
    save()
    average.apply()
    for model, name in zip(models, ("unet", "text_encoder")):
        (arguments.run / name).mkdir(parents=True, exist_ok=True)
        save_component(half_rounded(model), arguments.run / name, torch.float16)
    print(f"{step} steps in {clock.spent():.0f} s, in {arguments.run}")


if __name__ == "__main__":
    main()
