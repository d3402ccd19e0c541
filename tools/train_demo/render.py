"""Paints scenes: emoji, tinted, turned and put on a background, in batches on the GPU."""

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from colours import COLOURS
from PIL import Image
from scenes import MAX_OBJECTS

SIZE = 256
LUMA = torch.tensor([0.299, 0.587, 0.114])
# Below this size an emoji is drawn from its half-size copy, so that shrinking does not alias.
HALF_SIZE_BELOW = 0.6


def load_sprites(path):
    """The emoji's pictures, uint8 [n, 4, 256, 256], red green blue alpha."""
    packed = np.load(path)
    ends = packed["sizes"].cumsum()
    sprites = torch.empty(len(ends), 4, SIZE, SIZE, dtype=torch.uint8)
    for index, (end, size) in enumerate(zip(ends, packed["sizes"])):
        picture = Image.open(io.BytesIO(packed["bytes"][end - size : end].tobytes())).convert("RGBA")
        if picture.size != (SIZE, SIZE):
            picture.thumbnail((SIZE, SIZE))
            square = Image.new("RGBA", (SIZE, SIZE))
            square.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
            picture = square
        sprites[index] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return sprites


def as_arrays(scenes):
    """Scenes as arrays of [scene, object, ...]: what a worker hands to the process that paints."""
    numbers = np.zeros((len(scenes), MAX_OBJECTS, 5), np.float32)
    # emoji (-1: none), tint (-1: none)
    indices = np.full((len(scenes), MAX_OBJECTS, 2), -1, np.int64)
    for row, scene in enumerate(scenes):
        for column, placed in enumerate(scene.objects):
            mirrored = -1.0 if placed.mirrored else 1.0
            numbers[row, column] = placed.x, placed.y, placed.size, np.radians(placed.angle), mirrored
            indices[row, column] = placed.emoji, -1 if placed.tint is None else placed.tint
    backgrounds = np.array([scene.background for scene in scenes])
    return numbers, indices, backgrounds


class Painter:
    def __init__(self, sprites, device):
        self.sprites = sprites.to(device)
        self.colours = torch.tensor(list(COLOURS.values()), device=device) / 255
        self.luma = LUMA.to(device)[:, None, None]
        means = []
        for batch in self.sprites.split(64):
            colour, alpha = batch[:, :3].float() / 255, batch[:, 3:].float()
            luma = (colour * self.luma).sum(1, keepdim=True)
            means.append((luma * alpha).sum((1, 2, 3)) / alpha.sum((1, 2, 3)))
        self.mean_luma = torch.cat(means).clamp(0.15, 0.85)

    def tinted(self, colour, emoji, tint):
        """The emoji's shades in one colour: its mean brightness becomes the colour, darker goes towards black, lighter
        towards white."""
        gamma = math.log(0.5) / self.mean_luma[emoji].log()
        shade = (colour * self.luma).sum(1, keepdim=True).clamp(1e-3, 1) ** gamma[:, None, None, None]
        named = self.colours[tint.clamp(min=0)][:, :, None, None]
        dark = named * (0.25 + 1.5 * shade)
        light = named + (1 - named) * (shade - 0.5) * 1.1
        return torch.where(shade < 0.5, dark, light)

    def objects(self, numbers, emoji, tint):
        """Premultiplied pictures [n, 4, 256, 256] of single emoji in their places."""
        sprite = self.sprites[emoji].float() / 255
        colour, alpha = sprite[:, :3], sprite[:, 3:]
        colour = torch.where((tint >= 0)[:, None, None, None], self.tinted(colour, emoji, tint), colour)
        sprite = torch.cat([colour * alpha, alpha], 1)
        x, y, size, angle, mirrored = numbers.unbind(1)
        sine, cosine = angle.sin() / size, angle.cos() / size
        # From the picture's coordinates, -1 to 1, to the sprite's: move to the centre, turn, grow, mirror.
        shift_x, shift_y = 1 - 2 * x, 1 - 2 * y
        across = torch.stack([cosine, sine, cosine * shift_x + sine * shift_y], 1) * mirrored[:, None]
        down = torch.stack([-sine, cosine, -sine * shift_x + cosine * shift_y], 1)
        grid = F.affine_grid(torch.stack([across, down], 1), [len(x), 4, SIZE, SIZE], align_corners=False)
        full = F.grid_sample(sprite, grid, align_corners=False)
        half = F.grid_sample(F.avg_pool2d(sprite, 2), grid, align_corners=False)
        return torch.where((size < HALF_SIZE_BELOW)[:, None, None, None], half, full)

    @torch.no_grad()
    def paint(self, numbers, indices, backgrounds):
        """Pictures [n, 3, 256, 256], -1 to 1, of what `as_arrays` made."""
        canvas = self.colours[backgrounds][:, :, None, None].expand(-1, -1, SIZE, SIZE).contiguous()
        for column in range(MAX_OBJECTS):
            present = (indices[:, column, 0] >= 0).nonzero()[:, 0]
            if len(present):
                emoji, tint = indices[present, column].unbind(1)
                layer = self.objects(numbers[present, column], emoji, tint)
                canvas[present] = layer[:, :3] + canvas[present] * (1 - layer[:, 3:])
        return canvas * 2 - 1
