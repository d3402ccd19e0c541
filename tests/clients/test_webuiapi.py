"""A client of A1111's web UI."""

import threading
import time

import pytest
from PIL import Image
from webuiapi import WebUIApi


@pytest.fixture
def api(emoji):
    return WebUIApi(baseurl=f"{emoji}/sdapi/v1", username="me", password="secret", sampler="Euler a", steps=3)


def test_pictures(api):
    result = api.txt2img(prompt="(red:1.2) apple", negative_prompt="green", seed=5, width=64, height=64, batch_size=2)
    assert [image.size for image in result.images] == [(64, 64)] * 2
    assert result.info["all_seeds"] == [5, 6] and result.info["sampler_name"] == "Euler a"
    assert result.parameters["prompt"] == "(red:1.2) apple"
    again = api.txt2img(prompt="(red:1.2) apple", negative_prompt="green", seed=6, width=64, height=64)
    assert again.image.tobytes() == result.images[1].tobytes()
    assert api.png_info(again.image).info == again.info["infotexts"][0]


def test_hires_fix(api):
    result = api.txt2img(prompt="red apple", width=64, height=64, enable_hr=True, hr_scale=2, denoising_strength=0.7)
    assert result.image.size == (128, 128)


def test_pictures_from_pictures(api):
    source = api.txt2img(prompt="red apple", width=64, height=64).image
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    settings = {"prompt": "blue apple", "images": [source], "width": 64, "height": 64, "seed": 1}
    whole = api.img2img(denoising_strength=0.8, **settings).image
    part = api.img2img(denoising_strength=0.8, mask_image=mask, **settings).image
    assert whole.size == part.size == (64, 64) and whole.tobytes() != part.tobytes()


def test_information(api):
    assert "DPM++ 2M" in api.util_get_sampler_names()
    assert "karras" in api.util_get_scheduler_names()
    assert api.util_get_model_names() == ["emoji"]
    assert api.util_get_current_model() == "emoji"
    api.util_set_model("emoji")
    api.util_wait_for_ready(check_interval=0.1)


def test_interruption(api):
    results = []
    settings = {"prompt": "red apple", "steps": 120, "width": 256, "height": 256}
    painting = threading.Thread(target=lambda: results.append(api.txt2img(**settings)))
    painting.start()
    while api.get_progress()["progress"] == 0:
        time.sleep(0.05)
    assert api.get_progress()["state"]["sampling_steps"] == 120
    api.interrupt()
    painting.join(30)
    assert results[0].images == []


def test_what_there_is_not(api):
    with pytest.raises(RuntimeError, match="restore_faces"):
        api.txt2img(prompt="red apple", restore_faces=True)
