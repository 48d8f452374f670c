"""The pages in Debian's Chromium: found, filtered, read with the keyboard alone, in the dark, on a phone, and by axe."""

import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, ViewportSize, async_playwright, expect

from tests.pages.bed import ACCEPTED, HOSTILE, REFUSED, Bed, accepted, serving

CHROMIUM = Path("/usr/bin/chromium")  # Debian's own; Playwright's are downloads
PAGES = {
    "overview": "/",
    "list": "/traces",
    "refused": f"/traces/{REFUSED}",
    "accepted": f"/traces/{ACCEPTED}",
    "hostile": f"/traces/{HOSTILE}",
    "domains": "/domains",
    "doctor": "/doctor?domain=example.net",
    "fault": "/nothing",
}
DESK = ViewportSize(width=1280, height=900)
PHONE = ViewportSize(width=390, height=844)
TOKEN = "0123456789abcdef0123"

pytestmark = [
    pytest.mark.live,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}: apt-get install chromium"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bed]:
    async with serving(tmp_path_factory.mktemp("pages")) as bed:
        yield bed


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    async with await browser.new_context(viewport=DESK) as context:
        page = await context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.on("console", lambda said: errors.append(said.text) if "Security Policy" in said.text else None)
        yield page
        assert not errors


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm: apt-get install npm")
    folder = tmp_path_factory.mktemp("axe")
    options = ["--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", "--no-save"]
    done = subprocess.run(
        [npm, "install", *options, "axe-core@4"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"npm could not install axe-core: {done.stderr[-300:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


async def focus_is_seen(page: Page) -> bool:
    style: str = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    return style != "none"


async def test_listed_filtered_opened_and_read(page: Page, bed: Bed) -> None:
    await page.goto(bed.url)
    await expect(page.get_by_role("heading", level=1)).to_have_text("Is mail flowing?")
    await page.get_by_role("link", name="dmarc-reject").click()
    await expect(page.locator("#lines tr")).to_have_count(3)
    await page.get_by_label("Find").fill("<20260314.1@bank.example>")
    await page.get_by_label("Verdict").select_option("reject")
    await page.get_by_label("Listener").select_option("inbound")
    await page.get_by_role("button", name="Show").click()
    await expect(page.locator("#lines tr")).to_have_count(1)
    await page.get_by_role("link", name="ceo@bank.example").click()
    await expect(page).to_have_title(re.compile("Refused: ceo@bank.example"))
    why = page.locator(".verdict")
    await expect(why).to_contain_text("Nothing shows that bank.example sent the message")
    await page.get_by_role("link", name="Author DMARC: fail").click()
    await expect(page.locator("#author")).to_be_in_viewport()


async def test_by_the_keyboard_alone(page: Page, bed: Bed) -> None:
    await page.goto(f"{bed.url}/traces")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    assert await focus_is_seen(page)
    await page.keyboard.press("Enter")
    await page.keyboard.press("/")
    await page.keyboard.type(REFUSED)
    await page.keyboard.press("Enter")
    await expect(page.locator("#lines tr")).to_have_count(1)
    await page.keyboard.press("j")
    assert await focus_is_seen(page)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Refused")
    await page.keyboard.press("u")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Messages")


async def test_the_list_grows_by_itself_and_can_be_paused(page: Page, bed: Bed) -> None:
    await page.goto(f"{bed.url}/traces?q=late.example")
    await expect(page.locator("#empty")).to_be_visible()
    bed.add(accepted("late.1", author="ann@late.example"))
    await expect(page.locator("#lines tr")).to_have_count(1, timeout=10_000)
    await expect(page.locator("#live")).to_contain_text("Live: 1 new")
    await page.get_by_role("button", name="Pause").click()
    await expect(page.locator("#live")).to_contain_text("Paused")


async def test_the_colours_follow_the_system_and_a_choice_is_remembered(browser: Browser, bed: Bed) -> None:
    async with await browser.new_context(color_scheme="dark") as context:
        page = await context.new_page()
        await page.goto(bed.url)
        dark = await _paper(page)
        await page.get_by_role("button", name="Colours: system").click()
        light = await _paper(page)
        assert light != dark
        await page.goto(f"{bed.url}/traces")
        assert await _paper(page) == light
        await page.get_by_role("button", name="Colours: light").click()
        assert await _paper(page) == dark


async def _paper(page: Page) -> str:
    colour: str = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    return colour


async def test_without_a_script_everything_is_there(browser: Browser, bed: Bed) -> None:
    async with await browser.new_context(java_script_enabled=False) as context:
        page = await context.new_page()
        await page.goto(f"{bed.url}/traces")
        await page.get_by_label("Find").fill(REFUSED)
        await page.get_by_role("button", name="Show").click()
        await page.get_by_role("link", name="ceo@bank.example").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Refused")
        await expect(page.get_by_role("button")).to_have_count(0)


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
async def test_nothing_is_wider_than_the_window(
    page: Page, bed: Bed, viewport: ViewportSize, tmp_path: Path
) -> None:
    await page.set_viewport_size(viewport)
    for name, path in PAGES.items():
        await page.goto(bed.url + path)
        await page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
        assert await page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], name


async def test_log_in(page: Page, tmp_path: Path) -> None:
    async with serving(tmp_path, token=TOKEN) as locked:
        await page.goto(f"{locked.url}/traces/{REFUSED}")
        await page.get_by_label("Token").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("That is not the token.")
        await page.get_by_label("Token").fill(TOKEN)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Refused")
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Log in")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(browser: Browser, bed: Bed, axe: str, scheme: Any, tmp_path: Path) -> None:
    async with (
        serving(tmp_path, token=TOKEN, kept=[]) as locked,
        await browser.new_context(color_scheme=scheme, reduced_motion="reduce", viewport=DESK) as context,
    ):
        page = await context.new_page()
        violations: list[tuple[str, ...]] = []
        for url in (*(bed.url + path for path in PAGES.values()), f"{locked.url}/login"):
            await page.goto(url)
            await page.evaluate(axe)
            found = await page.evaluate("axe.run()")
            violations += [
                (url, each["id"], node["html"][:200], node["failureSummary"])
                for each in found["violations"]
                for node in each["nodes"][:3]
            ]
    assert not violations
