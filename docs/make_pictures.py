"""Make the pictures of README and docs anew: `docs/images/*.png`.

    python docs/make_pictures.py [--run FOLDER]
    python docs/make_pictures.py --bench FOLDER [--data-root DATA]

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

The first of them takes some six minutes on two cores; without its --set half an hour.

Look at the pictures before you commit them.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

from terralign.bench.report import read_bench
from terralign.datasets.synthetic.sets import open_synthetic_scenes
from terralign.evaluation.chip_views import sample_views
from terralign.evaluation.rows import read_rows
from terralign.report.canvas import DARK, LIGHT, png_bytes
from terralign.report.document import Document, Gallery, Plots, Section
from terralign.report.figures import comparison_figure
from terralign.report.render import write_document
from terralign.runs.recipe import load_recipe
from terralign.runs.run import run_recipe

IMAGES = Path(__file__).parent / "images"
MAX_BYTES = 300_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ENTRY = "eurosat-ms"
"""The entry of the suite whose figures and examples the excerpt shows."""
PAGE_SIZE = (1180, 3000)
NUM_SCENES = 10


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="a finished run of quickstart")
    parser.add_argument("--bench", type=Path, help="draw the excerpt of this bench folder alone")
    parser.add_argument("--data-root", type=Path)
    arguments = parser.parse_args()
    if arguments.bench is not None:
        draw_bench(arguments.bench, arguments.data_root)
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
    """Save as PNG of few colours; a picture that is too large a file ends the script."""
    path = IMAGES / f"{name}.png"
    quantized = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    quantized.save(path, "PNG", optimize=True)
    size = path.stat().st_size
    if size >= MAX_BYTES:
        sys.exit(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}: show less in it")
    print(f"{path}: {size:,} bytes")


if __name__ == "__main__":
    main()
