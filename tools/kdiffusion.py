"""Samplers of k-diffusion, and ComfyUI's ipndm, from their formulas, in f64.

Each takes `denoise(x, sigma)`, which is told with `on_schedule=False` that a level is not one of `sigmas`; latents
`x = sample + sigma * noise`; the noise levels; `noise()`, which draws some; and eta. Where k-diffusion has a
Brownian tree, noise is drawn once a step.
"""

import itertools
import math

import numpy as np


def ancestral(sigma, sigma_next, eta):
    """How far down to step and how much noise to add (`get_ancestral_step`). In f32 there, which tells where
    levels are far apart."""
    sigma, sigma_next, eta = np.float32(sigma), np.float32(sigma_next), np.float32(eta)
    up = min(sigma_next, eta * np.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return float(np.sqrt(sigma_next**2 - up**2)), float(up)


def euler_ancestral(denoise, x, sigmas, noise, eta):
    for sigma, sigma_next in itertools.pairwise(sigmas):
        down, up = ancestral(sigma, sigma_next, eta)
        x = x + (x - denoise(x, sigma)) / sigma * (down - sigma)
        if up > 0:
            x = x + up * noise()
    return x


def dpm2_ancestral(denoise, x, sigmas, noise, eta):
    for sigma, sigma_next in itertools.pairwise(sigmas):
        down, up = ancestral(sigma, sigma_next, eta)
        slope = (x - denoise(x, sigma)) / sigma
        if down == 0:
            x = x - slope * sigma
            continue
        middle = math.exp((math.log(sigma) + math.log(down)) / 2)
        there = x + slope * (middle - sigma)
        x = x + (there - denoise(there, middle, on_schedule=False)) / middle * (down - sigma)
        if up > 0:
            x = x + up * noise()
    return x


def dpmpp_2s_ancestral(denoise, x, sigmas, noise, eta):
    for sigma, sigma_next in itertools.pairwise(sigmas):
        down, up = ancestral(sigma, sigma_next, eta)
        denoised = denoise(x, sigma)
        if down == 0:
            x = denoised + up * noise() if up > 0 else denoised
            continue
        h = math.log(sigma) - math.log(down)
        middle = math.exp(math.log(sigma) - h / 2)
        there = middle / sigma * x - math.expm1(-h / 2) * denoised
        x = down / sigma * x - math.expm1(-h) * denoise(there, middle, on_schedule=False)
        if up > 0:
            x = x + up * noise()
    return x


def dpmpp_sde(order):
    def sample(denoise, x, sigmas, noise, eta):
        samples, steps = [], []
        for sigma, sigma_next in itertools.pairwise(sigmas):
            samples.insert(0, denoise(x, sigma))
            if sigma_next == 0:
                x = samples[0]
                continue
            h = math.log(sigma) - math.log(sigma_next)
            h_eta = h * (1 + eta)
            x = math.exp(-h_eta) * x - math.expm1(-h_eta) * samples[0]
            phi_2 = math.expm1(-h_eta) / h_eta + 1
            phi_3 = phi_2 / h_eta - 0.5
            slopes = [(new - old) / (step / h) for new, old, step in zip(samples, samples[1:], steps)]
            if order == 2 and slopes:
                x = x - 0.5 * math.expm1(-h_eta) * slopes[0]
            elif len(slopes) == 1:
                x = x + phi_2 * slopes[0]
            elif slopes:
                r0, r1 = steps[0] / h, steps[1] / h
                change = (slopes[0] - slopes[1]) / (r0 + r1)
                x = x + phi_2 * (slopes[0] + change * r0) - phi_3 * change
            if eta > 0:
                x = x + sigma_next * math.sqrt(-math.expm1(-2 * h * eta)) * noise()
            steps.insert(0, h)
        return x

    return sample


def ipndm(denoise, x, sigmas, noise, eta):
    weights = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    slopes = []
    for sigma, sigma_next in itertools.pairwise(sigmas):
        denoised = denoise(x, sigma)
        slopes = [(x - denoised) / sigma, *slopes[:3]]
        slope = sum(weight * slope for weight, slope in zip(weights[len(slopes)], slopes))
        x = denoised if sigma_next == 0 else x + (sigma_next - sigma) * slope
    return x


SAMPLERS = {
    "euler-a": euler_ancestral,
    "dpm2-a": dpm2_ancestral,
    "dpm++2s-a": dpmpp_2s_ancestral,
    "dpm++2m-sde": dpmpp_sde(2),
    "dpm++3m-sde": dpmpp_sde(3),
    "ipndm": ipndm,
}
