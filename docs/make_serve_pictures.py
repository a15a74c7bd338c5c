"""Make the pictures of docs/serve.md again: `docs/images/serve*.jpg`.

    python docs/make_serve_pictures.py

Embeds the scene that comes with terralign, serves it, and takes pictures of the page in Chromium.
Needs Chromium and the extras `serve` and `dev`; takes a minute on two cores. Look at the pictures
before you commit them.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from terralign.demo import MODEL, STRIDE, scene_path
from terralign.encoders.space import EmbeddingSpace
from terralign.index.embed import embed_scenes
from terralign.index.search import open_index

IMAGES = Path(__file__).parent / "images"
MAX_BYTES = 300_000
FLAGS = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 800},
    "has_touch": True,
    "is_mobile": True,
}


def picked_and_marked(page: Page) -> None:
    """One hit is open, one marked as right, one as wrong."""
    page.click(".hit >> nth=2 >> .pick")
    page.click(".hit >> nth=0 >> .plus")
    page.click(".hit >> nth=8 >> .minus")
    page.evaluate("document.querySelector('#results').scrollTop = 0")


def scrolled(page: Page) -> None:
    """The list below the map."""
    page.tap(".hit >> nth=1 >> .plus")
    page.evaluate("scrollTo(0, document.querySelector('#place').offsetTop)")


PICTURES: dict[str, tuple[str, dict[str, Any], Callable[[Page], None]]] = {
    "serve": ("q=a+river", DESKTOP, picked_and_marked),
    "serve-scores": (
        "q=a+river&scores=1",
        {**DESKTOP, "color_scheme": "dark"},
        lambda page: None,
    ),
    "serve-phone": ("q=a+river", PHONE, scrolled),
}


def main() -> None:
    """Write the pictures, and that of a map in a notebook."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("no Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        vectors = Path(folder) / "demo"
        space = EmbeddingSpace.load(MODEL)
        embed_scenes(space, scene_path(), vectors, stride=STRIDE, dn_offset=0)
        browser = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        hits = open_index(vectors).search(space, "a river", k=8, collapse=True)
        page = browser.new_page(viewport={"width": 736, "height": 400})
        page.set_content(hits.to_map().html)
        write("notebook-map", page.screenshot(full_page=True))
        command = [sys.executable, "-m", "terralign", "serve", str(vectors), "--no-token"]
        with subprocess.Popen(
            [*command, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            address = json.loads(server.stdout.readline())["address"]
            for name, (question, context, act) in PICTURES.items():
                page = browser.new_context(**context).new_page()
                page.goto(f"{address}#{question}")
                page.wait_for_selector(".hit .pick")
                page.wait_for_load_state("networkidle")
                act(page)
                page.wait_for_timeout(1500)
                write(name, page.screenshot())
            server.terminate()
        browser.close()


def write(name: str, picture: bytes) -> None:
    """As JPEG, small enough for the documentation."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    path = IMAGES / f"{name}.jpg"
    for quality in (85, 80, 75, 70, 65, 60):
        image.save(path, "JPEG", quality=quality, optimize=True, progressive=True)
        if path.stat().st_size < MAX_BYTES:
            break
    print(f"{path.name}: {path.stat().st_size // 1000} kB, quality {quality}")


if __name__ == "__main__":
    main()
