"""The HTML in headless Chromium, where that is installed: no error, no request, readable at 390 pixels."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
MEASURE = """<script>
const all = [...document.querySelectorAll('main *')].filter(e => !e.closest('svg') && !e.classList.contains('sr'));
const box = e => e.getBoundingClientRect();
const show = e => e.outerHTML.slice(0, 80);
parent.postMessage({
  inner: innerWidth, page: document.documentElement.scrollWidth,
  wide: all.filter(e => !e.closest('.scroll') && box(e).right > innerWidth + 1).map(show),
  small: all.filter(e => e.childNodes.length && parseFloat(getComputedStyle(e).fontSize) < 12).map(show),
  drawings: [...document.querySelectorAll('figure svg')].filter(e => box(e).width < 200).length}, '*')</script>"""
PHONE = """<title>waiting</title><iframe width="390" height="844" style="border:0" src="measured.html"></iframe>
<script>addEventListener('message', e => document.title = JSON.stringify(e.data))</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def chromium(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.parametrize("lang", ["en", "de"])
def test_readable_at_390_pixels(faces, tmp_path, lang):
    page = faces("controller", lang)[1]["report.html"].decode()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', page)[0]
    measured = tmp_path / "measured.html"
    measured.write_text(page.replace(policy, "").replace("</body>", MEASURE + "</body>"))
    phone = tmp_path / "phone.html"  # a frame, since windows of Chromium are never narrower than 500 pixels
    phone.write_text(PHONE)
    done = chromium(phone, tmp_path / "profile", "--virtual-time-budget=20000", "--dump-dom")
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout, re.S)[1]
    found = json.loads(title.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["inner"] == 390
    assert found["page"] <= 390, found
    assert not found["wide"]
    assert not found["small"]
    assert found["drawings"] == 0


def test_no_console_error_and_no_request(faces, tmp_path):
    page = tmp_path / "report.html"
    page.write_bytes(faces("public", "de")[1]["report.html"])
    log = tmp_path / "net.json"
    flags = ("--enable-logging=stderr", "--dump-dom", f"--log-net-log={log}")
    done = chromium(page, tmp_path / "profile", *flags)
    assert "CONSOLE" not in done.stderr
    assert 'id="decision"' in done.stdout
    asked = set(re.findall(r'"url":"((?:https?|ftp|wss?)://[^"]+)"', log.read_text()))
    assert not {url for url in asked if "report" in url or not _browsers_own(url)}


def _browsers_own(url: str) -> bool:
    """Chromium asks its own makers for things that no page caused."""
    return bool(re.match(r"https?://[\w.-]*(google|googleapis|gvt1|chromium)\.[a-z]+(/|$)", url))
