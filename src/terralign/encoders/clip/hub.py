"""Files of models that come from a hub: fetched at the revision that is asked for, and recorded."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from open_clip.pretrained import download_pretrained, download_pretrained_from_hf

from terralign.errors import ModelError, first_line, quoted, some
from terralign.files import hash_file

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COARSE_NS = 10**9
"""File systems may date a file so much too early."""


class Hub:
    """What one model fetches, and from where.

    `revisions`: model on the hub -> commit, tag or branch; others are fetched as they are now.
    `fetched`: model -> the commit (None where it is not known), and the SHA-256 of each file.
    """

    def __init__(self, revisions: Mapping[str, str] | None = None) -> None:
        self.revisions = dict(revisions or {})
        self.fetched: dict[str, dict[str, Any]] = {}
        self._begun_ns = time.time_ns() - _COARSE_NS
        for name, revision in self.revisions.items():
            if not _NAME.fullmatch(name) or not _REVISION.fullmatch(str(revision)):
                raise ModelError(
                    f"revisions: {quoted(name)} = {quoted(str(revision))}; expected the name of a "
                    "model on the hub and a commit, tag or branch of it"
                )

    def named(self, source: str) -> str:
        """The model that `hf-hub:ORG/NAME[@REVISION]` names; its revision is kept."""
        name, separator, revision = source.removeprefix("hf-hub:").partition("@")
        if separator:
            if not _REVISION.fullmatch(revision):
                raise ModelError(
                    f"{quoted(source)}: expected a commit, tag or branch of the model after @"
                )
            if self.revisions.get(name, revision) != revision:
                raise ModelError(
                    f"{source}: revisions names {self.revisions[name]!r} for it; leave one out"
                )
            self.revisions[name] = revision
        return name

    def file(self, name: str, filename: str | None = None) -> Path:
        """A file of a model; None: its weights, as safetensors where it has such."""
        revision = self.revisions.get(name)
        path = Path(download_pretrained_from_hf(name, filename=filename, revision=revision))
        self._record(name, [path])
        return path

    def published(self, config: Mapping[str, Any]) -> Path:
        """The weights that open_clip lists for a tag."""
        name, _, filename = str(config.get("hf_hub") or "").rpartition("/")
        if name:
            return self.file(name, filename or None)
        path = Path(download_pretrained(dict(config)))
        self._record(str(config.get("url") or path.name), [path])
        return path

    def folder(self, name: str, patterns: Sequence[str]) -> Path:
        """A folder with a model's files that match, but for those in folders of its own."""
        from huggingface_hub import snapshot_download

        try:
            folder = Path(
                snapshot_download(
                    name,
                    revision=self.revisions.get(name),
                    allow_patterns=list(patterns),
                    ignore_patterns=["*/*"],
                )
            )
        except Exception as error:  # a hub and its network fail in many ways
            raise ModelError(
                f"cannot load {name} from the hub: {first_line(error)}. Without a network, give "
                "the folder of a saved space"
            ) from error
        self._record(name, sorted({one for pattern in patterns for one in folder.glob(pattern)}))
        return folder

    def check_revisions(self) -> None:
        """`ModelError` where a revision is of a model that was not fetched."""
        unused = sorted(self.revisions.keys() - self.fetched.keys())
        if unused:
            raise ModelError(
                f"revisions names {some(unused)}, which this model does not fetch; it fetches "
                f"{some(sorted(self.fetched)) or 'nothing'}"
            )

    def _record(self, name: str, paths: Sequence[Path]) -> None:
        commits = [re.search(r"/snapshots/([0-9a-f]{40})/", f"{one.as_posix()}/") for one in paths]
        found = next((one[1] for one in commits if one), None)
        entry = self.fetched.setdefault(name, {"revision": None, "files": {}})
        entry["revision"] = entry["revision"] or found or self.revisions.get(name)
        entry["files"].update({one.name: self._sha256(one) for one in paths})
        if found and name not in self.revisions:
            self.revisions[name] = found  # all files are of one commit

    def _sha256(self, path: Path) -> str:
        """SHA-256 of a file, as the hub's cache names its large files (`blobs/SHA256`).

        The name is what the hub stated: the file is held to it when it has just been fetched, not
        at each load. `ModelError` where it came damaged; it is removed, so that it is fetched anew.
        """
        blob = path.resolve()
        if blob.parent.name != "blobs" or not _SHA256.fullmatch(blob.name):
            return hash_file(path)
        if blob.stat().st_ctime_ns >= self._begun_ns:
            found = hash_file(blob)
            if found != blob.name:
                with suppress(OSError):
                    blob.unlink()
                raise ModelError(
                    f"{path} came damaged: it has the SHA-256 {found}, the hub states {blob.name}; "
                    "run the same again to fetch it anew"
                )
        return blob.name


def check_sha256(path: Path, expected: str | None) -> None:
    """`ModelError`, with both hashes, where a file of weights is not the one expected."""
    if expected is None:
        return
    found = hash_file(path)
    if found != expected.lower():
        raise ModelError(
            f"{path} has the SHA-256 {found}, expected {expected}; fetch it again or, if these are "
            "the weights that you want, give their SHA-256"
        )
