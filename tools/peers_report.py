"""What tools/peers.py measured, as a Markdown table and an SVG chart."""

import json
import math
import sys
from dataclasses import dataclass
from xml.sax.saxutils import escape

NAMES = {
    "sdrt": "sdrt",
    "fp32": "PyTorch fp32",
    "eager": "PyTorch eager",
    "channels-last": "PyTorch eager, channels_last",
    "graph": "CUDA graphs",
    "compile": "torch.compile",
}
COLUMNS = ("fp32", "eager", "channels-last", "graph", "compile", "sdrt")
STAGES = {"unet_step": "U-Net step", "vae_decode": "VAE decode", "text_encode": "text encode"}

COMMON_NOTES = """\
In brackets: how many times as long as sdrt. The stages of sdrt hold more than those of PyTorch: its U-Net step has
guidance and sampler in it, its VAE decode ends with 8-bit pixels in host memory, and its text encode computes the
keys and values of all cross-attentions and the time embeddings of all steps. A whole picture is the same for both:
prompt to 8-bit pixels in host memory, with DDIM.
CUDA graphs: the eager functions, channels_last, each text encoder, U-Net and VAE decoder in a graph of its own.
torch.compile: mode="reduce-overhead", which is Inductor's code in CUDA graphs; channels_last, fused QKV projections.
"""
XL_NOTES = """\
PyTorch decodes in fp32, with TF32 in convolutions, in every way: XL's VAE asks for it (`force_upcast`). sdrt decodes in
fp16. Zeros stand for the empty negative prompt in both; sdrt encodes it all the same.
"""
COMPOSED = "A ~ marks what was not measured whole, but is the sum of its measured stages.\n"
ELSEWHERE = "A * marks ratios to an sdrt that was measured in another call.\n"


@dataclass(frozen=True)
class Model:
    name: str
    size: str
    notes: str = COMMON_NOTES


MODELS = {"sd15": Model("SD 1.5", "512x512"), "sdxl": Model("SDXL base", "1024x1024", COMMON_NOTES + XL_NOTES)}


@dataclass(frozen=True)
class What:
    """What was measured; only whole pictures depend on the number of steps."""

    stage: str
    images: int
    steps: int = 0

    @classmethod
    def of(cls, row):
        return cls(row["stage"], row["images"], row["steps"] if row["stage"] == "image" else 0)


@dataclass
class Time:
    ms: float
    run: str
    composed: bool = False

    def mark(self):
        return "~" if self.composed else ""


class Record:
    """One model's times by what was measured; of a repeated measurement the last counts."""

    def __init__(self, rows):
        self.rows = rows
        self.model = MODELS[rows[0]["model"]]
        self.times = {(row["way"], What.of(row)): Time(row["median_ms"], row["run"]) for row in rows}
        self.sdrt_of_run = {(row["run"], What.of(row)): row["median_ms"] for row in rows if row["way"] == "sdrt"}
        self.compose()

    def compose(self):
        """Sums stages to the whole pictures that were not measured."""
        for way in NAMES:
            for images in self.images():
                parts = [
                    self.times.get((way, What(stage, images)))
                    for stage in ("text_encode", "unet_step", "vae_decode")
                ]
                if None in parts:
                    continue
                text, step, decode = parts
                for steps in self.steps():
                    whole = Time(text.ms + steps * step.ms + decode.ms, step.run, composed=True)
                    self.times.setdefault((way, What("image", images, steps)), whole)

    def card(self):
        return self.rows[0]["card"]

    def images(self):
        return sorted({row["images"] for row in self.rows})

    def steps(self):
        return sorted({row["steps"] for row in self.rows})

    def picture(self, way, images, steps):
        return self.times.get((way, What("image", images, steps)))

    def cell(self, way, what):
        time, sdrt = self.times.get((way, what)), self.times.get(("sdrt", what))
        if time is None:
            return "-"
        value, digits = (time.ms / 1e3, 3) if what.stage == "image" else (time.ms, 2)
        text = f"{time.mark()}{value:.{digits}f}"
        if way == "sdrt":
            return f"**{text}**"
        same_call = self.sdrt_of_run.get((time.run, what))
        if same_call:
            return f"{text} ({time.ms / same_call:.2f}x)"
        return f"{text} ({time.ms / sdrt.ms:.2f}x*)" if sdrt else text


def read_records(path):
    """The file's records by model. Rows that name none are of SD 1.5."""
    try:
        rows = [{"model": "sd15", **json.loads(line)} for line in path.read_text().splitlines()]
        cards = sorted({row["card"] for row in rows})
        models = sorted({row["model"] for row in rows}, key=list(MODELS).index)
        records = {model: Record([row for row in rows if row["model"] == model]) for model in models}
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"peers.py: {path} is no record of `peers.py run`: {error!r}")
    if not rows:
        sys.exit(f"peers.py: {path} is empty: `peers.py run {path}` measures")
    if len(cards) > 1:
        sys.exit(f"peers.py: {path} is of several cards, which cannot be compared: {', '.join(cards)}")
    return records


def pictures(number):
    return "1 picture" if number == 1 else f"{number} pictures"


def table(record):
    ways = [way for way in COLUMNS if any(of == way for of, _ in record.times)]
    lines = [["", *(NAMES[way] for way in ways)], ["---"] * (1 + len(ways))]
    measured = {what for _, what in record.times}

    def line(title, what):
        if what in measured:
            lines.append([title, *(record.cell(way, what) for way in ways)])

    for stage, title in STAGES.items():
        # One prompt is encoded once, however many pictures are made of it.
        for images in record.images()[: 1 if stage == "text_encode" else None]:
            number = "" if stage == "text_encode" else f", {pictures(images)}"
            line(f"{title}, ms{number}", What(stage, images))
    for steps in record.steps():
        for images in record.images():
            line(f"{pictures(images)} of {steps} steps, s", What("image", images, steps))
    cells = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{conditions(record)}\n\n{cells}\n\n{notes(record, cells)}{compile_times(record)}"


def notes(record, cells):
    return record.model.notes + attention(record) + (COMPOSED if "~" in cells else "") + (ELSEWHERE if "*)" in cells else "")


def attention(record):
    """Which kernels PyTorch chose for attention, by dtype."""
    chosen = {"fp16": set(), "fp32": set()}
    for row in record.rows:
        chosen["fp32" if row["way"] == "fp32" else "fp16"].update(row.get("attention", []))
    words = [f"{' and '.join(sorted(kernels))} in {dtype}" for dtype, kernels in chosen.items() if kernels]
    return f"Attention in the U-Net, as PyTorch chose: {', '.join(words)}.\n" if words else ""


def conditions(record):
    versions = {name: set() for row in record.rows for name in row["versions"]}
    for row in record.rows:
        for name, version in row["versions"].items():
            versions[name].add(str(version))
    software = ", ".join(f"{name} {' and '.join(sorted(versions[name]))}" for name in versions)
    drivers = " and ".join(sorted({row["driver"] for row in record.rows}))
    return (
        f"Medians of {record.model.name} with random weights, {record.model.size}, guidance on,"
        f" fp16 where not said otherwise."
        f" One {record.card()}, driver {drivers}, {dates(record)}; {software}."
    )


def dates(record):
    return " and ".join(sorted({row["run"][:10] for row in record.rows}))


def compile_times(record):
    first = {What.of(row): row["first_s"] for row in record.rows if row["way"] == "compile"}
    times = [
        f"{title}, {pictures(images)}, {first[What(stage, images)]:.0f} s"
        for stage, title in STAGES.items()
        for images in record.images()
        if stage != "text_encode" and What(stage, images) in first
    ]
    return f"torch.compile's first call, in which it compiles: {'; '.join(times)}.\n" if times else ""


WIDTH, HEIGHT = 900, 340
TOP, BOTTOM = 84, 272
# Of what the chart shows, on a light page and on a dark one.
COLOURS = {
    "fp32": ("#b4bec9", "#4c5866"),
    "eager": ("#66758a", "#8b9bb0"),
    "graph": ("#3f7cbf", "#5b8cc9"),
    "compile": ("#1f4f94", "#9cc4ff"),
    "sdrt": ("#cf430b", "#ff8a3d"),
}
PAGE = """\
.page {{ fill: {} }} text {{ fill: {} }} .quiet {{ fill: {} }} .grid {{ stroke: {} }}"""


def style():
    """The page is painted too, since the one around it need not be as light or dark as the reader's system."""

    def colours(dark):
        page = (
            ("#0d1117", "#e6edf3", "#9198a1", "#30363d") if dark else ("#ffffff", "#1f2328", "#59636e", "#d9dee3")
        )
        ways = [
            f".{way} {{ fill: {of[dark]} }} .line.{way} {{ stroke: {of[dark]} }}" for way, of in COLOURS.items()
        ]
        return "\n".join([PAGE.format(*page), *ways, ".line { fill: none }"])

    return f"""<style>
text {{ font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }}
.title {{ font-size: 16px; font-weight: 600 }} .bold {{ font-weight: 600 }} .quiet {{ font-size: 12px }}
.line {{ stroke-width: 2 }}
{colours(dark=False)}
@media (prefers-color-scheme: dark) {{
{colours(dark=True)}
}}
</style>"""


def chart(record):
    """Seconds a picture and pictures a second, of the largest number of steps in the record."""
    steps = record.steps()[-1]
    times = {way: {images: record.picture(way, images, steps) for images in record.images()} for way in COLOURS}
    # Eager PyTorch in the better of both memory formats.
    for images in record.images():
        layouts = [record.picture(way, images, steps) for way in ("eager", "channels-last")]
        times["eager"][images] = min(filter(None, layouts), key=lambda time: time.ms, default=None)
    times = {way: {images: time for images, time in of.items() if time} for way, of in times.items()}
    times = {way: of for way, of in times.items() if of}
    if not times:
        sys.exit("peers.py: a chart shows whole pictures, and the record has none")
    caption = f"{record.model.name}, random weights, {record.model.size}, guidance on, {steps} steps"
    caption += f"; one {record.card()}, {dates(record)}"
    if any(time.composed for of in times.values() for time in of.values()):
        caption += "; ~: the sum of measured stages"
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {size}>',
            style(),
            f'<rect class="page" {size} rx="8"/>',
            *bars(times),
            *lines(times),
            text(24, HEIGHT - 18, caption, "quiet"),
            "</svg>\n",
        ]
    )


def text(x, y, words, style="", anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'


def bars(times):
    """Seconds of one picture, and how many times faster than the first way."""
    yield text(24, 34, "Seconds a picture", "title")
    yield text(24, 54, "one at a time; how many times faster than the first", "quiet")
    alone = {way: of[1] for way, of in times.items() if 1 in of}
    if not alone:
        return
    left, longest, pitch = 126, 190, (BOTTOM - TOP) / len(alone)
    first, slowest = next(iter(alone.values())), max(time.ms for time in alone.values())
    for i, (way, time) in enumerate(alone.items()):
        middle, length = TOP + (i + 0.5) * pitch, longest * time.ms / slowest
        bold = "bold" if way == "sdrt" else ""
        faster = f", {first.ms / time.ms:.1f}x" if i else ""
        yield text(left - 10, middle + 4, NAMES[way], bold, "end")
        yield (
            f'<rect class="{way}" x="{left}" y="{middle - pitch * 0.32:.1f}"'
            f' width="{max(length, 1):.1f}" height="{pitch * 0.64:.1f}" rx="2"/>'
        )
        yield text(left + length + 8, middle + 4, f"{time.mark()}{time.ms / 1e3:.2f} s{faster}", bold)


def lines(times):
    """Pictures a second against pictures at once, for the ways that were measured with several numbers."""
    left, right = 476, 766
    yield text(left - 28, 34, "Pictures a second", "title")
    yield text(left - 28, 54, "by pictures painted at once", "quiet")
    curves = {
        way: {images: 1e3 * images / time.ms for images, time in of.items()}
        for way, of in times.items()
        if len(of) > 1
    }
    if not curves:
        return
    numbers = sorted({images for curve in curves.values() for images in curve})
    tick, highest = ticks(max(rate for curve in curves.values() for rate in curve.values()))

    def place(images, rate):
        x = left + (right - left) * numbers.index(images) / (len(numbers) - 1)
        return x, BOTTOM - (BOTTOM - TOP) * rate / highest

    for i in range(round(highest / tick) + 1):
        _, y = place(numbers[0], i * tick)
        yield f'<line class="grid" x1="{left - 4}" x2="{right + 4}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield text(left - 12, y + 4, f"{i * tick:g}", "quiet", "end")
    for images in numbers:
        yield text(place(images, 0)[0], BOTTOM + 20, str(images), "quiet", "middle")
    for way, curve in curves.items():
        points = [place(images, rate) for images, rate in sorted(curve.items())]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline class="line {way}" points="{path}"/>'
        yield from (f'<circle class="{way}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points)
    ends = {way: place(*max(curve.items()))[1] for way, curve in curves.items()}
    for way, y in apart(ends).items():
        mark = "~" if any(time.composed for time in times[way].values()) else ""
        yield text(right + 14, y + 4, mark + NAMES[way], f"{way} bold")


def ticks(largest):
    """A round distance between ticks, at most five of them, and where the axis ends."""
    power = 10 ** math.floor(math.log10(largest / 5))
    tick = next(power * round for round in (1, 2, 2.5, 5, 10) if power * round * 5 >= largest)
    return tick, tick * math.ceil(largest / tick)


def apart(heights, distance=16):
    """The heights from the lowest up, moved so far that labels do not touch."""
    placed, ceiling = {}, math.inf
    for way, y in sorted(heights.items(), key=lambda item: -item[1]):
        placed[way] = ceiling = min(y, ceiling - distance)
    return placed
