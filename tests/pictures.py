"""Pictures made byte by byte, for tests of what is too large or damaged."""

from __future__ import annotations

import struct
import zlib


def png_saying(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG of grey pixels whose header says this size; `rows` is its compressed content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
