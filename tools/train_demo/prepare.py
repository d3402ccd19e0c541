#!/usr/bin/env python3
"""Fetches the emoji and their names, trains the tokenizer, and writes what training reads.

    python tools/train_demo/prepare.py [--data .train]

writes sprites.npz (WebP files, one after the other), names.json and tokenizer/. Needs npm; no GPU.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tarfile
import tempfile

import names
import numpy as np
from scenes import Grammar
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from checkpoint_format import byte_symbols, write_clip_tokenizer  # noqa: E402

PICTURES = "@lobehub/fluent-emoji-3d@1.1.0"
NAMES = "emojibase-data@17.0.0"
VOCABULARY = 2048
# CLIP's way to cut text into words.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CAPTIONS = 200_000


def fetch(package, folder):
    """Unpacks an npm package and returns where it lies."""
    done = subprocess.run(["npm", "pack", package], cwd=folder, check=True, capture_output=True, text=True)
    archive = folder / done.stdout.split()[-1]
    with tarfile.open(archive) as tar:
        tar.extractall(folder / archive.stem, filter="data")
    return folder / archive.stem / "package"


def train_merges(captions, count):
    """Byte-pair merges over CLIP's words, each ended by </w>."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern=Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    symbols = byte_symbols()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=symbols, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(merge) for merge in merges][:count]


def main():
    parser = argparse.ArgumentParser(description="Fetches and prepares what the demo model is trained on.")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(".train"))
    arguments = parser.parse_args()
    arguments.data.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory() as folder:
        pictures = fetch(PICTURES, pathlib.Path(folder)) / "assets"
        english = fetch(NAMES, pathlib.Path(folder)) / "en"
        data, messages, emojibase, github = (
            json.loads((english / file).read_text())
            for file in ("data.json", "messages.json", "shortcodes/emojibase.json", "shortcodes/github.json")
        )
        emoji = names.choose(data, messages, [emojibase, github], sorted(file.name for file in pictures.iterdir()))
        files = [(pictures / entry.file).read_bytes() for entry in emoji]
    names.save(arguments.data / "names.json", emoji)
    sizes = np.array([len(file) for file in files])
    np.savez(arguments.data / "sprites.npz", sizes=sizes, bytes=np.frombuffer(b"".join(files), np.uint8))

    grammar = Grammar(emoji, random.Random(0))
    captions = [grammar.scene().caption for _ in range(CAPTIONS)]
    symbols = 2 * len(byte_symbols()) + 2
    write_clip_tokenizer(arguments.data / "tokenizer", train_merges(captions, VOCABULARY - symbols))
    print(f"{len(emoji)} emoji, {sizes.sum() / 1e6:.1f} MB, in {arguments.data}")


if __name__ == "__main__":
    main()
