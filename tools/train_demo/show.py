#!/usr/bin/env python3
"""Paints the pictures at the top of the README with sdrt, seed 0, and puts them on one sheet.

    python tools/train_demo/show.py [--sdrt target/release/sdrt] [--out models/emoji/pictures.png]
"""

import argparse
import pathlib
import subprocess
import tempfile

from PIL import Image

EDGE, COLUMNS = 160, 6
PROMPTS = (
    "fox on a purple background",
    "rocket on a yellow background",
    "blue apple",
    "penguin to the left of a sunflower",
    "three pigs",
    "castle on a pink background",
    "green rocket on a black background",
    "lion left of watermelon",
    "pizza on a blue background",
    "robot",
    "octopus above pineapple on a green background",
    "four carrots on a blue background",
    "teddy bear and guitar",
    "small owl on an orange background",
    "purple dragon",
    "sailboat next to palm tree on a yellow background",
    "astronaut on a black background",
    "red elephant on a gray background",
)


def main():
    parser = argparse.ArgumentParser(description="Paints the pictures at the top of the README with sdrt.")
    parser.add_argument("--sdrt", type=pathlib.Path, default=pathlib.Path("target/release/sdrt"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("models/emoji/pictures.png"))
    arguments = parser.parse_args()
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (EDGE * COLUMNS, EDGE * rows), "white")
    with tempfile.TemporaryDirectory() as folder:
        picture = pathlib.Path(folder, "picture.png")
        for index, prompt in enumerate(PROMPTS):
            subprocess.run([arguments.sdrt, "run", "-q", "-p", prompt, "--seed", "0", "-o", picture], check=True)
            painted = Image.open(picture).resize((EDGE, EDGE), Image.LANCZOS)
            sheet.paste(painted, (index % COLUMNS * EDGE, index // COLUMNS * EDGE))
    sheet.save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
