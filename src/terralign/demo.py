"""The demo: the model and the scene that come with terralign, from the file to a page of answers.

Offline, and in less than a minute on two cores. `run_demo` calls the public functions that its page
lists; `scene_path` is the scene, for trying others.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from terralign.chips import Window
from terralign.compute import choose_device
from terralign.encoders.answers import Classification, Hits
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import StorageError
from terralign.evaluation.chip_views import Picture8, chip_views, jpeg_bytes
from terralign.files import claimed
from terralign.index.cog import check_map
from terralign.index.embed import embed_scenes
from terralign.index.score import ScoreMap, score_map
from terralign.index.search import Index, open_index
from terralign.report.demo import (
    ClassCell,
    DemoPage,
    FoundPlace,
    Question,
    heat_picture,
    write_demo,
)
from terralign.report.hits import check_page
from terralign.scenes.geotiff import open_geotiff
from terralign.scenes.scene import open_scene
from terralign.searching.report import read_pictures

MODEL = "starter"
SCENE = "S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543"
CLASS_NAMES = (
    "annual crop land", "forest", "herbaceous vegetation", "highway", "industrial buildings",
    "pasture", "permanent crop land", "residential buildings", "river", "sea or lake",
)  # fmt: skip
QUESTIONS = ("a river", "a swamp", "a town with houses", "farmland")
NUM_HITS = 6
STRIDE = 32
"""Pixels from one window to the next, half a window."""

PAGE, VECTORS, MAP = "report.html", "vectors", "scores.tif"
_SIDE = 720
"""Pixels of the longer side of a picture of the scene."""

_LINES = (
    "A piece of north-east Thailand as Sentinel-2 saw it on 23 February 2020: {height} x {width} "
    "pixels of 10 m, level 2A, twelve bands. The model that comes with terralign classified it and "
    "found the places below from the words alone, here, without a network.",
)
_NOTES = (
    "The model is small and for research, teaching and trying out. It learned the land covers of "
    "Europe as EuroSAT names them, and this is Thailand: expect errors, and check what you use.",
    "The four texts are among those that work on this scene. “A lake” and “forest” do not: some of "
    "their hits are dark trees for water, or the reverse.",
    "A search ranks: there is always a best place, also for what the scene does not hold. Cosines "
    "of two texts do not compare.",
    "The same commands take your own scenes: docs/imagery.md. For better answers, start from a "
    "large CLIP: docs/recipes.md.",
    "Scene: contains modified Copernicus Sentinel data 2020, processed by ESA; from Major TOM "
    "Core-S2L2A, CC-BY-SA-4.0, cropped. The pictures on this page are derived from it and under "
    "the same licence.",
)


def scene_path() -> Path:
    """The folder of the scene that comes with terralign: Sentinel-2 L2A, 720 x 720 pixels of 10 m,
    twelve bands, digital numbers without an offset (`dn_offset=0`). Its licence lies beside it."""
    path = Path(__file__).parent / "scene" / SCENE
    if not path.is_dir():
        raise StorageError(
            f"the demo's scene comes with terralign, but {path} is not found; install terralign "
            "again"
        )
    return path


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """What the demo found. `python`, `commands`: lines that do the same."""

    folder: Path
    classes: Classification
    searches: tuple[Hits, ...]
    scores: ScoreMap
    python: str
    commands: str

    @property
    def page(self) -> Path:
        """The page with everything."""
        return self.folder / PAGE

    def counts(self) -> dict[str, int]:
        """Class -> windows that are likeliest of it, the most frequent first."""
        return dict(Counter(self.classes.predicted).most_common())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "report": str(self.page),
            "windows": len(self.classes),
            "classes": self.counts(),
            "searches": [
                {"query": hits.query, "hits": [hit.to_json() for hit in hits]}
                for hits in self.searches
            ],
            "map": self.scores.to_json(),
        }


def run_demo(out: str | Path, *, device: str | None = None) -> Demo:
    """Classify, embed, search and map the scene that comes with terralign, by its starter model.

    `out` then holds `report.html`, the `vectors` (a folder of parts, to be searched) and
    `scores.tif`; vectors of an earlier run are taken. `StorageError` where another file has one of
    these names.
    """
    out = Path(out)
    check_page(out / PAGE)
    check_map(out / MAP)
    scene = scene_path()
    with claimed(out):
        space = EmbeddingSpace.load(MODEL).to(choose_device(device))
        classes = space.classify(scene, CLASS_NAMES, dn_offset=0)
        found = embed_scenes(space, scene, out / VECTORS, stride=STRIDE, dn_offset=0)
        for fault in found.faults:
            raise fault.as_error()
        index = open_index(out / VECTORS)
        searches = tuple(index.search(space, text, k=NUM_HITS, collapse=True) for text in QUESTIONS)
        scores = score_map(space, index, QUESTIONS[0], out / MAP)
        demo = Demo(
            folder=out, classes=classes, searches=searches, scores=scores,
            python=_python(out), commands=_commands(out),
        )  # fmt: skip
        write_demo(_page_of(demo, space, index), demo.page)
    return demo


def _python(out: Path) -> str:
    vectors, target = (json.dumps(str(out / name)) for name in (VECTORS, MAP))
    rows = (json.dumps(CLASS_NAMES[at : at + 4])[1:-1] for at in range(0, len(CLASS_NAMES), 4))
    names = "\n".join(f"    {row}," for row in rows)
    return f"""import terralign as ta
from terralign.demo import scene_path

space = ta.load("{MODEL}")
scene = scene_path()  # or a file, or a product's folder, of your own
classes = [
{names}
]
print(space.classify(scene, classes, dn_offset=0))
print(ta.embed_scenes(space, scene, {vectors}, stride={STRIDE}, dn_offset=0))
index = ta.open_index({vectors})
for text in {json.dumps(QUESTIONS)}:
    print(index.search(space, text, k={NUM_HITS}, collapse=True))
print(ta.score_map(space, index, "{QUESTIONS[0]}", {target}))
"""


def _commands(out: Path) -> str:
    paths = (scene_path(), out / VECTORS, out / MAP)
    scene, vectors, target = (shlex.quote(str(one)) for one in paths)
    labels = ",".join(CLASS_NAMES)
    return f"""terralign classify {MODEL} {scene} --labels "{labels}" --dn-offset 0
terralign embed {scene} --model {MODEL} --out {vectors} --stride {STRIDE} --dn-offset 0
terralign search {vectors} "{QUESTIONS[0]}" -k {NUM_HITS} --collapse
terralign score {vectors} "{QUESTIONS[0]}" --out {target}
"""


def _page_of(demo: Demo, space: EmbeddingSpace, index: Index) -> DemoPage:
    chip = open_scene(scene_path(), dn_offset=0).read()
    views = chip_views(np.asarray(chip.pixels), chip.layout)
    height, width = views["true colour"].shape[:2]
    return DemoPage(
        lines=tuple(line.format(height=height, width=width) for line in _LINES),
        height=height,
        width=width,
        views=tuple((name, jpeg_bytes(one, max_side=_SIDE)) for name, one in views.items()),
        questions=_questions(space, index, demo.searches),
        map_text=demo.scores.query,
        map_picture=_map_picture(demo.scores, (width, height)),
        lowest=demo.scores.lowest,
        highest=demo.scores.highest,
        class_names=CLASS_NAMES,
        cells=_cells(demo.classes),
        python=demo.python,
        commands=demo.commands,
        notes=_NOTES,
    )


def _questions(
    space: EmbeddingSpace, index: Index, searches: Sequence[Hits]
) -> tuple[Question, ...]:
    every = {hit.key: hit for hits in searches for hit in hits}
    of_hit = {key: index.facts_of(key) for key in every}
    pictures = dict(read_pictures(space, list(every.values()), of_hit))
    questions = []
    for hits in searches:
        places = []
        for hit in hits:
            found, window = pictures[hit.key], hit.place.window
            assert window is not None
            places.append(
                FoundPlace(
                    rank=hit.rank, score=hit.score, row=window.row, column=window.column,
                    height=window.height, width=window.width,
                    pictures=() if isinstance(found, str) else found,
                )
            )  # fmt: skip
        questions.append(Question(text=hits.query, places=tuple(places)))
    return tuple(questions)


def _cells(classes: Classification) -> tuple[ClassCell, ...]:
    cells = []
    for one in classes:
        window: Window | None = one.place.window
        assert window is not None
        cells.append(
            ClassCell(
                row=window.row, column=window.column, height=window.height, width=window.width,
                number=CLASS_NAMES.index(one.label),
            )
        )  # fmt: skip
    return tuple(cells)


def _map_picture(scores: ScoreMap, size: tuple[int, int]) -> bytes:
    """The map as JPEG, as large as the scene."""
    with open_geotiff(scores.path) as file:
        picture: Picture8 = heat_picture(file.read(1))
    enlarged = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    return jpeg_bytes(np.asarray(enlarged), max_side=_SIDE)
