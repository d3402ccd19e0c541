import json
import re

from playwright.sync_api import expect

from stub_server import png

GENERATIONS = "**/v1/images/generations"


def refusing_once(page, status, message, headers={}):
    """The server refuses the next request, and takes those after it."""
    requests = []

    def answer(route):
        requests.append(route.request)
        if len(requests) == 1:
            body = json.dumps({"error": {"message": message, "type": "server_error", "param": None, "code": None}})
            route.fulfill(status=status, headers=headers, content_type="application/json", body=body)
        else:
            route.continue_()

    page.route(GENERATIONS, answer)
    return requests


def test_previews_come_before_the_picture(studio):
    studio.set(prompt="a red fox", num_inference_steps=100)
    image = studio.tiles.first.locator("img")
    studio.paint()
    expect(studio.tiles.first).to_have_attribute("data-state", "painting", timeout=30_000)
    expect(image).to_be_visible(timeout=30_000)
    preview = image.get_attribute("src")
    assert studio.tiles.first.get_attribute("data-state") == "painting"
    expect(studio.tiles.first.locator("progress")).to_be_visible()
    expect(studio.tiles.first.locator(".message")).to_have_text(re.compile(r"Step \d+ of 100"))
    expect(studio.page).to_have_title(re.compile(r"\d+% · sdrt"))

    expect(studio.done).to_have_count(1, timeout=60_000)
    assert image.get_attribute("src") != preview
    expect(studio.status).to_have_text(re.compile(r"Picture done, seed \d+"))
    expect(studio.page).to_have_title("sdrt")


def test_defaults_are_the_models(studio):
    model = studio.page.request.get(studio.address + "v1/models").json()["data"][0]
    width, height = model["sdrt"]["default_size"].split("x")
    expect(studio.page.locator("#model")).to_have_text(model["id"])
    expect(studio.field("Width")).to_have_value(width)
    expect(studio.field("Height")).to_have_value(height)
    expect(studio.field("Steps")).to_have_value(str(model["sdrt"]["default_steps"]))
    samplers = studio.field("Sampler").locator("option").all_text_contents()
    own = f"The model’s own ({model['sdrt']['default_sampler']})"
    assert samplers == [own, *model["sdrt"]["samplers"]]


def test_a_server_that_says_nothing_of_its_model(studio):
    studio.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": "plain"}]}))
    studio.reopen()
    expect(studio.field("Steps")).to_have_value("")
    studio.paint_done(prompt="a red fox")


def test_the_request_is_what_the_form_says(studio):
    requests = []
    studio.page.on("request", lambda request: requests.append(request) if request.method == "POST" else None)
    studio.field("Sampler").select_option("euler")
    studio.paint_done(prompt="a red fox", negative_prompt="blurry", num_inference_steps=4, guidance_scale=2.5, seed=7,
                      n=2, partial_images=1)
    bodies = sorted((request.post_data_json for request in requests), key=lambda body: body["seed"])
    size = f"{studio.field('Width').input_value()}x{studio.field('Height').input_value()}"
    expected = {
        "prompt": "a red fox", "negative_prompt": "blurry", "num_inference_steps": 4, "guidance_scale": 2.5,
        "sampler": "euler", "size": size, "n": 1, "partial_images": 1,
        "stream": True, "progress": True, "response_format": "b64_json", "output_format": "png",
    }
    assert bodies == [expected | {"seed": 7}, expected | {"seed": 8}]
    expect(studio.tiles.first).to_contain_text(f"{size.replace('x', '×')} · 4 steps · guidance 2.5 · euler · seed 7")


def test_minus_one_is_a_random_seed(studio):
    studio.paint_done(prompt="a red fox", num_inference_steps=2, seed=-1)
    expect(studio.tiles.first).to_contain_text(re.compile(r"seed \d+"))


def test_cancel_ends_the_request(studio):
    before = studio.cancellations()
    studio.set(prompt="a red fox", num_inference_steps=100).paint()
    expect(studio.tiles.first.locator("progress")).to_be_visible(timeout=30_000)
    studio.page.keyboard.press("Escape")
    expect(studio.tiles).to_have_count(0)
    expect(studio.status).to_have_text("Cancelled.")
    for _ in range(100):
        if studio.cancellations() > before:
            break
        studio.page.wait_for_timeout(50)
    assert studio.cancellations() > before


def test_one_of_several_is_cancelled(studio):
    studio.set(prompt="a red fox", num_inference_steps=60, n=3).paint()
    expect(studio.tiles).to_have_count(3)
    studio.action("Cancel", tile=1)
    expect(studio.tiles).to_have_count(2)
    expect(studio.done).to_have_count(2, timeout=60_000)


def test_more_pictures_than_connections(studio):
    studio.paint_done(prompt="a red fox", num_inference_steps=5, n=8)


def test_a_busy_server_is_asked_again(studio):
    requests = refusing_once(studio.page, 429, "the queue is full", {"Retry-After": "2"})
    studio.set(prompt="a red fox", num_inference_steps=2).paint()
    expect(studio.tiles.first).to_contain_text("Trying again in 2 s: the queue is full")
    expect(studio.status).to_have_text("Busy: the queue is full. 1 waiting.")
    studio.screenshot("busy")
    expect(studio.done).to_have_count(1, timeout=30_000)
    assert len(requests) == 2


def test_cancel_while_the_server_is_busy(studio):
    requests = refusing_once(studio.page, 429, "the queue is full", {"Retry-After": "2"})
    studio.set(prompt="a red fox", num_inference_steps=2).paint()
    expect(studio.tiles.first).to_contain_text("Trying again")
    studio.action("Cancel")
    studio.page.wait_for_timeout(2500)
    expect(studio.tiles).to_have_count(0)
    assert len(requests) == 1


def test_an_error_is_told_and_tried_again(studio):
    refusing_once(studio.page, 500, "The device ran out of memory.")
    studio.set(prompt="a red fox", num_inference_steps=2).paint()
    expect(studio.tiles.first.locator(".message")).to_have_text("The device ran out of memory.")
    expect(studio.status).to_have_text("Not painted: The device ran out of memory.")
    studio.screenshot("error")
    studio.action("Try again")
    expect(studio.done).to_have_count(1, timeout=30_000)


def test_what_the_server_says_of_a_bad_request(studio):
    studio.set(prompt="a red fox", width=16_000).paint()
    expect(studio.tiles.first).to_have_attribute("data-state", "failed")
    expect(studio.tiles.first.locator(".message")).to_contain_text("16000")
    studio.action("Dismiss")
    expect(studio.tiles).to_have_count(0)


def test_an_error_in_mid_stream(studio):
    body = 'event: error\ndata: {"type":"error","error":{"message":"The picture has NaNs."}}\n\n'
    studio.page.route(GENERATIONS, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    studio.set(prompt="a red fox").paint()
    expect(studio.tiles.first.locator(".message")).to_have_text("The picture has NaNs.")


def test_a_stream_that_breaks_off(studio):
    studio.page.route(GENERATIONS, lambda route: route.fulfill(content_type="text/event-stream", body=": hello\n\n"))
    studio.set(prompt="a red fox").paint()
    expect(studio.tiles.first.locator(".message")).to_have_text("The connection ended before the picture was done.")


def test_a_server_that_is_gone(studio):
    studio.page.route(GENERATIONS, lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    studio.set(prompt="a red fox").paint()
    expect(studio.tiles.first.locator(".message")).to_contain_text("The server answered 502")


def test_the_key_is_asked_for_once(studio):
    keys = []

    def answer(route):
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer open sesame":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "A key is needed."}})

    studio.page.route(GENERATIONS, answer)
    studio.set(prompt="a red fox", num_inference_steps=2, n=2).paint()
    dialog = studio.page.get_by_role("dialog", name="This server asks for an API key")
    expect(dialog).to_be_visible()
    studio.screenshot("key")
    dialog.get_by_label("API key", exact=True).fill("wrong")
    studio.page.keyboard.press("Enter")
    expect(dialog.get_by_label("API key", exact=True)).to_have_value("")
    dialog.get_by_label("API key", exact=True).fill("open sesame")
    dialog.get_by_role("button", name="Continue").click()
    expect(studio.done).to_have_count(2, timeout=30_000)
    assert keys == [None, None] + ["Bearer wrong"] * 2 + ["Bearer open sesame"] * 2

    studio.paint()
    expect(studio.done).to_have_count(4, timeout=30_000)


def test_no_key(studio):
    studio.page.route(GENERATIONS, lambda route: route.fulfill(status=401))
    studio.set(prompt="a red fox").paint()
    studio.page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(studio.tiles.first.locator(".message")).to_have_text("The server asks for an API key.")


def test_start_from_a_file(studio, tmp_path):
    file = tmp_path / "wide.png"
    file.write_bytes(png(200, 100, seed=1))
    studio.set(prompt="a red fox", num_inference_steps=10, width=256, height=256)
    studio.page.locator("#start-file").set_input_files(file)
    expect(studio.field("Width")).to_have_value("360")
    expect(studio.field("Height")).to_have_value("184")
    studio.page.locator("[name=strength]").fill("0.5")
    with studio.page.expect_request("**/v1/images/edits") as request:
        studio.paint()
    assert request.value.headers["content-type"].startswith("multipart/form-data")
    expect(studio.done).to_have_count(1, timeout=60_000)
    expect(studio.tiles.first).to_contain_text("360×184 · 10 steps")
    expect(studio.tiles.first).to_contain_text("strength 0.5")

    studio.page.get_by_role("button", name="Remove").click()
    with studio.page.expect_request(GENERATIONS):
        studio.paint()


def test_start_from_a_dropped_picture(studio):
    studio.set(prompt="a red fox")
    studio.page.evaluate("""async () => {
        const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
        canvas.getContext("2d");
        const blob = await new Promise((resolve) => canvas.toBlob(resolve));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([blob], "dropped.png", { type: "image/png" }));
        for (const type of ["dragover", "drop"])
            document.body.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
    }""")
    expect(studio.page.locator("#start-picture")).to_be_visible()
    expect(studio.page.locator("body")).not_to_have_class("dropping")


def test_a_file_that_is_no_picture(studio, tmp_path):
    file = tmp_path / "no.png"
    file.write_text("no picture")
    studio.page.locator("#start-file").set_input_files(file)
    expect(studio.status).to_have_text("This file is not a picture that the browser can read.")
    expect(studio.page.locator("#start-picture")).to_be_hidden()


def test_an_empty_prompt_paints_nothing(studio):
    studio.paint()
    expect(studio.field("Prompt")).to_be_focused()
    expect(studio.tiles).to_have_count(0)
