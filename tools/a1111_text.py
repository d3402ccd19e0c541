#!/usr/bin/env python3
"""The text that A1111 keeps in pictures, written and read by its rules, as a check of what sdrt writes.

    pip install pillow piexif
    python tools/a1111_text.py PICTURE ...       # prints what A1111 would take from each

Rules: create_infotext of processing.py and parse_generation_parameters of infotext_utils.py (1.10).
"""

import json
import re
import sys

import piexif
import piexif.helper
from PIL import Image

SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def write(prompt, negative_prompt, settings):
    def quoted(value):
        return json.dumps(value, ensure_ascii=False) if any(c in value for c in ",:\n") else value

    lines = [prompt]
    if negative_prompt:
        lines.append(f"Negative prompt: {negative_prompt}")
    lines.append(", ".join(f"{key}: {quoted(value)}" for key, value in settings.items()))
    return "\n".join(lines)


def unquoted(value):
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def parse(text):
    """Prompt, negative prompt and settings, before A1111 fills in what is missing."""
    lines = text.strip().split("\n")
    found = SETTING.findall(lines[-1])
    if len(found) < 3:
        found = []
    else:
        lines.pop()
    prompts = {"Prompt": "", "Negative prompt": ""}
    part = "Prompt"
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            part = "Negative prompt"
            line = line[len("Negative prompt:") :].strip()
        prompts[part] += line if prompts[part] == "" else "\n" + line
    # An empty value is an error to A1111, which goes on with the next.
    return prompts | {key: unquoted(value) for key, value in found if value}


def read(path):
    """The text of a picture, as read_info_from_image of A1111's images.py finds it."""
    with Image.open(path) as image:
        image.load()
        text = image.info.get("parameters")
        if "exif" in image.info:
            comment = piexif.load(image.info["exif"])["Exif"].get(piexif.ExifIFD.UserComment, b"")
            text = piexif.helper.UserComment.load(comment) or text
    return text


if __name__ == "__main__":
    for picture in sys.argv[1:]:
        print(json.dumps({"picture": picture, **parse(read(picture) or "")}, ensure_ascii=False, indent=1))
