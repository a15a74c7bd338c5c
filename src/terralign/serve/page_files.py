"""The files of the page, read once: what is served of them is looked up by name, never by path."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib import resources

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
    ".pbf": "application/x-protobuf",
}
"""The files of the page that are served, by their endings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageFile:
    """A file of the page, as it is served."""

    content: bytes
    zipped: bytes
    kind: str
    tag: str


def page_files() -> dict[str, PageFile]:
    """The files of the page by their names within its folder."""
    found = {}
    with resources.as_file(resources.files("terralign").joinpath("serve", "page")) as folder:
        for path in sorted(folder.rglob("*")):
            kind = _TYPES.get(path.suffix)
            if kind is None or not path.is_file():
                continue
            content = path.read_bytes()
            found[path.relative_to(folder).as_posix()] = PageFile(
                content=content,
                zipped=b"" if kind.startswith("image/png") else gzip.compress(content, 6, mtime=0),
                kind=kind,
                tag=f'"{hashlib.sha256(content).hexdigest()[:16]}"',
            )
    return found
