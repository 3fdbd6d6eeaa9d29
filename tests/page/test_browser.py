"""The page, and the static pages of `demo`, `show`, `bench` and runs, in Chromium.

Every control is used; pages write no errors to the console and send no request to another host; nothing is wider than
the window, and boxes do not overlap, on a desktop and on a phone, in light and dark. `make test-page` runs it.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fewtokens.video import read, synthetic, write
from tests.page.conftest import FRAMES, HTML, MAX_BYTES

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; on Debian: apt-get install chromium"),
]

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
LOOKS = [(size, scheme) for size in SIZES for scheme in ("light", "dark")]
# A busy machine may need many times the usual time.
PATIENCE = 300_000

# Functions that return problems: layout, contrast, nameless.
CHECKS = (Path(__file__).parent / "checks.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Chromium does not start as root with its sandbox.
        flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = started.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Tab:
    """A tab that records errors and requests, and saves screenshots in $FEWTOKENS_SCREENSHOTS if it is set."""

    def __init__(self, browser: Any, size: str = "desktop", scheme: str = "light") -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True,
            has_touch=size == "phone", reduced_motion="reduce",
        )  # fmt: skip
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.look, self.errors, self.hosts = f"{size}-{scheme}", [], set()
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(re.match(r"\w+:(//[^/]*)?", request.url)[0]))

    def check(self, name: str) -> None:
        """Checks the layout as it is now."""
        folder = os.environ.get("FEWTOKENS_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}-{self.look}.png", full_page=True)
        for check in ("layout", "contrast", "nameless"):
            assert self.page.evaluate(f"{CHECKS}{check}()") == [], (name, self.look, check)

    def close(self, *hosts: str, errors: int = 0) -> None:
        assert len(self.errors) == errors, self.errors
        assert self.hosts <= {*hosts, "data:", "blob:"}, self.hosts
        self.context.close()


@pytest.fixture
def tab(chromium, request) -> Iterator[Tab]:
    opened = Tab(chromium, *getattr(request, "param", ()))
    yield opened
    opened.context.close()


def compare(page: Any) -> None:
    page.get_by_role("button", name="Compare").click()
    page.get_by_text(re.compile(r"Done in")).wait_for()


def loaded(page: Any) -> None:
    """Waits until all pictures are decoded."""
    page.evaluate("Promise.all([...document.images].filter(i => i.getAttribute('src')).map(i => i.decode()))")


@pytest.mark.parametrize("tab", LOOKS, ids="-".join, indirect=True)
def test_every_state_has_a_layout(tab, client):
    page = tab.page
    page.goto(client.address)
    page.get_by_text("Nothing yet: choose a clip").wait_for()
    tab.check("page-empty")
    page.get_by_label("Encoder").select_option("tiny")
    page.get_by_label("Method on the left").select_option("tome")
    compare(page)
    loaded(page)
    tab.check("page-result")
    page.get_by_label("attention", exact=True).check()
    loaded(page)
    tab.check("page-attention")
    page.get_by_label("Clip", exact=True).evaluate("select => select.add(new Option('gone', 'folder/gone.mp4'))")
    page.get_by_label("Clip", exact=True).select_option("folder/gone.mp4")
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("alert").get_by_text("this clip does not exist any more").wait_for()
    tab.check("page-error")
    tab.close(client.address, errors=1)  # the browser reports the status of the refusal


def test_every_control(tab, client, tmp_path):
    page = tab.page
    page.goto(client.address)
    page.get_by_label("Clip", exact=True).select_option("folder/pan.mp4")
    page.get_by_label("Encoder").select_option("patches")
    page.get_by_label("Method on the left").select_option("tome")
    page.get_by_label("Method on the right").select_option("random")
    compare(page)
    caption = page.locator("#caption-left")
    for part in ("tome(keep=0.1)", "budget 10 %", "19 tokens", "pan.mp4", "0.00 s", "the frame with its tokens"):
        assert part in caption.inner_text()
    assert page.locator("#image-left").get_attribute("alt") == caption.inner_text()
    assert "this method" not in page.locator("#caption-right").inner_text()

    for view in ("reconstruction", "error", "tokens"):
        page.get_by_label(view, exact=True).check()
        loaded(page)
        assert f"/{view}/0" in page.locator("#image-right").get_attribute("src")
    page.get_by_role("button", name="next frame").click()
    assert f"2 of {FRAMES}" in page.locator("#time").inner_text()
    page.get_by_role("button", name="previous frame").click()
    page.get_by_role("slider", name="frame").fill(str(FRAMES - 1))
    assert f"{FRAMES} of {FRAMES}" in page.locator("#time").inner_text()
    page.get_by_role("button", name="Play").click()
    page.get_by_text(f"1 of {FRAMES}").wait_for()
    page.get_by_role("button", name="Pause").click()
    assert page.get_by_role("button", name="Play").get_attribute("aria-pressed") == "false"

    # The slider compares again.
    slider = page.get_by_role("slider", name="Budget")
    assert slider.get_attribute("aria-valuetext") == "10 % of the cells"
    slider.fill("12")
    page.get_by_role("heading", name="pan.mp4 at 50 %").wait_for()
    assert "96 tokens" in caption.inner_text()

    files = {
        "Tokens, left": ".safetensors", "Tokens, right": ".safetensors", "Picture (PNG)": ".png",
        "Video (MP4)": ".mp4", "Page (HTML)": ".html",
    }  # fmt: skip
    for label, suffix in files.items():
        with page.expect_download() as waiting:
            page.get_by_role("link", name=label).click()
        waiting.value.save_as(tmp_path / f"a{suffix}")
        assert waiting.value.suggested_filename.startswith("pan-") and waiting.value.suggested_filename.endswith(suffix)
    assert len(read(tmp_path / "a.mp4")) == FRAMES
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for name in ("command", "Python"):
        page.get_by_role("button", name=f"Copy {name}").click()
        page.get_by_role("button", name="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == page.locator(f"#{name.lower()}").inner_text()
        page.get_by_role("button", name=f"Copy {name}").wait_for()
    tab.close(client.address)


def test_weights_of_a_token(tab, client):
    page = tab.page
    page.goto(client.address)
    page.get_by_label("Encoder").select_option("tiny")
    page.get_by_label("Method on the left").select_option("perceiver(keep=4)")
    compare(page)
    page.get_by_label("weights of a token").check()
    page.get_by_label("Token", exact=True).fill("3")
    loaded(page)
    assert page.locator("#image-left").get_attribute("src").endswith("/weights/0?token=3")
    assert page.locator("#image-right").is_hidden()
    assert "has no weights of a token" in page.locator("#caption-right").inner_text()
    tab.check("page-weights")
    tab.close(client.address)


def test_questions(tab, client):
    page = tab.page
    page.goto(client.address)
    compare(page)
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").get_by_text("type a question first").wait_for()
    page.get_by_label(re.compile("Question about the clip")).fill("what happens")
    page.keyboard.press("Enter")
    page.locator("#answers").get_by_text("visual tokens").first.wait_for()
    assert page.locator("#answers").get_by_text("visual tokens").count() == 2
    tab.check("page-answers")
    tab.close(client.address)


def test_uploads_by_the_button_and_by_dropping(tab, client, tmp_path):
    page = tab.page
    page.goto(client.address)
    path = write(tmp_path / "chosen.mp4", synthetic("cuts", frames=8, size=(48, 64)).frames, 8)
    page.get_by_label("Choose a file").set_input_files(path)
    page.get_by_text("Added chosen.mp4.").wait_for()
    assert page.get_by_label("Clip", exact=True).input_value().startswith("upload/chosen")

    content = page.evaluate_handle(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "<b>bold<b>.mp4"));
            return data;
        }""",
        list(path.read_bytes()),
    )
    for event in ("dragover", "drop"):
        page.dispatch_event("#drop", event, {"dataTransfer": content})
    page.get_by_text("Added <b>bold<b>.mp4.").wait_for()
    compare(page)
    assert "_b_bold_b_.mp4" in page.locator("#title").inner_text()

    big = tmp_path / "big.mp4"
    big.write_bytes(b"\0" * (MAX_BYTES + 1))
    page.get_by_label("Choose a file").set_input_files(big)
    page.get_by_role("alert").get_by_text("big.mp4 has 0 MB; at most 0.3 MB can be uploaded").wait_for()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    page.get_by_label("Choose a file").set_input_files(broken)
    page.get_by_role("alert").get_by_text("broken.mp4 is not a video that this page accepts").wait_for()
    tab.close(client.address, errors=1)


def test_hostile_names_are_text(tab, client):
    page = tab.page
    page.goto(client.address)
    page.get_by_label("Clip", exact=True).select_option(f"folder/{HTML}")
    compare(page)
    assert HTML in page.locator("#title").inner_text()
    assert page.locator("img[src=x]").count() == 0
    tab.close(client.address)


@pytest.fixture
def held(content, monkeypatch):
    """Two events: the encoder "tiny" sets the first when it is called, and waits for the second."""
    entered, go = threading.Event(), threading.Event()
    encode = content.bench.encoders["tiny"].forward

    def wait(*words: Any, **named: Any) -> Any:
        entered.set()
        go.wait()
        return encode(*words, **named)

    monkeypatch.setattr(content.bench.encoders["tiny"], "forward", wait)
    monkeypatch.setattr(content.bench, "_encoded", None)
    yield entered, go
    go.set()


def test_a_job_is_shown_and_canceled(tab, client, held):
    entered, go = held
    page = tab.page
    page.goto(client.address)
    page.get_by_label("Encoder").select_option("tiny")
    page.get_by_role("button", name="Compare").click()
    page.get_by_text(re.compile("encoding: 0 of|encoding \\(")).wait_for()
    assert entered.is_set() and page.get_by_role("button", name="Compare").is_disabled()
    tab.check("page-working")
    page.get_by_role("button", name="Cancel").click()
    go.set()
    page.get_by_text("Canceled.").wait_for()
    assert page.get_by_role("button", name="Compare").is_enabled()
    assert page.get_by_text("Nothing yet").is_visible()
    tab.close(client.address)


def test_two_changes_at_once_are_one_job_and_then_the_last(tab, client):
    """The second arrives before the server has answered the first: no error, and the picture is of the last budget."""
    page = tab.page
    page.goto(client.address)
    page.get_by_label("Encoder").select_option("tiny")
    compare(page)
    page.evaluate("""() => {
        const send = window.fetch;
        window.fetch = async (...words) => { await new Promise(done => setTimeout(done, 200)); return send(...words); };
        for (const index of [3, 9]) { $("keep").value = index; $("keep").onchange(); }
    }""")
    page.get_by_role("heading", name=re.compile("at 25 %")).wait_for()
    assert page.locator("#error").is_hidden()
    tab.close(client.address)


def test_a_page_that_is_loaded_again_shows_the_job(tab, client, held):
    entered, go = held
    page = tab.page
    page.goto(client.address)
    page.get_by_label("Encoder").select_option("tiny")
    page.get_by_role("button", name="Compare").click()
    entered.wait()
    page.reload()
    page.get_by_role("button", name="Cancel").wait_for()
    assert page.get_by_role("button", name="Compare").is_disabled()
    go.set()
    page.get_by_text(re.compile(r"Done in")).wait_for()
    assert page.locator("#result").is_visible()
    tab.close(client.address)


def test_the_keyboard_is_enough(tab, client):
    page = tab.page
    page.goto(client.address)
    page.get_by_text("Nothing yet: choose a clip").wait_for()

    def tab_to(selector: str) -> None:
        for _ in range(60):
            if page.evaluate(f"document.activeElement === document.querySelector('{selector}')"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} is not reached by Tab")

    for selector in ("#clip", "#file", "#encoder", "#left", "#right", "#keep"):
        tab_to(selector)
        width = page.evaluate(
            "() => { const e = document.activeElement; const s = e.type === 'file' ? e.nextElementSibling : e; "
            "return parseFloat(getComputedStyle(s).outlineWidth); }"
        )
        assert width >= 2, f"the focus of {selector} is not visible"
    page.keyboard.press("ArrowRight")
    assert page.locator("#budget").inner_text() == "15 % of the cells"
    tab_to("#run")
    page.keyboard.press("Enter")
    page.get_by_text(re.compile("Done in")).wait_for()
    tab_to("#views input:checked")
    page.keyboard.press("ArrowDown")
    assert page.get_by_label("reconstruction", exact=True).is_checked()
    tab_to("#next")
    page.keyboard.press("Space")
    assert f"2 of {FRAMES}" in page.locator("#time").inner_text()
    tab_to("#frame")
    page.keyboard.press("ArrowRight")
    assert f"3 of {FRAMES}" in page.locator("#time").inner_text()
    tab_to("#files a")
    with page.expect_download():
        page.keyboard.press("Enter")
    tab.close(client.address)


def test_a_server_that_is_gone_is_an_error(chromium, content):
    from fewtokens.page.app import Server, bind, create_app

    tab = Tab(chromium)
    with bind("127.0.0.1", 0) as listener:
        with Server(create_app(content, None), listener).in_thread() as address:
            tab.page.goto(address)
            tab.page.get_by_text("Nothing yet").wait_for()
        listener.close()
        tab.page.get_by_role("button", name="Compare").click()
        tab.page.get_by_role("alert").get_by_text("is fewtokens page still running?").wait_for()
    tab.close(address, errors=1)


def test_a_token_opens_the_page_once(chromium, content):
    from fewtokens.page.app import Server, bind, create_app

    tab = Tab(chromium)
    with bind("127.0.0.1", 0) as listener, Server(create_app(content, "s3cret"), listener).in_thread() as address:
        tab.page.goto(f"{address}/?token=s3cret")
        tab.page.get_by_text("Nothing yet: choose a clip").wait_for()
        assert tab.page.url == f"{address}/"
        compare(tab.page)
        loaded(tab.page)
        tab.close(address)


@pytest.fixture(scope="module")
def static_pages(tmp_path_factory) -> dict[str, Path]:
    """Pages that `demo`, `show`, `bench` and a run write."""
    from fewtokens.show.run_page import write_run_page
    from tests.cli.test_command import quick

    root = tmp_path_factory.mktemp("static")
    clip = write(root / "clip.mp4", synthetic("pan", frames=4, size=(64, 96)).frames, 4)
    small = ("--frames", 4, "--size", 64)
    quick("demo", "--out", root / "demo", *small, "--keep", 0.3)
    specs = ("--with", "tome(keep=0.2)", "--with", "evs(keep=0.2)")
    quick("show", clip, *specs, *small, "--out", root / "show.html")
    budgets = ("--with", "tome,evs", "--keep", "0.5,0.2", "--repeats", 1)
    quick("bench", clip, *budgets, *small, "--out", root / "bench")
    run = write_run_page(
        root / "run.html", title="A run", note="Pre-training, 4 steps.", numbers={"loss": 0.25, "psnr_db": 21.5},
        images=[("Reconstructions", "Frames and below them their reconstructions.", root / "demo" / "pan.png")],
        settings={"data": "/a/very/long/path/" * 8, "lr": 1e-3},
    )  # fmt: skip
    return {
        "demo": root / "demo" / "index.html", "show": root / "show.html", "bench": root / "bench" / "index.html",
        "run": run,
    }  # fmt: skip


@pytest.mark.parametrize("tab", LOOKS, ids="-".join, indirect=True)
@pytest.mark.parametrize("name", ["demo", "show", "bench", "run"])
def test_static_pages(tab, static_pages, name):
    page = tab.page
    page.goto(static_pages[name].as_uri())
    page.wait_for_load_state("load")
    tab.check(f"static-{name}")
    for button in page.get_by_role("button").all():
        if button.is_visible():
            button.click()
    for canvas in page.locator("canvas").all():
        if canvas.is_visible():
            canvas.hover(position={"x": 5, "y": 5})
    for part in (*page.locator("summary").all(), *page.locator("th").all(), *page.locator("tbody tr").all()[:3]):
        part.click()
    tab.check(f"static-{name}-used")
    tab.close("file://")
