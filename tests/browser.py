"""A page in headless Chromium: what it holds once it is drawn, what it complains about, and what axe-core finds."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).resolve().parent.parent / "build" / "axe" / "axe.min.js"
"""Fetched by `make axe`."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ASK = """
addEventListener("load", async () => {
  const found = {
    text: document.body.innerText,
    facts: [...document.querySelectorAll("dl")].flatMap((list) =>
      [...list.querySelectorAll("dt")].map((name) => [name.innerText, name.nextElementSibling.innerText])),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    loaded: performance.getEntriesByType("resource").map((one) => one.name),
    violations: window.axe ? (await axe.run(document)).violations.map((one) =>
      `${one.id}: ${one.help}: ${one.nodes.map((node) => node.html.slice(0, 200)).join(" | ")}`) : null,
  };
  document.title = "done";
  document.body.textContent = "";
  document.body.append(Object.assign(document.createElement("pre"), {id: "found", textContent: JSON.stringify(found)}));
});
"""


@dataclass(frozen=True)
class Drawn:
    """What the browser made of a page. violations: of axe-core's rules; None where the script is not there."""

    text: str
    facts: list[tuple[str, str]]
    overflow: int
    loaded: list[str]
    violations: list[str] | None
    complaints: list[str]


def draw(source: str, folder: Path, *, width: int = 1000) -> Drawn:
    """Returns what headless Chromium draws of a page at this width; skips where there is no Chromium."""
    chromium = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    scripts = [AXE.read_text(encoding="utf-8")] if AXE.is_file() else []
    asking = "".join(f"<script>{script}</script>" for script in (*scripts, _ASK))
    page = folder / "page.html"
    page.write_text(source.replace("</head>", f"{asking}</head>", 1), encoding="utf-8")
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},900",
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    answer = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert answer is not None, f"the page was never drawn: {done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(unescape(answer[1]))
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Drawn(**{**found, "facts": [(name, text) for name, text in found["facts"]]}, complaints=complaints)
