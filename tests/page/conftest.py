"""Tests of the page of `sdrt serve` in headless Chromium, which leave screenshots in `screenshots/`.

    pip install -r tests/page/requirements.txt
    pytest tests/page                                    # against a stub
    pytest tests/page --server http://127.0.0.1:7860     # against `sdrt serve`
"""

import re
import shutil
import threading
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from stub_server import Stub

SCREENSHOTS = Path(__file__).parent / "screenshots"


def pytest_addoption(parser):
    parser.addoption("--server", help="address of a running `sdrt serve`; without it a stub answers")


@pytest.fixture(scope="session")
def base_url(request):
    address = request.config.getoption("--server")
    if address:
        yield address.rstrip("/") + "/"
        return
    stub = Stub()
    threading.Thread(target=stub.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{stub.server_port}/"
    stub.shutdown()


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args, playwright):
    """Playwright's own Chromium where it is installed, otherwise the system's."""
    arguments = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    launch = browser_type_launch_args | {"args": arguments}
    if not Path(playwright.chromium.executable_path).exists():
        system = shutil.which("chromium") or shutil.which("google-chrome")
        assert system, "no Chromium: `playwright install chromium` or `apt-get install chromium`"
        launch["executable_path"] = system
    return launch


class Studio:
    """The page, by what a person does with it."""

    def __init__(self, page: Page, address: str):
        self.page = page
        self.address = address
        self.status = page.locator("#status")
        self.tiles = page.locator(".tile")
        self.done = page.locator(".tile[data-state=done]")

    def open(self) -> "Studio":
        self.page.goto(self.address)
        expect(self.page.locator("#model")).not_to_be_empty()
        self.unfold_settings()
        return self

    def reopen(self) -> "Studio":
        """Opens the page again after its writes to the browser's database: this read waits for them."""
        self.page.evaluate("""() => new Promise((resolve, reject) => {
            const open = indexedDB.open("sdrt");
            open.onerror = reject;
            open.onsuccess = () => {
                const count = open.result.transaction("pictures").objectStore("pictures").count();
                count.onerror = reject;
                count.onsuccess = () => { open.result.close(); resolve(); };
            };
        })""")
        return self.open()

    def unfold_settings(self) -> None:
        self.page.locator("#more").evaluate("details => details.open = true")

    def fold_settings(self) -> None:
        """As they are at first on a phone; a wide window leaves them open."""
        self.page.locator("#more").evaluate("details => details.open = innerWidth > 832")

    def field(self, label: str) -> Locator:
        return self.page.get_by_label(label, exact=True)

    def set(self, **fields) -> "Studio":
        for name, value in fields.items():
            self.page.locator(f"#settings [name={name}]").fill(str(value))
        return self

    def paint(self) -> None:
        self.page.get_by_role("button", name="Paint", exact=True).click()

    def paint_done(self, **fields) -> None:
        before = self.done.count()
        self.set(**fields).paint()
        pictures = int(self.page.locator("[name=n]").input_value())
        expect(self.done).to_have_count(before + pictures, timeout=60_000)

    def action(self, name: str, tile: int = 0) -> None:
        self.tiles.nth(tile).get_by_role("button", name=name).click()

    def cancellations(self) -> int:
        with urllib.request.urlopen(self.address + "metrics") as answer:
            found = re.search(r"^sdrt_cancellations_total (\d+)", answer.read().decode(), re.MULTILINE)
        return int(found[1])

    def screenshot(self, name: str) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.fixture
def studio(page: Page, base_url: str):
    """Fails the test also for errors in the console, and for requests to anywhere else."""
    errors, elsewhere = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))

    def heard(message):
        # Chromium itself reports every answer of 400 and more.
        if message.type in ("error", "warning") and "the server responded with a status of" not in message.text:
            errors.append(message.text)

    page.on("console", heard)
    page.on("request", lambda request: elsewhere.append(request.url)
            if not request.url.startswith((base_url, "blob:", "data:")) else None)
    yield Studio(page, base_url).open()
    assert not errors
    assert not elsewhere
