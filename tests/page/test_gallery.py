import re

from playwright.sync_api import expect


def seeds(studio):
    return [int(re.search(r"seed (\d+)", text)[1]) for text in studio.tiles.all_inner_texts()]


def painted(studio, **settings):
    studio.paint_done(**{"prompt": "a red fox", "num_inference_steps": 3, "seed": 10, "n": 3} | settings)
    return studio


def test_settings_survive_a_reload(studio):
    studio.set(prompt="a red fox", negative_prompt="blurry", num_inference_steps=7, seed=3, width=128)
    studio.field("Sampler").select_option("ddim")
    studio.reopen()
    for label, value in {"Prompt": "a red fox", "Negative prompt": "blurry", "Steps": "7", "Seed": "3", "Width": "128",
                         "Sampler": "ddim"}.items():
        expect(studio.field(label)).to_have_value(value)


def test_settings_of_another_model_are_left(studio):
    studio.set(prompt="a red fox", num_inference_steps=7)
    other = {"id": "other", "sdrt": {"default_size": "1024x768", "default_steps": 30, "samplers": []}}
    studio.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [other]}))
    studio.reopen()
    expect(studio.field("Steps")).to_have_value("30")
    expect(studio.field("Height")).to_have_value("768")
    expect(studio.field("Prompt")).to_have_value("a red fox")


def test_what_is_typed_before_the_model_is_known(studio):
    studio.set(prompt="a red fox")
    waiting = []
    studio.page.route("**/v1/models", lambda route: waiting.append(route))
    studio.page.reload()
    studio.set(prompt="a blue owl")
    waiting[0].continue_()
    expect(studio.page.locator("#model")).not_to_be_empty()
    expect(studio.field("Prompt")).to_have_value("a blue owl")


def test_back_to_the_defaults(studio):
    steps = studio.field("Steps").input_value()
    studio.set(prompt="a red fox", num_inference_steps=7)
    studio.page.get_by_role("button", name="Back to the model’s defaults").click()
    expect(studio.field("Steps")).to_have_value(steps)
    expect(studio.field("Prompt")).to_have_value("a red fox")


def test_pictures_survive_a_reload(studio):
    painted(studio)
    assert seeds(studio) == [10, 11, 12]
    studio.reopen()
    expect(studio.done).to_have_count(3)
    assert seeds(studio) == [10, 11, 12]
    assert studio.tiles.first.locator("img").evaluate("async (image) => (await image.decode(), image.naturalWidth)") > 0


def test_use_these_settings(studio):
    painted(studio, negative_prompt="blurry", n=1)
    studio.set(prompt="a blue owl", negative_prompt="", num_inference_steps=9, seed=1)
    studio.action("Use these settings")
    for label, value in {"Prompt": "a red fox", "Negative prompt": "blurry", "Steps": "3", "Seed": "10"}.items():
        expect(studio.field(label)).to_have_value(value)
    expect(studio.field("Prompt")).to_be_focused()


def test_keep_the_seed(studio):
    painted(studio, seed="", n=1)
    studio.page.get_by_role("button", name="Keep seed").click()
    expect(studio.field("Seed")).to_have_value(str(seeds(studio)[0]))
    studio.page.get_by_role("button", name="Random").click()
    expect(studio.field("Seed")).to_have_value("")


def test_start_from_a_painted_picture(studio):
    painted(studio, n=1)
    studio.action("Start from this picture")
    expect(studio.page.locator("#start-picture")).to_be_visible()
    studio.paint_done(n=1)
    expect(studio.tiles.first).to_contain_text("strength")

    # The picture that it started from is one of the settings, also after a reload.
    studio.reopen()
    expect(studio.page.locator("#start-picture")).to_be_hidden()
    studio.action("Use these settings")
    expect(studio.page.locator("#start-picture")).to_be_visible()
    studio.action("Use these settings", tile=1)
    expect(studio.page.locator("#start-picture")).to_be_hidden()


def test_the_download_is_what_the_server_sent(studio):
    painted(studio, n=1)
    with studio.page.expect_download() as download:
        studio.tiles.first.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "a-red-fox-10.png"
    picture = download.value.path().read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert b"a red fox" in picture and b"Seed: 10" in picture


def test_delete_and_undo(studio):
    painted(studio)
    studio.action("Delete", tile=1)
    studio.action("Delete", tile=1)
    assert seeds(studio) == [10]
    toast = studio.page.locator("#toast")
    expect(toast).to_contain_text("2 pictures deleted.")
    studio.screenshot("deleted")
    toast.get_by_role("button", name="Undo").click()
    expect(toast).to_be_hidden()
    assert seeds(studio) == [10, 11, 12]
    studio.reopen()
    expect(studio.done).to_have_count(3)

    studio.action("Delete")
    studio.reopen()
    expect(studio.done).to_have_count(2)


def test_the_large_view(studio):
    painted(studio)
    viewer = studio.page.locator("#viewer")
    studio.tiles.first.locator(".open").click()
    expect(viewer).to_contain_text("seed 10")
    studio.page.keyboard.press("ArrowLeft")
    expect(viewer).to_contain_text("seed 10")
    studio.page.keyboard.press("ArrowRight")
    studio.page.keyboard.press("ArrowRight")
    expect(viewer).to_contain_text("seed 12")
    studio.page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(studio.tiles.nth(2).locator(".open")).to_be_focused()


def test_delete_in_the_large_view(studio):
    painted(studio)
    viewer = studio.page.locator("#viewer")
    studio.tiles.first.locator(".open").click()
    studio.page.keyboard.press("Delete")
    expect(viewer).to_contain_text("seed 11")
    viewer.get_by_role("button", name="Undo").click()
    expect(viewer).to_contain_text("seed 10")
    for _ in range(3):
        viewer.get_by_role("button", name="Delete").click()
    expect(viewer).to_be_hidden()
    expect(studio.page.locator("#empty")).to_be_visible()
    expect(studio.field("Prompt")).to_be_focused()
    studio.page.locator("#toast").get_by_role("button", name="Undo").click()
    expect(studio.done).to_have_count(3)
