"""Make the pictures of README and docs anew: `docs/images`.

    python docs/make_pictures.py [--run FOLDER]
    python docs/make_pictures.py --bench FOLDER [--data-root DATA]
    python docs/make_pictures.py --search MODEL --data-root DATA
    python docs/make_pictures.py --demo

The first line needs no data: it draws the results of `terralign quickstart` (run now, some minutes,
unless `--run` names a finished one) and scenes of the synthetic world. The second draws an excerpt
of a bench report. It needs Chromium, and a folder that was made from the data that docs/data.md
describes (`micro-clip`, EuroSAT, AID, Tiny-ImageNet, S2 L2A patches, BigEarthNet samples) by

    terralign run micro-real --data-root DATA --out runs/short --set patch.epochs=1 \\
        --set align.0.epochs=1 --set align.0.num_views=1 \\
        --set align.1.epochs=1 --set align.1.num_views=1 \\
        --set align.2.epochs=1 --set align.2.num_views=1
    terralign bench micro --models micro-clip=DATA/micro-clip short=runs/short/model \\
        --data-root DATA --out FOLDER

The first of them takes some six minutes on two cores; without its --set half an hour. The third
draws the hits of three searches on a real scene, as `benchmarks/search_truth.py` judges them; the
fourth draws the hits of the four questions of `terralign demo`.

Look at the pictures before you commit them.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from terralign.bench.report import read_bench
from terralign.datasets.synthetic.sets import open_synthetic_scenes
from terralign.demo import MODEL, QUESTIONS, STRIDE, scene_path
from terralign.demo import NUM_HITS as HITS
from terralign.encoders.answers import Hit
from terralign.encoders.space import EmbeddingSpace
from terralign.evaluation.chip_views import chip_views, sample_views
from terralign.evaluation.rows import read_rows
from terralign.index.embed import embed_scenes
from terralign.index.search import open_index
from terralign.index.truth import covers
from terralign.report.canvas import DARK, LIGHT, png_bytes
from terralign.report.document import Document, Gallery, Plots, Section
from terralign.report.figures import comparison_figure
from terralign.report.render import write_document
from terralign.runs.recipe import load_recipe
from terralign.runs.run import run_recipe
from terralign.scenes.scene import open_scene

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from search_truth import ASKED, SCENE, truth_of

IMAGES = Path(__file__).parent / "images"
MAX_BYTES = 300_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ENTRY = "eurosat-ms"
"""The entry of the suite whose figures and examples the excerpt shows."""
PAGE_SIZE = (1180, 3000)
NUM_SCENES = 10
NUM_HITS = 10
PANEL, GAP, HEAD = 480, 4, 38
RIGHT, WRONG = "#ffffff", "#ff6b6b"


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a finished run of quickstart")
    parser.add_argument("--bench", type=Path, help="draw the excerpt of this bench folder alone")
    parser.add_argument("--search", metavar="MODEL", help="draw the hits of searches alone")
    parser.add_argument("--demo", action="store_true", help="draw the hits of the demo alone")
    parser.add_argument("--data-root", type=Path)
    arguments = parser.parse_args()
    if arguments.bench is not None:
        draw_bench(arguments.bench, arguments.data_root)
        return
    if arguments.search is not None:
        draw_search(arguments.search, arguments.data_root / "scenes" / SCENE)
        return
    if arguments.demo:
        draw_demo()
        return
    draw_scenes()
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or Path(folder) / "quickstart"
        run_recipe(load_recipe("quickstart"), run)
        draw_run(run)


def draw_run(run: Path) -> None:
    """Accuracy before and after patching and alignment, in a light and in a dark version."""
    rows = [row for row in read_rows(run / "results.json") if row.metric == "top1"]
    for name, theme in (("quickstart", LIGHT), ("quickstart-dark", DARK)):
        write(name, Image.open(io.BytesIO(png_bytes(comparison_figure(rows, theme)))))


def draw_scenes() -> None:
    """Synthetic scenes as towers see them: true colour, false colour, radar."""
    samples = open_synthetic_scenes("test")
    side, gap = 128, 8
    sheet = Image.new("RGB", (NUM_SCENES * (side + gap) - gap, 3 * (side + gap) - gap), "white")
    for column in range(NUM_SCENES):
        views = sample_views(samples, column)
        pictures = [picture for own in views.values() for picture in own.values()]
        for row, picture in enumerate(pictures):
            image = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(image, (column * (side + gap), row * (side + gap)))
    write("scenes", sheet)


def draw_search(model: str, scene: Path) -> None:
    """The scene, once for each search, with its best hits by rank: white where they are relevant,
    red where not."""
    space, picture = EmbeddingSpace.load(model), true_colour(scene)
    with tempfile.TemporaryDirectory() as folder:
        embed_scenes(space, scene, folder, dn_offset=0, stride=32)
        index = open_index(folder)
        numbers, shares = covers(index, truth_of(scene).shapes)
        panels = []
        for label, text, min_cover in ASKED[1:]:
            hits = index.search(space, text, NUM_HITS, collapse=True)
            found = [shares[label][np.searchsorted(numbers, index.row_of(one.key))] for one in hits]
            inks = [RIGHT if share >= min_cover else WRONG for share in found]
            panels.append((text, outlined(picture, hits, inks)))
    save_panels("search", panels, num_columns=len(panels))


def draw_demo() -> None:
    """The demo's scene, once for each of its questions, with the best hits by rank."""
    scene = scene_path()
    space, picture = EmbeddingSpace.load(MODEL), true_colour(scene)
    with tempfile.TemporaryDirectory() as folder:
        embed_scenes(space, scene, folder, dn_offset=0, stride=STRIDE)
        index = open_index(folder)
        found = {text: index.search(space, text, HITS, collapse=True) for text in QUESTIONS}
    panels = [
        (f"“{text}”", outlined(picture, hits, [RIGHT] * len(hits))) for text, hits in found.items()
    ]
    save_panels("demo", panels, num_columns=2)


def true_colour(scene: Path) -> Image.Image:
    """The scene's composite as the report shows it."""
    chip = open_scene(scene, dn_offset=0).read(bands=("B02", "B03", "B04"))
    return Image.fromarray(chip_views(np.asarray(chip.pixels), chip.layout)["true colour"])


def outlined(picture: Image.Image, hits: Sequence[Hit], inks: Sequence[str]) -> Image.Image:
    """A panel of the picture with its hits, each outlined in its own ink, the best on top."""
    panel = picture.resize((PANEL, PANEL), Image.Resampling.LANCZOS)
    draw, factor = ImageDraw.Draw(panel), PANEL / picture.width
    for hit, ink in reversed(list(zip(hits, inks, strict=True))):
        at = hit.place.window
        assert at is not None
        x, y = at.column * factor, at.row * factor
        box = (x, y, x + at.width * factor, y + at.height * factor)
        for inset, color in ((0, "black"), (1, ink), (2, ink), (3, "black")):
            draw.rectangle(
                (box[0] + inset, box[1] + inset, box[2] - inset, box[3] - inset), outline=color
            )
        draw.text(
            (x + 5, y + 1), str(hit.rank), ink, stroke_width=2, stroke_fill="black",
            font=ImageFont.load_default(18),
        )  # fmt: skip
    return panel


def save_panels(name: str, panels: Sequence[tuple[str, Image.Image]], *, num_columns: int) -> None:
    """Panels below their texts, in rows, as a JPEG that suits a light and a dark page."""
    num_rows = -(-len(panels) // num_columns)
    size = (num_columns * (PANEL + GAP) - GAP, num_rows * (PANEL + HEAD + GAP) - GAP)
    sheet = Image.new("RGB", size, "grey")
    for number, (text, panel) in enumerate(panels):
        row, column = divmod(number, num_columns)
        left, top = column * (PANEL + GAP), row * (PANEL + HEAD + GAP)
        sheet.paste(panel, (left, top + HEAD))
        draw = ImageDraw.Draw(sheet)
        draw.rectangle((left, top, left + PANEL - 1, top + HEAD - 1), "black")
        draw.text((left + 8, top + 4), text, "white", font=ImageFont.load_default(24))
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=74, optimize=True)
    keep(IMAGES / f"{name}.jpg", content.getvalue())


def draw_bench(folder: Path, data_root: Path | None) -> None:
    """The table of classification, two figures and the first examples of a bench report."""
    report = read_bench(folder, data_root)
    document = report.document()
    tables = next(one for one in document.sections if one.title.startswith("Zero-shot"))
    entry = next(one for one in document.sections if one.title == ENTRY)
    plots = [plot for one in entry.blocks if isinstance(one, Plots) for plot in one.plots]
    wanted = [p for p in plots if p.name.endswith("confusion") or "recall" in p.caption][:2]
    gallery = next(one for one in entry.blocks if isinstance(one, Gallery))
    excerpt = Document(
        title=document.title,
        sections=(
            tables,
            Section(title=ENTRY, blocks=(Plots(plots=tuple(wanted)), gallery)),
        ),
    )
    with tempfile.TemporaryDirectory() as page:
        write("bench-report", trimmed(screenshot(write_document(excerpt, Path(page)))))


def screenshot(source: Path) -> Image.Image:
    """A page as Chromium shows it, light, `PAGE_SIZE` pixels."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser found: install one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "page.png"
        width, height = PAGE_SIZE
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *(f"--window-size={width},{height}", f"--screenshot={target}", source.as_uri()),
            ],
            check=True,
            capture_output=True,
        )
        return Image.open(target).convert("RGB")


def trimmed(picture: Image.Image, margin: int = 16) -> Image.Image:
    """A picture without the rows of background at its end."""
    ground = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    box = ImageChops.difference(picture, ground).getbbox()
    bottom = picture.height if box is None else min(picture.height, box[3] + margin)
    return picture.crop((0, 0, picture.width, bottom))


def write(name: str, picture: Image.Image) -> None:
    """Save as PNG of few colours."""
    quantized = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    content = io.BytesIO()
    quantized.save(content, "PNG", optimize=True)
    keep(IMAGES / f"{name}.png", content.getvalue())


def keep(path: Path, content: bytes, *, max_bytes: int = MAX_BYTES) -> None:
    """Write a picture's file; one that is too large ends the script."""
    if len(content) >= max_bytes:
        sys.exit(f"{path} has {len(content):,} bytes, more than {max_bytes:,}: show less in it")
    path.write_bytes(content)
    print(f"{path}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
