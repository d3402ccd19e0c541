"""What is asked of a server: a random mix of requests to OpenAI's image endpoints, and their command-line options."""

import argparse
import base64
import io
import itertools
import json
import random
from dataclasses import dataclass, field

from PIL import Image
from urllib3 import encode_multipart_formdata

PROMPTS = (
    "a lighthouse at dawn, oil painting",
    "fox on a purple background",
    "a bowl of ramen on a wooden table, studio light",
    "an astronaut riding a horse, watercolour",
    "portrait of an old sailor, black and white photograph",
    "a castle above a fjord in winter",
    "three pigs in a sunflower field",
    "a red bicycle against a blue wall",
)
NEGATIVE_PROMPT = "blurry, low quality"
# Previews of a streamed picture, at most 3 by OpenAI's interface.
PARTIAL_IMAGES = 2
KINDS = ("generate", "stream", "edit")


@dataclass(frozen=True)
class Request:
    """One picture to paint; `body` is of type `content_type`."""

    kind: str
    steps: int
    path: str
    content_type: str
    body: bytes


@dataclass
class Workload:
    """Requests differ in prompt, seed, steps and kind, and all have one size, guidance and sampler.

    `size` is (width, height) in pixels; `kinds` gives each kind of request its weight:

        generate   POST /v1/images/generations, the picture as b64_json
        stream     the same with "stream": previews, then the picture, as server-sent events
        edit       POST /v1/images/edits: a picture to start from
    """

    steps: tuple[int, ...] = (20, 25, 50)
    size: tuple[int, int] = (512, 512)
    kinds: dict[str, float] = field(default_factory=lambda: {"generate": 1.0})
    guidance_scale: float = 7.5
    sampler: str | None = None
    seed: int = 0

    def __post_init__(self):
        self.random = random.Random(self.seed)
        # No two requests have the same seed, so that no cache can answer.
        self.seeds = itertools.count(self.seed * 1_000_000)
        if "edit" in self.kinds:
            self.picture_to_edit = _gradient(self.size)

    def draw(self):
        (kind,) = self.random.choices(list(self.kinds), weights=list(self.kinds.values()))
        settings = {
            "prompt": self.random.choice(PROMPTS),
            "negative_prompt": NEGATIVE_PROMPT,
            "size": "{}x{}".format(*self.size),
            "response_format": "b64_json",
            "output_format": "png",
            "num_inference_steps": self.random.choice(self.steps),
            "guidance_scale": self.guidance_scale,
            "seed": next(self.seeds),
        }
        if self.sampler:
            settings["sampler"] = self.sampler
        path = "/v1/images/generations"
        if kind == "edit":
            path = "/v1/images/edits"
            fields = {name: str(value) for name, value in settings.items()}
            fields["image"] = ("picture.png", self.picture_to_edit, "image/png")
            body, content_type = encode_multipart_formdata(fields)
        else:
            if kind == "stream":
                settings |= {"stream": True, "partial_images": PARTIAL_IMAGES}
            body, content_type = json.dumps(settings).encode(), "application/json"
        return Request(kind, settings["num_inference_steps"], path, content_type, body)


def check_answer(request, size, body):
    """Raises ValueError, which says why, unless `body` has the one picture that `request` asks for."""
    try:
        if request.kind == "stream":
            encoded = _completed(body)["b64_json"]
        else:
            (picture,) = json.loads(body)["data"]
            encoded = picture["b64_json"]
        image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
        image.load()
    except (ValueError, KeyError, TypeError, OSError, SyntaxError) as error:
        raise ValueError(f"the answer to {request.kind} has no valid picture: {error!r}") from error
    if image.size != size:
        raise ValueError("the picture has {}x{} pixels, not {}x{}".format(*image.size, *size))


def _completed(body):
    """The last event of a stream."""
    events = [
        json.loads(line[5:]) for line in body.splitlines() if line.startswith(b"data:") and b"[DONE]" not in line
    ]
    if not events:
        raise ValueError("the stream has no event")
    if not events[-1].get("type", "").endswith(".completed"):
        raise ValueError(f"the stream ends with {json.dumps(events[-1])[:200]}")
    return events[-1]


def _gradient(size):
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, "PNG")
    return file.getvalue()


def add_arguments(parser):
    parser.add_argument(
        "--arrival-rate", type=_positive, metavar="R", help="open load: R requests a second, Poisson"
    )
    parser.add_argument(
        "--think-time", type=float, default=0, metavar="S", help="closed load: pause after an answer"
    )
    parser.add_argument("--steps", type=_steps, default="20,25,50", help="each request draws one")
    parser.add_argument("--size", type=_size, default="512x512", metavar="WxH")
    parser.add_argument(
        "--kinds", type=_kinds, default="generate", help="with weights, e.g. generate=8,stream=1,edit=1"
    )
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--sampler", help="default: the server's")
    parser.add_argument("--seed", type=int, default=0, help="of the mix, and where the pictures' seeds begin")
    parser.add_argument("--api-key", help="sent as the bearer token")
    parser.add_argument(
        "--request-timeout", type=_positive, default=300, metavar="S", help="without a byte from it"
    )


def of_arguments(arguments):
    names = ("steps", "size", "kinds", "guidance_scale", "sampler", "seed")
    return Workload(**{name: getattr(arguments, name) for name in names})


def _positive(text):
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def _steps(text):
    if not all(number.isdigit() and int(number) > 0 for number in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of steps, such as 20,25,50")
    return tuple(map(int, text.split(",")))


def _size(text):
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 512x512")
    return int(width), int(height)


def _kinds(text):
    weights = {}
    for part in text.split(","):
        kind, _, weight = part.partition("=")
        try:
            weights[kind] = float(weight or 1)
        except ValueError:
            weights[kind] = 0
        if kind not in KINDS or not weights[kind] > 0:
            raise argparse.ArgumentTypeError(f"{part!r} is not one of {', '.join(KINDS)}, or KIND=WEIGHT")
    return weights
