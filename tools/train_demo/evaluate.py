#!/usr/bin/env python3
"""Measures whether a model's pictures show what their prompts say.

    python tools/train_demo/evaluate.py --model models/emoji --out FILE.json [--data .train] [--pictures DIR] [--truth]

Prompts come from the grammar of the training scenes; backgrounds, tints and pairs are those kept out of training. What a
picture shows is seen by recognize.py. --truth paints the scenes, passes them through the autoencoder, and measures these
instead: the most that a model could reach.
"""

import argparse
import json
import pathlib
import random
import time
import zlib
from dataclasses import dataclass, replace

import diffusers
import names
import torch
import transformers
from colours import COLOUR_NAMES, COLOURS
from diffusers import StableDiffusionPipeline
from models import GUIDANCE_SCALE, STEPS
from PIL import Image, ImageDraw
from recognize import BATCH, WHITE, Colours, Recognizer, blobs, boxes, corners, foreground, halves
from render import Painter, load_sprites
from scenes import BESIDE, GROUPED, STACKED, Grammar, with_article

# How many pictures each measure takes; backgrounds and tints: of each colour.
BACKGROUNDS, TINTS, PAIRS, SEEDS, COUNTS, PLACES = 24, 47, 384, 128, 96, 96
# An object is in its place when its box's centre is this near, its size right within this factor.
NEAR, SIZE_FACTOR = 0.12, 1.4
# What a model that ships must reach.
WANTED = {
    ("object", "top_1"): 0.90,
    ("background", "right"): 0.99,
    ("tint", "colour"): 0.85,
    ("pair", "both"): 0.6,
    ("seeds", "mean_difference"): 8.0,
}
SHEET = 48


class Sampler:
    """Pictures of captions by the model."""

    def __init__(self, pipeline):
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline

    def __call__(self, scenes, seed):
        shape = (self.pipeline.unet.config.in_channels,) + (self.pipeline.unet.config.sample_size,) * 2
        pictures = []
        for start in range(0, len(scenes), BATCH):
            captions = [scene.caption for scene in scenes[start : start + BATCH]]
            generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(captions))]
            latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
            painted = self.pipeline(
                captions,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE_SCALE,
                latents=latents.to(self.pipeline.device, self.pipeline.dtype),
                output_type="pt",
            )
            pictures.append(painted.images.float())
        return torch.cat(pictures)


class Truth:
    """Pictures of scenes as training sees them, through the autoencoder."""

    def __init__(self, vae, recognizer):
        self.vae = vae
        self.recognizer = recognizer

    @torch.no_grad()
    def __call__(self, scenes, seed):
        pictures = []
        for painted in self.recognizer.paint(scenes).split(BATCH):
            latents = self.vae.encode((painted * 2 - 1).to(self.vae.dtype)).latent_dist.mean
            pictures.append(self.vae.decode(latents).sample.float().clamp(-1, 1) / 2 + 0.5)
        return torch.cat(pictures)


@dataclass
class Result:
    """What a measure found: numbers, and for each picture what was seen and whether it was right."""

    numbers: dict
    scenes: list
    pictures: torch.Tensor
    seen: list[str]
    right: list[bool]


def mean(values):
    return round(torch.as_tensor(values).float().mean().item(), 4)


def shares(groups, right):
    """The share of right ones in every group."""
    groups, right = list(groups), [bool(value) for value in right]
    return {name: mean([r for g, r in zip(groups, right) if g == name]) for name in dict.fromkeys(groups)}


class Evaluation:
    def __init__(self, emoji, recognizer, source, limit):
        self.emoji = emoji
        self.recognizer = recognizer
        self.source = source
        self.limit = limit
        self.colours = Colours(recognizer.painter.colours)
        self.device = recognizer.painter.colours.device

    def grammar(self, measure):
        return Grammar(self.emoji, random.Random(f"evaluation {measure}"))

    def pictures(self, measure, scenes):
        return self.source(scenes, zlib.crc32(measure.encode()))

    def indices(self, values):
        return torch.tensor(list(values), device=self.device)

    def labels(self, found):
        return [self.emoji[index].label for index in found.tolist()]

    def objects(self, scenes, which=0):
        return self.indices(scene.objects[which].emoji for scene in scenes)

    def object(self):
        """Every name alone."""
        grammar = self.grammar("object")
        scenes = [replace(grammar.single(i), caption=entry.label) for i, entry in enumerate(self.emoji) if entry.weight]
        scenes = grammar.rng.sample(scenes, len(scenes))[: self.limit]
        pictures = self.pictures("object", scenes)
        found = self.recognizer.names(pictures, foreground(pictures))
        hits = found == self.objects(scenes)[:, None]
        groups = [self.emoji[scene.objects[0].emoji].group for scene in scenes]
        numbers = {"top_1": mean(hits[:, 0]), "top_5": mean(hits.any(1)), "groups": shares(groups, hits[:, 0])}
        return Result(numbers, scenes, pictures, self.labels(found[:, 0]), hits[:, 0].tolist())

    def held_out(self, grammar, test, choices, count):
        """(emoji, colour) that are kept out of training, `count` of every colour, mixed."""
        pairs = []
        for colour in range(len(COLOURS)):
            pairs += grammar.rng.sample([(i, colour) for i in choices if test(i, colour)], count)
        grammar.rng.shuffle(pairs)
        return pairs[: self.limit]

    def background(self):
        """Held-out backgrounds: all four corners are nearest to the named colour."""
        grammar = self.grammar("background")
        scenes = [
            replace(
                grammar.single(emoji, colour),
                caption=f"{self.emoji[emoji].label} on {with_article(COLOUR_NAMES[colour])} background",
            )
            for emoji, colour in self.held_out(
                grammar, grammar.background_held_out, grammar.choices["any"], BACKGROUNDS
            )
        ]
        pictures = self.pictures("background", scenes)
        found = corners(pictures)
        named = self.indices(scene.background for scene in scenes)
        nearest = self.colours.nearest(found)
        right = (nearest == named[:, None]).all(1)
        top_1 = self.recognizer.names(pictures, foreground(pictures))[:, 0] == self.objects(scenes)
        error = (found - self.colours.colours[named][:, None]).abs() * 255
        numbers = {
            "right": mean(right),
            "corner_error_8bit": mean(error),
            "object_top_1": mean(top_1),
            "colours": shares((COLOUR_NAMES[scene.background] for scene in scenes), right),
        }
        seen = ["/".join(COLOUR_NAMES[c] for c in dict.fromkeys(row)) for row in nearest.tolist()]
        return Result(numbers, scenes, pictures, seen, right.tolist())

    def tint(self):
        """Held-out tints: most of the object's pixels have the named tint. On white, but white objects on a colour."""
        grammar = self.grammar("tint")
        scenes = []
        for emoji, tint in self.held_out(grammar, grammar.tint_held_out, grammar.choices["tinted"], TINTS):
            allowed = [c for c in range(len(COLOURS)) if c != WHITE and not grammar.background_held_out(emoji, c)]
            background = grammar.rng.choice(allowed) if tint == WHITE else None
            caption = grammar.phrase(emoji, tint, article=True)
            if background is not None:
                caption += f" on {with_article(COLOUR_NAMES[background])} background"
            scenes.append(replace(grammar.single(emoji, background, tint), caption=caption))
        pictures = self.pictures("tint", scenes)
        masks = foreground(pictures)
        tints = self.indices(scene.objects[0].tint for scene in scenes)
        dominant = self.colours.dominant(pictures, masks)
        right = dominant == tints
        untinted = [replace(scene, objects=[replace(scene.objects[0], tint=None)]) for scene in scenes]
        untinted = self.recognizer.paint(untinted)
        base = self.colours.dominant(untinted, foreground(untinted)) == tints
        found = torch.zeros(len(scenes), 5, dtype=torch.long, device=self.device)
        for tint in tints.unique().tolist():
            chosen = tints == tint
            found[chosen] = self.recognizer.names(pictures[chosen], masks[chosen], tint)
        hits = found == self.objects(scenes)[:, None]
        numbers = {
            "colour": mean(right),
            "colour_if_untinted": mean(base),
            "object_top_1": mean(hits[:, 0]),
            "object_top_5": mean(hits.any(1)),
            "colour_and_object": mean(right & hits[:, 0]),
            "colours": shares((COLOUR_NAMES[tint] for tint in tints.tolist()), right),
        }
        seen = [f"{COLOUR_NAMES[c]} {name}" for c, name in zip(dominant.tolist(), self.labels(found[:, 0]))]
        return Result(numbers, scenes, pictures, seen, right.tolist())

    def pair_scenes(self, stacked, count):
        grammar = self.grammar(f"pair {stacked}")
        scenes = []
        while len(scenes) < count:
            first, second = grammar.draw(), grammar.draw()
            if first != second and grammar.pair_held_out(first, second):
                form = grammar.pick(STACKED if stacked else BESIDE)
                caption = form.format(a=self.emoji[first].label, b=self.emoji[second].label)
                scenes.append(replace(grammar.pair(first, second, stacked=stacked), caption=caption))
        return scenes[: self.limit]

    def pair(self):
        """Held-out pairs: each of the two is seen in its own half."""
        scenes, pictures, found, layouts = [], [], [], []
        for layout, stacked in (("beside", False), ("stacked", True)):
            drawn = self.pair_scenes(stacked, PAIRS // 2)
            painted = self.pictures(f"pair {layout}", drawn)
            parts = halves(foreground(painted), stacked)
            found.append(torch.stack([self.recognizer.names(painted, part)[:, 0] for part in parts], 1))
            scenes, pictures, layouts = scenes + drawn, pictures + [painted], layouts + [layout] * len(drawn)
        found = torch.cat(found)
        named = torch.stack([self.objects(scenes, which) for which in (0, 1)], 1)
        right, swapped = (found == named).all(1), (found == named.flip(1)).all(1)
        numbers = {
            "both": mean(right),
            "swapped": mean(swapped),
            "first": mean(found[:, 0] == named[:, 0]),
            "second": mean(found[:, 1] == named[:, 1]),
            "layouts": shares(layouts, right),
        }
        seen = [" | ".join(self.labels(row)) for row in found]
        return Result(numbers, scenes, torch.cat(pictures), seen, right.tolist())

    def seeds(self):
        """Any training captions: how far two seeds' pictures are from each other."""
        grammar = self.grammar("seeds")
        scenes = [grammar.scene() for _ in range(SEEDS)][: self.limit]
        one, other = self.pictures("one seed", scenes), self.pictures("another seed", scenes)
        difference = (one - other).abs().mean((1, 2, 3)) * 255
        numbers = {"mean_difference": mean(difference), "share_over_8": mean(difference >= 8)}
        pictures = torch.stack([one, other], 1).flatten(0, 1)
        seen = [f"{value:.1f}" for value in difference.tolist() for _ in range(2)]
        return Result(numbers, [s for scene in scenes for s in (scene, scene)], pictures, seen, [True] * len(seen))

    def count(self):
        """As many connected parts as the number says, where the painted scene has as many too."""
        grammar = self.grammar("count")
        scenes = []
        while len(scenes) < min(COUNTS, self.limit or COUNTS):
            emoji, number = grammar.draw("counted"), list(GROUPED)[len(scenes) % len(GROUPED)]
            scene = replace(grammar.count(emoji, number), caption=f"{number} {self.emoji[emoji].plural}")
            if len(blobs(foreground(self.recognizer.paint([scene])))[0]) == len(scene.objects):
                scenes.append(scene)
        pictures = self.pictures("count", scenes)
        masks = foreground(pictures)
        parts = blobs(masks)
        right = [len(found) == len(scene.objects) for found, scene in zip(parts, scenes)]
        largest = [max(found, key=torch.sum, default=mask) for found, mask in zip(parts, masks)]
        found = self.recognizer.names(pictures, torch.stack(largest))[:, 0]
        numbers = {
            "right": mean(right),
            "largest_top_1": mean(found == self.objects(scenes)),
            "numbers": shares((scene.caption.split()[0] for scene in scenes), right),
        }
        seen = [f"{len(found)} {name}" for found, name in zip(parts, self.labels(found))]
        return Result(numbers, scenes, pictures, seen, right)

    def place(self):
        """Small, tiny and big ones, in the middle, corners and sides: the box against that of the painted scene."""
        grammar = self.grammar("place")
        scenes = [grammar.placed(grammar.draw()) for _ in range(PLACES)][: self.limit]
        pictures = self.pictures("place", scenes)
        masks = foreground(pictures)
        box, true_box = boxes(masks), boxes(foreground(self.recognizer.paint(scenes)))
        offset = (box[:, :2] + box[:, 2:] - true_box[:, :2] - true_box[:, 2:]).abs().amax(1) / 2
        edges = [(b[:, 2:] - b[:, :2]).amax(1) for b in (box, true_box)]
        growth = edges[0] / edges[1]
        near, sized = offset <= NEAR, torch.maximum(growth, 1 / growth) <= SIZE_FACTOR
        found = self.recognizer.names(pictures, masks)[:, 0]
        numbers = {
            "place_and_size": mean(near & sized),
            "place": mean(near),
            "size": mean(sized),
            "object_top_1": mean(found == self.objects(scenes)),
        }
        seen = [f"{name}, {o:.2f} off, {g:.2f} large" for name, o, g in zip(self.labels(found), offset, growth)]
        return Result(numbers, scenes, pictures, seen, (near & sized).tolist())


def sheet(path, pictures, lines):
    """A sheet of the first pictures, two lines of text under each."""
    edge, columns, text = 160, 8, 28
    count = min(len(lines), SHEET)
    page = Image.new("RGB", (edge * columns, (edge + text) * -(-count // columns)), "white")
    draw = ImageDraw.Draw(page)
    for index in range(count):
        x, y = index % columns * edge, index // columns * (edge + text)
        array = (pictures[index].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        page.paste(Image.fromarray(array).resize((edge, edge), Image.LANCZOS), (x, y))
        for row, line in enumerate(lines[index]):
            draw.text((x + 2, y + edge + 13 * row), line[:28], "black")
    page.save(path)


def show(folder, measure, result):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [(scene.caption, seen) for scene, seen in zip(result.scenes, result.seen)]
    sheet(folder / f"{measure}.png", result.pictures, lines)
    missed = [index for index, right in enumerate(result.right) if not right]
    if missed:
        sheet(folder / f"{measure}-misses.png", result.pictures[missed], [lines[index] for index in missed])


def table(measures):
    for measure, numbers in measures.items():
        for name, value in numbers.items():
            if isinstance(value, dict):
                print(f"  {measure:11} {name:18} " + ", ".join(f"{k} {v:.2f}" for k, v in value.items()))
                continue
            wanted = WANTED.get((measure, name))
            verdict = "" if wanted is None else f"  wanted {wanted}: {'reached' if value >= wanted else 'NOT reached'}"
            print(f"  {measure:11} {name:18} {value:8}{verdict}")


def main():
    parser = argparse.ArgumentParser(description="Measures whether a model's pictures show what their prompts say.")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="a folder in the layout of diffusers")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(".train"))
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the numbers, as JSON")
    parser.add_argument("--pictures", type=pathlib.Path, help="a folder for sheets of pictures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="of pictures a measure (pairs: of each layout)")
    parser.add_argument("--truth", action="store_true", help="measure painted scenes: what could be reached")
    arguments = parser.parse_args()

    start = time.monotonic()
    precision = torch.float16 if arguments.device.startswith("cuda") else torch.float32
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.model, safety_checker=None, dtype=precision)
    pipeline.to(arguments.device)
    emoji = names.load(arguments.data / "names.json")
    painter = Painter(load_sprites(arguments.data / "sprites.npz"), arguments.device)
    recognizer = Recognizer(pipeline.vae, painter, emoji)
    source = Truth(pipeline.vae, recognizer) if arguments.truth else Sampler(pipeline)
    evaluation = Evaluation(emoji, recognizer, source, arguments.limit)
    measures = [evaluation.object, evaluation.background, evaluation.tint, evaluation.pair]
    measures += [evaluation.count, evaluation.place] + [evaluation.seeds] * (not arguments.truth)

    report = {
        "model": str(arguments.model),
        "pictures_by": "painter" if arguments.truth else type(pipeline.scheduler).__name__,
        "steps": STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "device": torch.cuda.get_device_name() if precision == torch.float16 else "cpu",
        "precision": str(precision).removeprefix("torch."),
        "versions": {module.__name__: str(module.__version__) for module in (torch, diffusers, transformers)},
        "measures": {},
        "misses": {},
    }
    for measure in measures:
        began, name = time.monotonic(), measure.__name__
        result = measure()
        report["measures"][name] = {"pictures": len(result.seen)} | result.numbers
        report["misses"][name] = [
            {"prompt": scene.caption, "seen": seen}
            for scene, seen, right in zip(result.scenes, result.seen, result.right)
            if not right
        ]
        if arguments.pictures:
            show(arguments.pictures, name, result)
        print(f"{name}: {len(result.seen)} pictures, {time.monotonic() - began:.1f} s", flush=True)
    report["seconds"] = round(time.monotonic() - start, 1)
    table(report["measures"])
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
