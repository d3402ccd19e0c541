"""What both training scripts need: painted scenes without end, averaged weights, and states that survive a restart."""

import io
import lzma
import math
import pathlib
import random
import shutil
import time

import names
import torch
import torch._inductor.config as inductor
from render import Painter, as_arrays, load_sprites
from scenes import Grammar
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import CLIPTokenizer

# A state is written in pieces of this size, so that it can travel where files are small.
PIECE = 15 << 20
TOKENS = 77


def add_arguments(parser, seconds, workers):
    """The flags of both trainings."""
    parser.add_argument("--run", type=pathlib.Path, required=True, help="folder of states and results")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(".train"), help="what prepare.py wrote")
    parser.add_argument("--seconds", type=float, default=seconds, help="of training in all")
    parser.add_argument("--pause-after", type=float, default=math.inf, help="seconds of this call")
    parser.add_argument("--workers", type=int, default=workers, help="processes that draw scenes")


def allow_fast_arithmetic():
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    # The compiler would leave convolutions in NCHW for the sake of the few that shrink their channels.
    inductor.force_layout_optimization = True


def load_compiled(file):
    """Takes what an earlier call compiled, if there is such a file."""
    if file and file.exists():
        torch.compiler.load_cache_artifacts(lzma.decompress(file.read_bytes()))


def save_compiled(file):
    """Keeps what was compiled, for calls on other machines of the same kind."""
    if file and not file.exists():
        artifacts, _ = torch.compiler.save_cache_artifacts()
        file.write_bytes(lzma.compress(artifacts, preset=1))


class Scenes(IterableDataset):
    """Batches of scenes as arrays, with their captions as tokens; every worker draws others."""

    def __init__(self, data, batch, seed):
        self.emoji = names.load(data / "names.json")
        self.tokenizer = CLIPTokenizer.from_pretrained(data / "tokenizer")
        self.batch = batch
        self.seed = seed

    def __iter__(self):
        worker = get_worker_info()
        grammar = Grammar(self.emoji, random.Random(f"{self.seed} {worker.id if worker else 0}"))
        while True:
            scenes = [grammar.scene() for _ in range(self.batch)]
            captions = [scene.caption for scene in scenes]
            tokens = tokenize(self.tokenizer, captions)
            yield *map(torch.from_numpy, as_arrays(scenes)), tokens


def tokenize(tokenizer, captions):
    encoded = tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return encoded.input_ids


class Pictures:
    """Painted scenes without end: pictures [batch, 3, 256, 256] on the GPU, and the tokens of their captions."""

    def __init__(self, data, batch, seed, workers):
        self.painter = Painter(load_sprites(data / "sprites.npz"), "cuda")
        loader = DataLoader(Scenes(data, batch, seed), batch_size=None, num_workers=workers, pin_memory=True)
        self.batches = iter(loader)

    def __next__(self):
        *scene, tokens = (array.cuda(non_blocking=True) for array in next(self.batches))
        return self.painter.paint(*scene), tokens


class Average:
    """The exponential moving average of a model's weights, which is what ships."""

    def __init__(self, parameters, decay):
        self.parameters = list(parameters)
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step):
        """Early on the average forgets faster, so that it does not remember the random start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def apply(self):
        for parameter, value in zip(self.parameters, self.values):
            parameter.copy_(value)


class Clock:
    """Seconds of training, over all the calls that it was spread over."""

    def __init__(self, limit, spent=0.0):
        self.limit = limit
        self.start = time.monotonic() - spent

    def spent(self):
        return time.monotonic() - self.start

    def progress(self):
        return min(self.spent() / self.limit, 1.0)


def save_state(folder, state):
    """Writes piece.000, piece.001, ...; the old state stays until the new one is whole."""
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    for index, start in enumerate(range(0, len(data), PIECE)):
        (new / f"piece.{index:03}").write_bytes(data[start : start + PIECE])
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def load_state(folder):
    """The state in `folder`, or None."""
    pieces = sorted(folder.glob("piece.*"))
    if not pieces:
        return None
    return torch.load(io.BytesIO(b"".join(piece.read_bytes() for piece in pieces)), map_location="cuda")
