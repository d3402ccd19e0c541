"""Sees what a picture shows: its background, where its objects are, which emoji they are, and in which colour.

Pictures are [n, 3, 256, 256], 0 to 1.
"""

import itertools

import torch
import torch.nn.functional as F
from colours import COLOUR_NAMES
from render import SIZE, as_arrays
from scenes import Placed, Scene

WHITE, BLACK = COLOUR_NAMES.index("white"), COLOUR_NAMES.index("black")
# Pixels that differ from the background by more belong to an object.
THRESHOLD = 20 / 255
# Masks are cleaned, and their parts counted, at a quarter of their size. Parts that cover less of the picture than this
# are specks, or too small to count.
COARSE = 4
SPECK = 0.003
BLOB = 0.015
# What is compared: objects cut out, their longer edge this share of a square of this many pixels.
CUT_OUT = 128
FILLED = 0.9
ANGLES = (-8.0, 0.0, 8.0)
# How much a colour's own shade counts against lighter and darker shades of it.
SHADE_COST = 0.1
BATCH = 64


def corners(pictures):
    """The mean colours of the four corners, [n, 4, 3]."""
    ends = slice(4), slice(-4, None)
    patches = [pictures[:, :, rows, columns].mean((2, 3)) for rows in ends for columns in ends]
    return torch.stack(patches, 1)


def foreground(pictures):
    """Masks [n, 256, 256] of what differs from the background, the median of a frame along the edges. Left out are specks
    and the outermost pixels, where autoencoders err."""
    frame = torch.cat([pictures[:, :, 4:12].flatten(2), pictures[:, :, -12:-4].flatten(2)], 2)
    frame = torch.cat([frame, pictures[..., 4:12].flatten(2), pictures[..., -12:-4].flatten(2)], 2)
    background = frame.median(2).values[:, :, None, None]
    coarse = (F.avg_pool2d(pictures, COARSE) - background).abs().amax(1) > THRESHOLD
    coarse = without_edges(coarse, 1)
    labels = connected(coarse)
    areas = torch.zeros(len(labels), int(labels.max()) + 1, device=labels.device)
    areas.scatter_add_(1, labels.flatten(1), torch.ones_like(labels, dtype=areas.dtype).flatten(1))
    kept = coarse & (areas.gather(1, labels.flatten(1)).reshape(labels.shape) >= SPECK * coarse[0].numel())
    near = F.interpolate(F.max_pool2d(kept[:, None].float(), 3, 1, 1), scale_factor=COARSE)[:, 0] > 0
    return without_edges(near & ((pictures - background).abs().amax(1) > THRESHOLD), COARSE)


def without_edges(masks, width):
    return F.pad(masks[:, width:-width, width:-width], (width,) * 4)


def connected(masks):
    """Numbers the connected parts of masks [n, h, w]: 0 outside, in each part one number above 0."""
    numbers = torch.arange(1, masks[0].numel() + 1, device=masks.device).reshape(masks[0].shape)
    labels, before = masks * numbers.float(), None
    while before is None or not torch.equal(labels, before):
        before = labels
        across, down = F.max_pool2d(labels, (1, 3), 1, (0, 1)), F.max_pool2d(labels, (3, 1), 1, (1, 0))
        labels = torch.maximum(across, down) * masks
    return labels.long()


def boxes(masks):
    """left, top, right, bottom [n, 4] as shares of the edge, of the rows and columns that hold two pixels or more; of an
    empty mask the whole picture."""
    sides = []
    for axis in (1, 2):
        held = masks.sum(axis) >= 2
        held |= ~held.any(1, keepdim=True)
        first = held.float().argmax(1)
        last = SIZE - held.flip(1).float().argmax(1)
        sides.append((first / SIZE, last / SIZE))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1)


def cut_out(pictures, masks):
    """Objects on white [n, 3, 128, 128], whatever their place and size were."""
    left, top, right, bottom = boxes(masks).unbind(1)
    scale = torch.maximum(right - left, bottom - top) / FILLED
    zero = torch.zeros_like(scale)
    across = torch.stack([scale, zero, left + right - 1], 1)
    down = torch.stack([zero, scale, top + bottom - 1], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(pictures.shape), align_corners=False)
    # Less white, so that what lies beyond the edges, zero, is white too.
    below_white = (pictures - 1) * masks[:, None]
    return F.avg_pool2d(F.grid_sample(below_white, grid, align_corners=False), SIZE // CUT_OUT) + 1


def halves(masks, stacked):
    """Masks of the left and right (or upper and lower) objects of pairs, parted at the emptiest column (row) near the
    middle."""
    axis = 1 if stacked else 2
    filled = masks.sum(3 - axis)
    near = torch.arange(SIZE, device=masks.device)
    distance = (near - SIZE / 2).abs()
    cost = filled + distance / SIZE + (distance > 0.1 * SIZE) * SIZE
    before = near < cost.argmin(1, keepdim=True)
    before = before[:, :, None] if stacked else before[:, None, :]
    return masks & before, masks & ~before


def blobs(masks):
    """For each mask the masks of its connected parts, the small ones left out."""
    labels = connected(F.avg_pool2d(masks[:, None].float(), COARSE)[:, 0] > 0.5)
    found = []
    for label, mask in zip(F.interpolate(labels[:, None].float(), scale_factor=COARSE)[:, 0], masks):
        values, areas = label[label > 0].unique(return_counts=True)
        found.append([mask & (label == value) for value in values[areas >= BLOB * SIZE * SIZE]])
    return found


class Colours:
    """Names the colours of pixels. A tint is a ramp of shades (Painter.tinted): from a quarter of the named colour, over
    the colour, to half way to white. A pixel has the tint for which its squared distance to a shade, plus 0.1 times that
    of the shade to the named colour, is least."""

    def __init__(self, colours):
        self.colours = colours
        shade = torch.linspace(0, 1, 21, device=colours.device)[:, None]
        named = colours[:, None]
        dark, light = named * (0.25 + 1.5 * shade), named + (1 - named) * (shade - 0.5) * 1.1
        self.ramps = torch.where(shade < 0.5, dark, light)
        self.costs = SHADE_COST * (self.ramps - named).square().sum(2)

    def nearest(self, colours):
        """Of flat colours [..., 3], with no shades."""
        return (colours[..., None, :] - self.colours).square().sum(-1).argmin(-1)

    def dominant(self, pictures, masks):
        """The tint that most pixels of the masks have, [n]."""
        winners = []
        for picture, mask in zip(pictures, masks):
            pixels = picture[:, mask].T[::2]
            distances = torch.cdist(pixels, self.ramps.flatten(0, 1)).square()
            tints = (distances.unflatten(1, self.costs.shape) + self.costs).amin(2).argmin(1)
            winners.append(tints.bincount(minlength=len(self.colours)).argmax())
        return torch.stack(winners)


class Recognizer:
    """Compares latents of cut-out objects with those of every name's picture, as it is and (unless that would be wrong)
    mirrored, at three angles; of tinted ones upright alone."""

    def __init__(self, vae, painter, emoji):
        self.vae = vae
        self.painter = painter
        self.emoji = emoji
        self.galleries = {}

    @torch.no_grad()
    def latents(self, cut_outs):
        encoded = [
            self.vae.encode((batch * 2 - 1).to(self.vae.dtype)).latent_dist.mean.float().flatten(1)
            for batch in cut_outs.split(BATCH)
        ]
        return torch.cat(encoded)

    def paint(self, scenes):
        pictures = []
        for start in range(0, len(scenes), BATCH):
            arrays = as_arrays(scenes[start : start + BATCH])
            arrays = (torch.from_numpy(array).to(self.painter.colours.device) for array in arrays)
            pictures.append((self.painter.paint(*arrays).clamp(-1, 1) + 1) / 2)
        return torch.cat(pictures)

    def gallery(self, tint):
        """The emoji that may have this tint, and their latents [emoji, variant, ...]."""
        if tint not in self.galleries:
            shown = [index for index, entry in enumerate(self.emoji) if tint is None or entry.noun]
            background = BLACK if tint == WHITE else WHITE
            variants = itertools.product(shown, ANGLES if tint is None else (0.0,), (False, True))
            scenes = [
                Scene("", background, [Placed(i, 0.5, 0.5, 0.9, angle, flipped and self.emoji[i].mirrored, tint)])
                for i, angle, flipped in variants
            ]
            latents = []
            for start in range(0, len(scenes), BATCH):
                pictures = self.paint(scenes[start : start + BATCH])
                latents.append(self.latents(cut_out(pictures, foreground(pictures))))
            names = torch.tensor(shown, device=latents[0].device)
            self.galleries[tint] = names, torch.cat(latents).unflatten(0, (len(shown), -1))
        return self.galleries[tint]

    def names(self, pictures, masks, tint=None):
        """The five nearest emoji of each picture's masked object, [n, 5], out of all that may have the tint."""
        names, gallery = self.gallery(tint)
        distances = torch.cdist(self.latents(cut_out(pictures, masks)), gallery.flatten(0, 1))
        return names[distances.unflatten(1, gallery.shape[:2]).amin(2).topk(5, largest=False).indices]
