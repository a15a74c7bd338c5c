"""The page with one result, as a folder that any web server shows: no search, no tiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terralign.errors import StorageError, shown
from terralign.files import atomic_folder
from terralign.progress import Progress
from terralign.serve.page_files import page_files
from terralign.serve.pictures import KINDS
from terralign.serve.requests import Asked, SearchRequest
from terralign.serve.served import NotFound, ServedIndex, as_json

MARK = '<meta name="terralign-static" content="1">'
"""In the head of the page: how it knows that there is no server, and how a folder of ours is
known again."""

PICTURE_PX = 2048
"""The longer side of the picture of a scene."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written. `num_pictures`: of scenes; `num_missing`: hits without a thumbnail."""

    folder: Path
    num_hits: int
    num_pictures: int
    num_missing: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "hits": self.num_hits,
            "pictures": self.num_pictures,
            "missing": self.num_missing,
        }


def check_export(out: Path) -> None:
    """`StorageError` where a folder exists that is neither empty nor an export."""
    page = out / "index.html"
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")):
        raise StorageError(
            f"{shown(out)} exists and was not written by terralign serve --static; choose another "
            "folder"
        )


def export_static(served: ServedIndex, asked: Asked, out: Path) -> Exported:
    """Write the page with the hits and scores of one search, whole or not at all.

    An earlier export is replaced. Pictures are those of the scenes that hold hits; scenes that
    cannot be shown have none. `StorageError` where another folder has the name, or the disk is
    full.
    """
    check_export(out)
    listed = served.describe()
    request = SearchRequest.model_construct(**dict(asked), page=0, page_size=asked.k)
    found = served.search(request)
    features = found["hits"]["features"]
    with_hits = {one["properties"]["scene"] for one in features}
    num_pictures = num_missing = 0
    with (
        atomic_folder(out) as partial,
        Progress("draw", total=len(features) + len(with_hits), unit="picture") as progress,
    ):
        for folder in ("data", "thumbnails", "pictures", "static"):
            (partial / folder).mkdir()
        for scene in listed["scenes"]:
            scene["images"] = {}
            if scene["id"] not in with_hits:  # there may be thousands of them
                scene["pictures"], scene["why"] = [], "it holds no hit"
                continue
            for kind in KINDS:
                if kind in scene["pictures"]:
                    url = f"pictures/{scene['id']}-{kind}.png"
                    try:
                        picture, bounds = served.whole(scene["id"], kind, PICTURE_PX)
                    except NotFound as error:
                        scene["pictures"], scene["why"] = [], served.plain(str(error))
                        continue
                    (partial / url).write_bytes(picture)
                    scene["images"][kind], scene["image_bounds"] = url, list(bounds)
                    num_pictures += 1
            progress.advance(1)
        for feature in features:
            url = f"thumbnails/{feature['id']}.png"
            feature["properties"]["thumbnail"] = url
            try:
                (partial / url).write_bytes(served.thumbnail(feature["id"], "true"))
            except NotFound:
                feature["properties"]["thumbnail"] = None
                num_missing += 1
            progress.advance(1)
        listed |= {"is_static": True, "warning": ""}
        (partial / "data" / "index.json").write_bytes(as_json(listed))
        (partial / "data" / "search.json").write_bytes(as_json(found))
        (partial / "data" / "scores.json").write_bytes(as_json(served.scores(asked)))
        (partial / "data" / "hits.geojson").write_bytes(served.download(asked, "geojson"))
        for name, file in page_files().items():
            path = partial / (name if name == "index.html" else f"static/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            content = file.content
            if name == "index.html":
                content = content.replace(b"<head>", f"<head>\n{MARK}".encode(), 1)
            path.write_bytes(content)
    return Exported(
        folder=out, num_hits=len(features), num_pictures=num_pictures, num_missing=num_missing
    )
