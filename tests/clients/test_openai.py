"""OpenAI's own client."""

import base64
import io
import urllib.request

import openai
import pytest
from PIL import Image

SMALL = {"num_inference_steps": 3, "seed": 7}


@pytest.fixture
def client(emoji):
    return openai.OpenAI(base_url=f"{emoji}/v1", api_key="secret", max_retries=0)


def picture(base64_json):
    return Image.open(io.BytesIO(base64.b64decode(base64_json)))


def test_models(client):
    [model] = client.models.list()
    assert model.id == "emoji" and client.models.retrieve("emoji") == model


def test_pictures(client):
    answer = client.images.generate(prompt="red apple", model="emoji", n=2, size="128x128", extra_body=SMALL)
    assert [image.seed for image in answer.data] == [7, 8]
    assert answer.size == "128x128" and answer.output_format == "png"
    first, second = (picture(image.b64_json) for image in answer.data)
    assert first.size == second.size == (128, 128) and first.tobytes() != second.tobytes()
    assert "Seed: 8" in second.text["parameters"]


def test_the_fields_of_openai_that_mean_nothing_here_are_taken(client):
    client.images.generate(
        prompt="red apple", size="64x64", quality="high", style="vivid", background="auto", moderation="low",
        user="me", response_format="b64_json", extra_body=SMALL,
    )


def test_addresses(client):
    answer = client.images.generate(
        prompt="red apple", size="64x64", response_format="url", output_format="webp", extra_body=SMALL
    )
    with urllib.request.urlopen(answer.data[0].url) as response:
        assert Image.open(response).format == "WEBP"


def test_streams(client):
    events = list(client.images.generate(
        prompt="red apple", size="128x128", stream=True, partial_images=2, extra_body=SMALL
    ))
    *previews, done = events
    assert done.type == "image_generation.completed" and done.usage.total_tokens == 0
    assert [preview.partial_image_index for preview in previews] == list(range(len(previews)))
    assert all(preview.type == "image_generation.partial_image" for preview in previews)
    whole = client.images.generate(prompt="red apple", size="128x128", extra_body=SMALL)
    assert done.b64_json == whole.data[0].b64_json


def test_edits(client):
    source = client.images.generate(prompt="red apple", size="128x128", extra_body=SMALL).data[0].b64_json
    image = ("apple.png", base64.b64decode(source), "image/png")
    hole = Image.new("RGBA", (128, 128), "white")
    hole.paste((0, 0, 0, 0), (0, 0, 64, 128))
    file = io.BytesIO()
    hole.save(file, "PNG")
    mask = ("mask.png", file.getvalue(), "image/png")
    answer = client.images.edit(image=image, mask=mask, prompt="blue apple", extra_body=SMALL | {"strength": 0.9})
    before, after = picture(source).convert("RGB"), picture(answer.data[0].b64_json).convert("RGB")
    kept, painted = ((96, 0, 128, 128), (0, 0, 32, 128))

    def difference(box):
        pairs = zip(before.crop(box).tobytes(), after.crop(box).tobytes())
        return sum(abs(a - b) for a, b in pairs)

    assert difference(painted) > 2 * difference(kept)
    events = list(client.images.edit(image=[image], prompt="blue apple", stream=True, extra_body=SMALL))
    assert events[-1].type == "image_edit.completed"


def test_errors(client, emoji):
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(prompt="red apple", size="100x100")
    assert error.value.param == "size" and "multiple of 8" in error.value.message
    with pytest.raises(openai.NotFoundError) as error:
        client.images.generate(prompt="red apple", model="dall-e-3")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{emoji}/v1", api_key="wrong").models.list()
    with pytest.raises(openai.RateLimitError) as error:
        client.images.generate(prompt="red apple", n=8, extra_headers={"X-Deadline-Seconds": "0.001"})
    assert int(error.value.response.headers["retry-after"]) >= 1


async def paint(client, seed):
    fields = {"num_inference_steps": 2, "seed": seed}
    answer = await client.images.generate(prompt="red apple", size="64x64", extra_body=fields)
    return answer.data[0].seed


def test_many_at_once(emoji):
    import asyncio

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{emoji}/v1", api_key="secret") as client:
            return await asyncio.gather(*(paint(client, seed) for seed in range(40)))

    assert asyncio.run(all_of_them()) == list(range(40))
