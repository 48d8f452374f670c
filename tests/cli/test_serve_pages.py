"""The pages of a gateway that runs: one process or several, over the store that the workers write."""

import re
import smtplib
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest

from tests.cli.test_serve import (
    MAIL,
    PATIENCE_S,
    Downstream,
    Served,
    config_text,
    downstream,
    free_port,
    write_pair,
)
from tests.store.databases import database, postgresql

__all__ = ["database", "downstream", "postgresql"]


@pytest.fixture(params=[1, 2], ids=["alone", "two workers"])
def served(
    tmp_path: Path, downstream: tuple[Downstream, int], database: str, request: pytest.FixtureRequest
) -> Iterator[Served]:
    workers: int = request.param
    smtp_port, http_port = free_port(), free_port()
    write_pair(tmp_path)
    config = tmp_path / "gateway.toml"
    text = config_text(downstream[1], smtp_port, http_port)
    config.write_text(f'workers = {workers}\n{text}\n[store]\nurl = "{database}"\n')
    gateway = Served(config, smtp_port, http_port)
    try:
        if workers == 1:
            gateway.wait_for("listener.ready", 2)
        else:
            gateway.wait_for("worker.ready", workers + 1)
        yield gateway
    finally:
        if gateway.process.poll() is None:
            gateway.stop()


def until_shown(served: Served, path: str, words: str) -> str:
    """The page, once it has these words: a trace is written a moment after its answer."""
    deadline = time.monotonic() + PATIENCE_S
    while words not in (html := served.get(path)):
        assert time.monotonic() < deadline, html
        time.sleep(0.1)
    return html


def test_a_message_is_on_the_pages_a_moment_after_its_answer(served: Served) -> None:
    with smtplib.SMTP("127.0.0.1", served.smtp_port, "mail.elsewhere.example", timeout=PATIENCE_S) as client:
        client.sendmail("ann@elsewhere.example", ["bob@example.net"], f"Subject: shown\r\n{MAIL}")
    html = until_shown(served, "/traces?q=ann@elsewhere.example", "<tr data-key=")
    (path,) = re.findall(r'href="(/traces/[^"?]+)"', html)
    story = served.get(path)
    assert "Handed on by the rule" in story
    assert "Subject" not in story
    overview = served.get("/")
    for name in ("worker 0", "worker 1") if "workers = 2" in served.config.read_text() else ("gateway",):
        assert f"{name} <span" in overview
    assert "example.net" in until_shown(served, "/domains", "<dt>Domain")
    assert served.stop() == 0


def test_the_pages_can_be_off(tmp_path: Path, downstream: tuple[Downstream, int]) -> None:
    smtp_port, http_port = free_port(), free_port()
    write_pair(tmp_path)
    config = tmp_path / "gateway.toml"
    text = config_text(downstream[1], smtp_port, http_port)
    config.write_text(re.sub(r"(?m)^\[http\]$", "[http]\npages = false", text))
    gateway = Served(config, smtp_port, http_port)
    try:
        gateway.wait_for("listener.ready", 2)
        with pytest.raises(HTTPError, match="404"):
            gateway.get("/")
        assert "gateway_" in gateway.get("/metrics")
    finally:
        gateway.stop()
