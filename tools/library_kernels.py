#!/usr/bin/env python3
"""Times the best library kernel for each row that `cargo bench --bench kernels --csv ROWS.csv` wrote, in PyTorch.

    python tools/library_kernels.py ROWS.csv LIBRARY.csv

`cargo bench --bench kernels --library LIBRARY.csv` then gives the ratio. Measured as that bench measures: the median
of one execution among several in a row, operands in L2 as far as they fit; here in a CUDA graph, so that PyTorch's own
overhead is not in it. Half precision, channels last.

    conv2d      cuDNN, the fastest of its algorithms, with bias; a 1x1 also as a product by cuBLASLt; a residual or a row
                of the time table is not added, a 2x enlargement is F.interpolate's
    linear      cuBLASLt with bias; a residual is not added
    geglu       the product by cuBLASLt, gelu and product by PyTorch
    attention   the fastest of FlashAttention-2, cuDNN and the memory-efficient one
    group_norm  PyTorch's, in 32 groups; a silu is not in it
    layer_norm  PyTorch's

Rows without a library kernel are left out. Needs torch and an NVIDIA card.
"""

import argparse
import csv
import re
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SAMPLES = 21
SAMPLE_US = 200.0
MOST_REPEATS = 20
HALF = {"dtype": torch.float16, "device": "cuda"}
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def elapsed_us(run):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


def graph_of(function, repeats):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            function()
    return graph


def time_us(function):
    """One execution among several in a row."""
    once = graph_of(function, 1)
    once.replay()
    repeats = int(min(max(SAMPLE_US / elapsed_us(once.replay), 1), MOST_REPEATS))
    graph = graph_of(function, repeats)
    graph.replay()
    return statistics.median(elapsed_us(graph.replay) / repeats for _ in range(SAMPLES))


def maps(b, h, w, c):
    return torch.randn(b, c, h, w, **HALF).to(memory_format=torch.channels_last)


def conv2d(label):
    b, h, w, i, o, k, kind = re.match(r"(\d+)x(\d+)x(\d+)x(\d+) -> (\d+) (\d)x\d ?(/2|up2)?", label).groups()
    b, h, w, i, o, k = map(int, (b, h, w, i, o, k))
    x, bias = maps(b, h, w, i), torch.randn(o, **HALF)
    weight = torch.randn(o, i, k, k, **HALF).to(memory_format=torch.channels_last)
    stride = 2 if kind == "/2" else 1

    def conv():
        enlarged = F.interpolate(x, scale_factor=2.0, mode="nearest") if kind == "up2" else x
        return F.conv2d(enlarged, weight, bias, stride=stride, padding=k // 2)

    yield conv
    if k == 1:
        rows, matrix = x.permute(0, 2, 3, 1).reshape(-1, i), weight.reshape(o, i)
        yield lambda: F.linear(rows, matrix, bias)


def linear(label):
    m, k, n = map(int, re.match(r"m=(\d+) k=(\d+) n=(\d+)", label).groups())
    x, weight = torch.randn(m, k, **HALF), torch.randn(n, k, **HALF)
    bias = torch.randn(n, **HALF) if " bias" in label else None
    yield lambda: F.linear(x, weight, bias)


def geglu(label):
    m, k, n = map(int, re.match(r"m=(\d+) k=(\d+) n=2x(\d+)", label).groups())
    x, weight, bias = torch.randn(m, k, **HALF), torch.randn(2 * n, k, **HALF), torch.randn(2 * n, **HALF)

    def run():
        value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
        return value * F.gelu(gate)

    yield run


def attention(label):
    b, heads, t, s, d = map(int, re.match(r"b=(\d+) heads=(\d+) t=(\d+) s=(\d+) d=(\d+)", label).groups())
    q, k, v = (torch.randn(b, rows, heads, d, **HALF).transpose(1, 2) for rows in (t, s, s))
    causal = "causal" in label
    for backend in BACKENDS:

        def run(backend=backend):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

        try:
            run()
        except RuntimeError:
            continue  # not for such heads
        yield run


def group_norm(label):
    b, h, w, c = map(int, re.match(r"(\d+)x(\d+)x(\d+)x(\d+)", label).groups())
    x, weight, bias = maps(b, h, w, c), torch.randn(c, **HALF), torch.randn(c, **HALF)
    yield lambda: F.group_norm(x, 32, weight, bias)


def layer_norm(label):
    b, h, w, c = map(int, re.match(r"(\d+)x(\d+)x(\d+)x(\d+)", label).groups())
    x, weight, bias = torch.randn(b * h * w, c, **HALF), torch.randn(c, **HALF), torch.randn(c, **HALF)
    yield lambda: F.layer_norm(x, (c,), weight, bias)


VERBS = {verb.__name__: verb for verb in (conv2d, linear, geglu, attention, group_norm, layer_norm)}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description="Times the best library kernel for each row of a kernel bench.")
    parser.add_argument("rows", help="what `cargo bench --bench kernels --csv` wrote")
    parser.add_argument("library", help="the file to write")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("library_kernels.py: no NVIDIA card to measure on")
    torch.backends.cudnn.benchmark = True
    # Rows that differ in what libraries do not fuse are one measurement.
    known = {}
    with open(arguments.rows) as rows, open(arguments.library, "w", buffering=1) as library:
        print("stage,call,count,us", file=library)
        for row in csv.DictReader(rows):
            verb, label = row["call"].split(" ", 1)
            if verb not in VERBS:
                continue
            shape = verb, label.split(" (")[0], " bias" in label
            if shape not in known:
                known[shape] = min(map(time_us, VERBS[verb](label)), default=None)
            if known[shape] is not None:
                print(f"{row['stage']},{row['call']},{row['count']},{known[shape]:.3f}", file=library)


if __name__ == "__main__":
    main()
