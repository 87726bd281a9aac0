"""Pages in headless Chromium: in frames, since a window is never narrower than 500 pixels."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here to render the page")
WIDTHS = (360, 390, 1280)
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 22, 26)"}
FRAMES = """<meta name="color-scheme" content="light dark"><title></title>
%s
<script>onload = () => document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentDocument
  const all = [...page.querySelectorAll("body *")].filter(one => !one.closest(".scroll, svg"))
  const right = one => one.getBoundingClientRect().right
  const wide = one => one.clientWidth > 0 && one.scrollWidth > one.clientWidth + 1
  const seen = one => one.getClientRects().length > 0
  const short = one => one.outerHTML.slice(0, 99)
  const count = (name) => [...page.querySelectorAll(name)].filter(seen).length
  const first = {states: count(".state"), layers: count(".layer"), buttons: count("#controls button")}
  const found = {width: page.documentElement.clientWidth, scroll: page.documentElement.scrollWidth,
    cut: all.filter(one => right(one) > frame.clientWidth || wide(one)).map(short),
    scrolling: [...page.querySelectorAll(".scroll")].filter(one => wide(one) && !one.querySelector("table")).map(short),
    least: Math.min(1, ...[...page.querySelectorAll(".card img")].map(one =>
      one.clientWidth / one.getAttribute("width"))),
    letters: Math.min(99, ...[...page.querySelectorAll("svg text")].map(one => one.getBoundingClientRect().height)),
    charts: [...new Set([...page.querySelectorAll("picture")].map(one =>
      one.querySelector("img").currentSrc === one.querySelector("source").srcset ? "dark" : "light"))],
    columns: [...page.querySelectorAll(".panels")].map(one =>
      new Set([...one.children].map(child => child.getBoundingClientRect().left)).size),
    pictures: [...page.querySelectorAll("img")].filter(one => one.naturalWidth > 0).length,
    paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor, ...first}
  const press = name => [...page.querySelectorAll("#controls button")].find(one => one.textContent === name)?.click()
  press("b off"), press("conv2")
  const shown = name => [...page.querySelectorAll(name)].filter(seen).map(one => one.dataset.name)
  return {...found, pressed: [shown(".state"), shown(".layer")]}
}))</script>"""


def shown(address, folder, *options):
    """The page at an address, a URL or a file, as HTML after its scripts have run. folder: for files meanwhile."""
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'profile'}",
        *options,
        "--dump-dom",
        address,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


def rendered(page, folder, scripts=True):
    """{(theme, width): what FRAMES says} of a page's file. folder: for files meanwhile. scripts: whether its own
    run."""
    box = "" if scripts else ' sandbox="allow-same-origin"'
    frames = "".join(f'<iframe{box} src="{page}" style="width: {width}px; border: 0"></iframe>' for width in WIDTHS)
    (folder / "frames.html").write_text(FRAMES % frames)
    measurements = {}
    for theme, scheme in (("light", 1), ("dark", 0)):
        text = shown(folder / "frames.html", folder, f"--blink-settings=preferredColorScheme={scheme}")
        entries = json.loads(unescape(re.search(r"<title>(.*?)</title>", text)[1]))
        measurements |= {(theme, width): entry for width, entry in zip(WIDTHS, entries, strict=True)}
    return measurements
