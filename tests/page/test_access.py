"""The page by keyboard, on a phone, in both themes, and as axe-core judges it; with a screenshot of each."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
DESKTOP = {"viewport": {"width": 1280, "height": 860}}
LOOKS = [
    pytest.param(f"{device}-{theme}", marks=pytest.mark.browser_context_args(**look, color_scheme=theme))
    for device, look in {"phone": PHONE, "desktop": DESKTOP}.items()
    for theme in ("light", "dark")
]


def check(studio, name):
    """No violation that axe-core knows, nothing wider than the window."""
    found = Axe().run(studio.page)
    assert found.violations_count == 0, found.generate_report()
    boxes = studio.page.locator("html, .tile, dialog, .caption")
    assert boxes.evaluate_all("boxes => boxes.every((box) => box.scrollWidth <= box.clientWidth)")
    studio.screenshot(name)


@pytest.mark.parametrize("look", LOOKS)
def test_every_state_in_every_look(studio, look):
    studio.fold_settings()
    check(studio, f"{look}-empty")
    studio.unfold_settings()
    studio.paint_done(prompt="a lighthouse on a cliff at dawn, oil painting", negative_prompt="people", seed=21, n=5,
                      num_inference_steps=10)
    studio.set(num_inference_steps=120, n=4, seed=40).paint()
    expect(studio.page.locator(".tile[data-state=painting] img:visible").first).to_be_visible(timeout=30_000)
    studio.fold_settings()
    check(studio, f"{look}-painting")
    studio.page.keyboard.press("Escape")
    check(studio, f"{look}-gallery")
    studio.unfold_settings()
    studio.set(width=16_000, n=1).paint()
    expect(studio.page.locator(".tile[data-state=failed]")).to_be_visible()
    check(studio, f"{look}-failed")
    studio.action("Dismiss")
    studio.set(width=256)
    studio.action("Start from this picture")
    studio.page.locator("#strength-field").scroll_into_view_if_needed()
    check(studio, f"{look}-start")
    studio.tiles.nth(1).locator(".open").click()
    check(studio, f"{look}-large")


@pytest.mark.browser_context_args(color_scheme="light")
def test_the_theme_is_kept(studio):
    page = studio.page

    def dark():
        return page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 19, 21)"

    assert not dark()
    page.get_by_role("button", name="Use the dark theme").click()
    assert dark()
    studio.reopen()
    assert dark()
    page.get_by_role("button", name="Use the light theme").click()
    assert not dark()
    # Back at the system's theme, the page follows it again.
    page.emulate_media(color_scheme="dark")
    assert dark()


def test_by_keyboard_alone(studio):
    keyboard = studio.page.keyboard
    expect(studio.field("Prompt")).to_be_focused()
    keyboard.type("a red fox")
    keyboard.press("Tab")
    keyboard.type("blurry")
    keyboard.press("Control+Enter")
    expect(studio.done).to_have_count(1, timeout=60_000)
    keyboard.press("Control+Enter")
    expect(studio.done).to_have_count(2, timeout=60_000)

    def tab_to(locator):
        for _ in range(40):
            keyboard.press("Tab")
            if locator.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"{locator} is not reached by Tab")

    tab_to(studio.tiles.first.locator(".open"))
    studio.screenshot("focus")
    keyboard.press("Enter")
    viewer = studio.page.locator("#viewer")
    expect(viewer).to_be_visible()
    keyboard.press("ArrowRight")
    keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(studio.tiles.nth(1).locator(".open")).to_be_focused()

    tab_to(studio.tiles.nth(1).get_by_role("button", name="Delete"))
    keyboard.press("Enter")
    expect(studio.done).to_have_count(1)
    expect(studio.tiles.first.locator(".open")).to_be_focused()
    keyboard.press("Control+z")
    expect(studio.done).to_have_count(2)
    expect(studio.tiles.nth(1).locator(".open")).to_be_focused()

    keyboard.press("Control+Enter")
    expect(studio.tiles).to_have_count(3)
    keyboard.press("Escape")
    expect(studio.tiles).to_have_count(2)


def test_a_screen_reader_is_not_told_every_step(studio):
    studio.page.evaluate("""() => {
        window.said = [];
        const status = document.querySelector("#status");
        new MutationObserver(() => said.push(status.textContent)).observe(status, { childList: true });
    }""")
    studio.paint_done(prompt="a red fox", num_inference_steps=40, seed=5)
    said = studio.page.evaluate("said")
    assert said[-1] == "Picture done, seed 5."
    assert "1 painting, 50% done." in said
    assert len(said) <= 7


@pytest.mark.browser_context_args(reduced_motion="reduce")
def test_reduced_motion(studio):
    transition = "getComputedStyle(document.querySelector('#paint')).transitionDuration"
    assert studio.page.evaluate(transition) == "0s"
