"""Pictures of the site: each written once, as WebP, under a name that follows from its content."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

LOSSLESS_UP_TO = 400_000  # bytes; a drawing stays below, a page of video frames does not
QUALITY = 88
LARGEST = 2400  # pixels: twice the widest column


@dataclass(frozen=True)
class Picture:
    """href: relative to the site; width and height in the pixels that it is shown at."""

    href: str
    width: int
    height: int


class Pictures:
    """The folder ``pictures/`` of one site."""

    def __init__(self, site: Path) -> None:
        self._folder = site / "pictures"
        self._known: dict[str, Picture] = {}

    def add(self, content: bytes, shown_at: int | None = None) -> Picture:
        """A PNG or JPEG; shown_at: its width on the page in pixels, by default what its resolution asks for."""
        key = hashlib.sha256(content).hexdigest()[:16]
        if key not in self._known:
            self._known[key] = self._write(key, content)
        made = self._known[key]
        if shown_at and made.width != shown_at:
            return Picture(made.href, shown_at, round(made.height * shown_at / made.width))
        return made

    def add_uri(self, uri: str) -> Picture | None:
        """A ``data:image/...;base64,`` address; None for an address of another kind."""
        head, _, data = uri.partition(",")
        if not head.startswith("data:image/") or not head.endswith(";base64") or "svg" in head:
            return None
        return self.add(base64.b64decode(data))

    def _write(self, key: str, content: bytes) -> Picture:
        with Image.open(io.BytesIO(content)) as opened:
            inches = opened.width / float(opened.info.get("dpi", (200, 200))[0])
            picture = opened.convert("RGBA" if opened.has_transparency_data else "RGB")
        shown = (min(round(100 * inches), 1000), 0)
        shown = (shown[0], round(shown[0] * picture.height / picture.width))
        if picture.width > LARGEST:
            picture = picture.resize((LARGEST, round(picture.height * LARGEST / picture.width)))
        packed = _webp(picture, lossless=True)
        if len(packed) > LOSSLESS_UP_TO:
            packed = _webp(picture, quality=QUALITY)
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{key}.webp").write_bytes(packed)
        return Picture(f"pictures/{key}.webp", *shown)


def _webp(picture: Image.Image, **options: bool | int) -> bytes:
    packed = io.BytesIO()
    picture.save(packed, "WEBP", method=3, **options)
    return packed.getvalue()
