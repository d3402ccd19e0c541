#!/usr/bin/env python3
"""Makes src/text/clip_merges.txt.gz, CLIP's byte-pair merges, from a wheel of OpenAI's CLIP.

    pip download --no-deps clip-anytorch==2.6.0
    tools/make_clip_vocabulary.py clip_anytorch-2.6.0-py3-none-any.whl

The package's list is longer than what CLIP uses. CLIP's vocabulary has 49408 entries: each byte, each
byte at the end of a word, one entry a merge, the start and the end of a text. All but the merges follow
from the format, so the merges are all that is kept. CLIP is under the MIT license, kept beside the file.
"""

import gzip
import pathlib
import sys
import zipfile

MERGES = 49408 - 2 * 256 - 2

text = pathlib.Path(__file__).resolve().parent.parent / "src" / "text"
with zipfile.ZipFile(sys.argv[1]) as wheel:
    lines = gzip.decompress(wheel.read("clip/bpe_simple_vocab_16e6.txt.gz")).decode().split("\n")
    license = next(name for name in wheel.namelist() if name.endswith("/LICENSE"))
    (text / "clip_merges.LICENSE").write_bytes(wheel.read(license))

merges = lines[1 : 1 + MERGES]
assert merges[0] == "i n" and len(merges) == MERGES, (merges[0], len(merges))
packed = gzip.compress("".join(f"{merge}\n" for merge in merges).encode(), 9, mtime=0)
(text / "clip_merges.txt.gz").write_bytes(packed)
