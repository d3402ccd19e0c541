"""What the training pictures show, and how a caption says it.

A scene is a background and up to four emoji, each with a place, a size, an angle and perhaps a tint. Captions are
drawn from a small grammar: "a blue apple", "small fox in the top left corner", "cat left of rocket on a green
background", "three stars". Some combinations never occur in training (`held_out`), so that evaluate.py can ask for them.
A background that is not named is white, so of a white one that is held out it is the words that are new.
"""

import zlib
from dataclasses import dataclass, field

from colours import COLOUR_NAMES, COLOURS, DEFAULT_BACKGROUND

MAX_OBJECTS = 4
# Shares of the kinds of scenes.
KINDS = {"single": 0.44, "tinted": 0.18, "placed": 0.07, "pair": 0.23, "count": 0.08}
# Share of scenes whose caption names a background.
NAMED_BACKGROUND = 0.5
# Share of emoji in pairs and other scenes that are tinted.
ALSO_TINTED = 0.2
ANGLE = 8.0

PLACES = {
    "on the left": (0.27, 0.5),
    "on the right": (0.73, 0.5),
    "at the top": (0.5, 0.27),
    "at the bottom": (0.5, 0.73),
    "in the top left corner": (0.25, 0.25),
    "in the top right corner": (0.75, 0.25),
    "in the bottom left corner": (0.25, 0.75),
    "in the bottom right corner": (0.75, 0.75),
}
BESIDE = [
    ("{a} and {b}", 8),
    ("{a} left of {b}", 2),
    ("{a} to the left of {b}", 2),
    ("{b} right of {a}", 2),
    ("{b} to the right of {a}", 2),
    ("{a} next to {b}", 2),
    ("{a} beside {b}", 2),
]
STACKED = [
    ("{a} above {b}", 3),
    ("{a} on top of {b}", 3),
    ("{a} over {b}", 1),
    ("{b} below {a}", 3),
    ("{b} under {a}", 3),
]
GROUPED = {
    "two": [(0.27, 0.5), (0.73, 0.5)],
    "three": [(0.5, 0.28), (0.27, 0.72), (0.73, 0.72)],
    "four": [(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)],
}
DIGITS = {"two": "2", "three": "3", "four": "4"}
STYLES = [("{}", 14), ("an emoji of {}", 2), ("{} emoji", 2), ("a 3d emoji of {}", 1), ("a 3d render of {}", 1)]
# {a}: the colour with its article.
BACKGROUNDS = [(" on {a} background", 14), (", {} background", 3), (" on {}", 2), (" with {a} background", 2)]


@dataclass
class Placed:
    """An emoji in a scene. `x`, `y`: its centre, `size`: its edge, all as shares of the picture's edge; degrees."""

    emoji: int
    x: float
    y: float
    size: float
    angle: float
    mirrored: bool
    tint: int | None


@dataclass
class Scene:
    caption: str
    background: int
    objects: list[Placed] = field(default_factory=list)


def with_article(text):
    return ("an " if text[0] in "aeiou" else "a ") + text


def held_out(kind, *what, share):
    """Whether a combination is kept out of training, by a hash of its names that never changes."""
    return zlib.crc32("|".join((kind, *what)).encode()) % 1000 < 1000 * share


class Grammar:
    """Draws scenes. `rng` is a random.Random: the same generator draws the same scenes."""

    def __init__(self, emoji, rng):
        self.emoji = emoji
        self.rng = rng
        everything = range(len(emoji))
        self.weights = [entry.weight for entry in emoji]
        self.choices = {
            "any": list(everything),
            "tinted": [i for i in everything if emoji[i].noun],
            "counted": [i for i in everything if emoji[i].plural],
        }

    # What is kept out of training.

    def background_held_out(self, emoji, background):
        return held_out("background", self.emoji[emoji].label, COLOUR_NAMES[background], share=0.05)

    def tint_held_out(self, emoji, tint):
        return held_out("tint", self.emoji[emoji].label, COLOUR_NAMES[tint], share=0.1)

    def pair_held_out(self, first, second):
        return held_out("pair", *sorted((self.emoji[first].label, self.emoji[second].label)), share=0.1)

    # Words.

    def pick(self, weighted):
        texts, weights = zip(*weighted)
        return self.rng.choices(texts, weights)[0]

    def name(self, emoji):
        entry = self.emoji[emoji]
        if entry.aliases and self.rng.random() < 0.3:
            return self.rng.choice(entry.aliases)
        return entry.label

    def phrase(self, emoji, tint=None, adjective=None, article=None):
        """ "a small blue apple": a name with what goes before it."""
        entry = self.emoji[emoji]
        name = self.name(emoji) if tint is None else entry.noun
        words = [adjective, COLOUR_NAMES[tint] if tint is not None else None, name]
        text = " ".join(word for word in words if word)
        if article is None:
            article = self.rng.random() < 0.5
        if article and not (name.endswith("s") and not name.endswith("ss")):
            text = with_article(text)
        return text

    def with_background(self, text, background):
        if background is None:
            return text
        colour = COLOUR_NAMES[background]
        if colour == "gray" and self.rng.random() < 0.3:
            colour = "grey"
        return text + self.pick(BACKGROUNDS).format(colour, a=with_article(colour))

    # Scenes. `background` and `tint` index COLOUR_NAMES; None: not named.

    def place(self, emoji, x, y, size, tint=None):
        rng = self.rng
        mirrored = self.emoji[emoji].mirrored and rng.random() < 0.5
        return Placed(emoji, x, y, size, rng.uniform(-ANGLE, ANGLE), mirrored, tint)

    def about(self, centre, spread):
        return centre + self.rng.uniform(-spread, spread)

    def finish(self, text, background, objects):
        shown = DEFAULT_BACKGROUND if background is None else background
        return Scene(self.with_background(text, background), shown, objects)

    def single(self, emoji, background=None, tint=None):
        size = self.rng.uniform(0.8, 1.0)
        free = (1 - size) / 2 + 0.02
        text = self.pick(STYLES).format(self.phrase(emoji, tint))
        placed = self.place(emoji, self.about(0.5, free), self.about(0.5, free), size, tint)
        return self.finish(text, background, [placed])

    def placed(self, emoji, background=None, tint=None):
        adjective, where = self.rng.choice(["small", "tiny", "big", None, None]), ""
        size = {"small": (0.4, 0.5), "tiny": (0.26, 0.34), "big": (1.0, 1.1), None: (0.42, 0.52)}[adjective]
        x, y = self.about(0.5, 0.04), self.about(0.5, 0.04)
        if adjective is None or (adjective != "big" and self.rng.random() < 0.6):
            where = self.rng.choice(list(PLACES))
            x, y = (self.about(centre, 0.03) for centre in PLACES[where])
        text = f"{self.phrase(emoji, tint, adjective)} {where}".strip()
        return self.finish(text, background, [self.place(emoji, x, y, self.rng.uniform(*size), tint)])

    def pair(self, first, second, background=None, tints=(None, None), stacked=False):
        """`first` is left of or above `second`, whichever the caption names first."""
        form = self.pick(STACKED if stacked else BESIDE)
        text = form.format(a=self.phrase(first, tints[0]), b=self.phrase(second, tints[1]))
        objects = []
        for emoji, tint, centre in ((first, tints[0], 0.26), (second, tints[1], 0.74)):
            along, across = self.about(centre, 0.02), self.about(0.5, 0.05)
            x, y = (across, along) if stacked else (along, across)
            objects.append(self.place(emoji, x, y, self.rng.uniform(0.45, 0.54), tint))
        return self.finish(text, background, objects)

    def count(self, emoji, number, background=None, tint=None):
        entry = self.emoji[emoji]
        words = [DIGITS[number] if self.rng.random() < 0.2 else number, entry.plural]
        if tint is not None:
            words.insert(1, COLOUR_NAMES[tint])
        size = self.rng.uniform(0.38, 0.45)
        objects = [
            self.place(emoji, self.about(x, 0.02), self.about(y, 0.02), size, tint)
            for x, y in GROUPED[number]
        ]
        return self.finish(" ".join(words), background, objects)

    # Training: scenes at random, but none that is held out.

    def draw(self, kind="any"):
        choices = self.choices[kind]
        return self.rng.choices(choices, [self.weights[i] for i in choices])[0]

    def draw_background(self, emoji):
        """None, or a background whose combinations with these emoji may be seen in training."""
        if self.rng.random() >= NAMED_BACKGROUND:
            return None
        allowed = [c for c in range(len(COLOURS)) if not any(self.background_held_out(e, c) for e in emoji)]
        return self.rng.choice(allowed or [None])

    def draw_tint(self, emoji, background):
        """A tint that may be seen in training and is not the background's colour."""
        shown = DEFAULT_BACKGROUND if background is None else background
        allowed = [c for c in range(len(COLOURS)) if c != shown and not self.tint_held_out(emoji, c)]
        return self.rng.choice(allowed or [None])

    def perhaps_tint(self, emoji, background):
        tintable = self.emoji[emoji].noun and self.rng.random() < ALSO_TINTED
        return self.draw_tint(emoji, background) if tintable else None

    def scene(self):
        kind = self.rng.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "pair":
            return self.draw_pair()
        emoji = self.draw({"tinted": "tinted", "count": "counted"}.get(kind, "any"))
        background = self.draw_background([emoji])
        if kind == "single":
            return self.single(emoji, background)
        if kind == "tinted":
            return self.single(emoji, background, self.draw_tint(emoji, background))
        tint = self.perhaps_tint(emoji, background)
        if kind == "placed":
            return self.placed(emoji, background, tint)
        if tint is not None and self.emoji[emoji].noun != self.emoji[emoji].label:
            tint = None
        return self.count(emoji, self.rng.choice(list(GROUPED)), background, tint)

    def draw_pair(self):
        while True:
            first, second = self.draw(), self.draw()
            if first != second and not self.pair_held_out(first, second):
                break
        background = self.draw_background([first, second])
        tints = (self.perhaps_tint(first, background), self.perhaps_tint(second, background))
        return self.pair(first, second, background, tints, stacked=self.rng.random() < 0.35)
