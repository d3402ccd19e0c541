"""Which emoji the model learns, and what people call them.

The names are emojibase's labels; its shortcodes and GitHub's give other words for the same emoji. Left out are
emoji that differ from another by gender, skin tone or hour alone, country flags, keycaps, and
buttons with letters on them: 2,200 pictures that would take the place of things people ask for.
"""

import json
import re
import unicodedata
from dataclasses import asdict, dataclass

from colours import COLOURS

# How often an emoji of a group is drawn.
GROUPS = {
    "smileys-emotion": 1.2,
    "animals-nature": 1.4,
    "food-drink": 1.4,
    "travel-places": 1.0,
    "activities": 1.0,
    "objects": 1.0,
    "people-body": 0.8,
    "symbols": 0.8,
    "flags": 0.8,
}
LEFT_OUT = {"family", "country-flag", "keycap", "alphanum", "av-symbol", "arrow", "zodiac", "geometric", "gender"}
LEFT_OUT |= {"transport-sign", "currency", "math", "religion", "other-symbol", "punctuation", "warning"}
KEPT = {
    "red circle",
    "red square",
    "red triangle pointed up",
    "large orange diamond",
    "yin yang",
    "peace symbol",
    "atom symbol",
    "star of david",
    "recycling symbol",
    "fleur-de-lis",
    "check mark",
    "cross mark",
    "infinity",
    "plus",
    "red question mark",
    "red exclamation mark",
    "heavy dollar sign",
    "warning",
    "no entry",
    "radioactive",
    "biohazard",
    "man dancing",
    "woman dancing",
    "woman with headscarf",
    "deaf person",
}
VARIANTS = re.compile(
    r"^(man|woman|men|women|mx) |^(person, |deaf |pregnant (man|person))|o'clock$|-thirty$|^(waxing|waning) |quarter moon"
    r"|^((light )?blue|orange|yellow|green|purple|brown|black|grey|white|pink) (heart|book)$|^japanese (post|symbol)"
    r"|^grinning cat$|^snowman without snow$"  # the pictures of cat face and snowman
)
# Names that stand in the way: the word means something else to most people, or names two things.
CONFUSING = {"hand", "face", "person", "eye", "down", "top"}
# A mirrored picture would be wrong for these.
ONE_WAY = re.compile(
    r"left|right|clock|calendar|abc|hundred|zzz|question|dvd|ticket|banknote|newspaper|keyboard|map|globe|game die"
    r"|medal|pool 8 ball|playing cards|mahjong|stop sign|hospital|hotel|bank|convenience|atm|musical|chart|joker"
)
# Groups that come in any colour; a blue person is not what people mean.
TINTED = {"smileys-emotion", "animals-nature", "food-drink", "travel-places", "activities", "objects", "symbols"}

PLURALS = {
    "wolf": "wolves",
    "leaf": "leaves",
    "knife": "knives",
    "mouse": "mice",
    "goose": "geese",
    "tooth": "teeth",
    "foot": "feet",
    "child": "children",
    "person": "people",
    "man": "men",
    "woman": "women",
    "fish": "fish",
    "deer": "deer",
    "bison": "bison",
    "squid": "squid",
    "shrimp": "shrimp",
    "moose": "moose",
    "ox": "oxen",
}


@dataclass
class Emoji:
    """One picture of the set. `noun` is what is left of the label for "a blue ...", empty where no tint goes."""

    file: str
    label: str
    aliases: list[str]
    noun: str
    plural: str
    group: str
    weight: float
    mirrored: bool


def plain(text):
    """Lower case, ASCII, as people type: "Piñata" -> "pinata"."""
    text = unicodedata.normalize("NFKD", text.replace("’", "'").replace("“", "").replace("”", ""))
    return "".join(c for c in text if not unicodedata.combining(c)).lower().replace(":", ",").strip()


def without_variation(code):
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def plural(noun):
    first, _, last = noun.rpartition(" ")
    if len(noun.split()) > 2 or not noun.replace(" ", "").isalpha() or last.endswith("s"):
        return ""
    if last in PLURALS:
        last = PLURALS[last]
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    elif re.search(r"(x|z|ch|sh)$", last):
        last += "es"
    else:
        last += "s"
    return f"{first} {last}".strip()


def uncoloured(name):
    words = [word for word in name.split() if word not in COLOURS and word != "large"]
    return " ".join(words)


def choose(data, messages, shortcodes, files):
    """The list of Emoji, from emojibase's data.json, messages.json and shortcodes, for the pictures in `files`."""
    groups = {entry["order"]: entry["key"] for entry in messages["groups"]}
    subgroups = {entry["order"]: entry["key"] for entry in messages["subgroups"]}
    available = {without_variation(file.removesuffix(".webp")): file for file in files}
    entries = []
    for entry in data:
        file = available.get(without_variation(entry["hexcode"]))
        group, subgroup = groups.get(entry.get("group")), subgroups.get(entry.get("subgroup"))
        label = plain(entry["label"])
        wanted = subgroup not in LEFT_OUT and not VARIANTS.search(label)
        if file and group in GROUPS and (wanted or label in KEPT):
            entries.append((file, label, group, entry["hexcode"]))

    taken = {label for _, label, _, _ in entries}
    labels = set(taken)
    nouns = set()
    chosen = []
    for file, label, group, code in entries:
        aliases = []
        for table in shortcodes:
            names = table.get(code, [])
            for name in [names] if isinstance(names, str) else names:
                name = plain(name.replace("_", " "))
                known = name in taken or name in CONFUSING or len(name) < 3
                if not known and not set(name.split()) & set(COLOURS) and not re.search(r"\d", name):
                    taken.add(name)
                    aliases.append(name)
        noun = uncoloured(label)
        tinted = group in TINTED and noun and noun not in nouns and (noun == label or noun not in labels)
        nouns.add(noun)
        chosen.append(
            Emoji(
                file=file,
                label=label,
                aliases=aliases,
                noun=noun if tinted else "",
                plural=plural(label) if group in TINTED or " " not in label else "",
                group=group,
                weight=GROUPS[group],
                mirrored=not ONE_WAY.search(label) and group not in ("symbols", "flags"),
            )
        )
    return chosen


def save(path, emoji):
    path.write_text(json.dumps([asdict(entry) for entry in emoji], indent=0))


def load(path):
    return [Emoji(**entry) for entry in json.loads(path.read_text())]
