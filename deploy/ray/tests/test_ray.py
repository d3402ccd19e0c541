"""`sdrt serve` behind Ray Serve, with real processes on this machine's CPUs. Needs SDRT_BIN or target/release/sdrt."""

import asyncio
import base64
import json
import re
import time
from collections import Counter

import aiohttp
import pytest
from service import MOST_REPLICAS, running

USERS = 12
REQUEST = {"prompt": "fox on a purple background", "size": "128x128", "num_inference_steps": 4, "seed": 5}
PATH = "/v1/images/generations"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running(tmp_path_factory.mktemp("ray")) as service:
        yield service


def session():
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120))


async def until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.2)


async def counted(client, service, name):
    """A counter of all replicas together."""
    async with client.get(f"{service.url}/metrics") as answer:
        assert answer.status == 200
        samples = re.findall(rf'^{name}{{replica="\w+"}} ([0-9.e+]+)$', await answer.text(), re.MULTILINE)
    assert samples, f"no {name} with a label of its replica"
    return sum(map(float, samples))


def test_a_stream_comes_as_it_is_painted(service):
    async def work():
        async with session() as client:
            settings = REQUEST | {"num_inference_steps": 20, "stream": True, "partial_images": 2}
            async with client.post(service.url + PATH, json=settings) as answer:
                assert answer.status == 200 and answer.content_type == "text/event-stream"
                events = [
                    (time.monotonic(), json.loads(line.removeprefix(b"data:")))
                    async for line in answer.content
                    if line.startswith(b"data:") and b"[DONE]" not in line
                ]
        kinds = [event["type"] for _, event in events]
        assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
        assert events[0][0] < events[-1][0], "the first preview came with the picture"

    asyncio.run(work())


def test_an_address_leads_to_its_picture_whoever_has_it(service):
    async def work():
        async with session() as client:
            settings = REQUEST | {"response_format": "url"}
            async with client.post(service.url + PATH, json=settings) as answer:
                address = (await answer.json())["data"][0]["url"]
            assert address.startswith(service.url)
            async with client.get(address) as answer:
                assert answer.status == 200 and (await answer.read()).startswith(b"\x89PNG")
            async with client.get(address[:-1]) as answer:
                assert answer.status != 200

    asyncio.run(work())


def test_errors_are_those_of_sdrt(service):
    async def work():
        async with session() as client, client.post(service.url + PATH, json={"prompt": "fox", "n": -1}) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["message"]

    asyncio.run(work())


def test_who_goes_away_is_cancelled(service):
    async def work():
        async with session() as client:
            before = await counted(client, service, "sdrt_cancellations_total")
            with pytest.raises(TimeoutError):
                timeout = aiohttp.ClientTimeout(total=1)
                await client.post(
                    service.url + PATH,
                    json=REQUEST | {"size": "256x256", "num_inference_steps": 100},
                    timeout=timeout,
                )
            deadline = time.monotonic() + 10
            while await counted(client, service, "sdrt_cancellations_total") == before:
                assert time.monotonic() < deadline, "the picture is painted though nobody waits for it"

    asyncio.run(work())


def test_a_stream_that_breaks_off_says_so(service):
    async def work():
        async with session() as client:
            settings = REQUEST | {"num_inference_steps": 100, "stream": True, "partial_images": 3}
            async with client.post(service.url + PATH, json=settings) as answer:
                lines = [await answer.content.readline()]
                for process in service.replicas():
                    process.kill()
                lines += [line async for line in answer.content]
        (last,) = [line for line in lines if line.startswith(b"data:")][-1:]
        assert json.loads(last.removeprefix(b"data:"))["type"] == "error"

    asyncio.run(work())


def test_more_than_fits_is_turned_away(service):
    async def one(client):
        async with client.post(service.url + PATH, json=REQUEST) as answer:
            await answer.read()
            return answer.status, "Retry-After" in answer.headers

    async def work():
        async with session() as client:
            return Counter(await asyncio.gather(*(one(client) for _ in range(100))))

    outcomes = asyncio.run(work())
    assert outcomes.keys() == {(200, False), (429, True)}, outcomes
    assert outcomes[200, False] >= 24


def test_load_brings_replicas_and_their_deaths_lose_no_request(service):
    """Every answer has the same picture, whoever painted it and in whatever company."""
    answers, working = Counter(), True

    async def user(client):
        while working:
            async with client.post(service.url + PATH, json=REQUEST) as answer:
                content = await answer.json()
                picture = content["data"][0]["b64_json"] if answer.status == 200 else content
                answers[str(picture)] += 1

    async def everyone():
        nonlocal working
        await until(lambda: len(service.replicas()) == 1, 60, "one replica without load")
        async with session() as client:
            users = [asyncio.create_task(user(client)) for _ in range(USERS)]
            for victim in (lambda process: process, lambda process: process.parent()):
                await until(lambda: len(service.replicas()) == MOST_REPLICAS, 60, "as many replicas as may be")
                victim(service.replicas()[0]).kill()
                await until(lambda: len(service.replicas()) < MOST_REPLICAS, 10, "a dead replica")
            await until(lambda: len(service.replicas()) == MOST_REPLICAS, 60, "a replica in place of the dead one")
            before = answers.total()
            await until(lambda: answers.total() > before + 2 * USERS, 60, "answers after all that")
            working = False
            await asyncio.gather(*users)
        await until(lambda: len(service.replicas()) == 1, 60, "one replica without load")

    asyncio.run(everyone())
    assert len(answers) == 1, f"several answers: {[(text[:200], number) for text, number in answers.items()]}"
    assert base64.b64decode(*answers).startswith(b"\x89PNG")
