"""Files of pictures are of a few formats, run nothing, and take no more memory than is promised."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import png_saying
from PIL import Image

import mmtune
from mmtune.common.errors import RowError
from mmtune.data import image_files
from mmtune.data.image_files import FORMATS, FormatError, open_image
from mmtune.data.images import decode, load_image

BOUND = 6 * 2**20  # in place of the 256 MiB, so that the pictures are quickly made
SLACK = 3 * 2**20  # what Python and the decoders take however small a picture is
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\nshowpage\n%%EOF\n"

# run in a process of its own, which decodes each file in a child and prints the memory that it took
MEASURE = """
import io, json, os, sys
from pathlib import Path
from PIL import Image
Image.init()
from mmtune.data import image_files
from mmtune.data.images import decode

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024

image_files.MOST_BYTES = int(sys.argv[2])
for file in Path(sys.argv[1]).glob("*, small"):
    decode(file)  # what Pillow imports when it needs it is no picture's
for file in sorted(Path(sys.argv[1]).iterdir()):
    reader, writer = os.pipe()
    if not os.fork():
        data = io.BytesIO(file.read_bytes())
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        try:
            said = decode(data).mode
        except Exception as error:
            said = repr(error)
        os.write(writer, json.dumps([file.name, status("VmHWM") - before, said[:300]]).encode())
        os._exit(0)
    os.wait()
    print(os.read(reader, 100_000).decode(), flush=True)
"""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(side: int, mode: str = "RGB") -> Image.Image:
    small = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.NEAREST).convert(mode)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def rle(side: int) -> bytes:
    """A BMP of run lengths."""
    line = b"\xff\x07" * (side // 255) + bytes([side % 255 or 1, 7]) + b"\0\0"
    data = line * side + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + header + bytes(1024) + data


def saved(kind: str, mode: str = "RGB", **options: Any) -> Callable[[int], bytes]:
    return lambda side: encoded(picture(side, mode), kind, **options)


def frames(kind: str) -> Callable[[int], bytes]:
    return lambda side: encoded(picture(side), kind, save_all=True, append_images=[picture(side).rotate(90)])


KINDS: dict[str, Callable[[int], bytes]] = {
    **{f"{kind} {mode}": saved(kind, mode)
       for kind, modes in {"PNG": "1 L LA P RGB RGBA I;16", "JPEG": "L RGB CMYK", "WEBP": "RGB RGBA", "BMP": "1 L RGB",
                           "GIF": "L RGB", "TIFF": "1 L LA RGB RGBA CMYK I;16 I F LAB YCbCr"}.items()
       for mode in modes.split()},
    "PNG with a transparent color": lambda side: encoded(picture(side, "P"), "PNG", transparency=3),
    "JPEG progressive": saved("JPEG", progressive=True),
    "JPEG progressive, all colors": saved("JPEG", progressive=True, subsampling=0),
    "JPEG turned": saved("JPEG", exif=turned()),
    "JPEG progressive and turned": saved("JPEG", progressive=True, exif=turned()),
    "PNG turned": saved("PNG", "RGBA", exif=turned()),
    "WEBP turned": saved("WEBP", exif=turned()),
    "WEBP lossless": saved("WEBP", lossless=True),
    "BMP of run lengths": rle,
    **{f"{kind} of frames": frames(kind) for kind in ("PNG", "GIF", "WEBP", "TIFF")},
    **{f"TIFF {how}": saved("TIFF", compression=how)
       for how in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg")},
    **{f"TIFF {how} in one strip": saved("TIFF", compression=how, strip_size=2**30)
       for how in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")},
}  # fmt: skip


def iim(inner: bytes) -> bytes:
    """An IPTC file that says it is 8 x 8 pixels, whatever it holds."""
    fields = [(3, 20, b"\0\x08"), (3, 30, b"\0\x08"), (3, 60, b"\1\0"), (3, 120, b"\1"), (8, 10, inner)]
    return b"".join(bytes([0x1C, a, b]) + struct.pack(">H", len(data)) + data for a, b, data in fields)


def gif_with_a_larger_frame(side: int) -> bytes:
    data = bytearray(encoded(picture(side, "L"), "GIF"))
    data[6:10] = struct.pack("<HH", 8, 8)
    return bytes(data)


def tiff_with(tags: dict[int, tuple[int, int, int]], data: bytes = b"", base: int = 8) -> bytes:
    """A TIFF of one directory: by tag, type, count and value or place; the data after the directory."""
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", base, len(tags)) + entries + bytes(4) + data


def tiff_of_tile(tile: int, data: bytes, compression: int) -> bytes:
    """A TIFF of 8 x 8 pixels in a tile that may be as large as one likes."""
    tags = {256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, compression), 262: (3, 1, 1), 277: (3, 1, 1),
            322: (4, 1, tile), 323: (4, 1, tile), 325: (4, 1, len(data))}  # fmt: skip
    return tiff_with({**tags, 324: (4, 1, 8 + 2 + 12 * 10 + 4)}, data)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(*chunks: bytes) -> bytes:
    plain = encoded(picture(8), "PNG")
    return plain[:33] + b"".join(chunks) + plain[33:]


def many_tags(size: int, count: int) -> bytes:
    """An EXIF block, or the directory of a TIFF, whose tags all stand for the same many bytes."""
    tags = {1000 + n: (7, size, 0) for n in range(count)}
    return tiff_with(tags, bytes(size))


# files that are larger inside than they say, each a bomb of a kind of its own
BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 100,000 x 100,000": lambda: png_saying(100_000, 100_000, zlib.compress(bytes(1000))),
    "IIM with a photo": lambda: iim(encoded(picture(4000, "L").resize((200, 200)), "JPEG")),
    "IIM with PostScript": lambda: iim(EPS),
    "ICO": lambda: encoded(picture(256), "ICO"),
    "ICNS": lambda: encoded(picture(512), "ICNS"),
    "GIF with a larger frame": lambda: gif_with_a_larger_frame(3000),
    "TIFF with a larger tile": lambda: tiff_of_tile(20_000 // 16 * 16, zlib.compress(bytes(10**6)), 8),
    "TIFF with a larger JPEG in its tile": lambda: tiff_of_tile(16, encoded(picture(4000, "L"), "JPEG"), 7),
    "TIFF of many tags": lambda: many_tags(20_000, 4000),
    "PNG with an EXIF of many tags": lambda: png_with(chunk(b"eXIf", many_tags(20_000, 4000))),
    "JPEG with an EXIF of many tags": lambda: encoded(picture(8), "JPEG", exif=many_tags(8_000, 2500)),
    "PNG with texts": lambda: png_with(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6)))] * 99),
    "PNG with a profile": lambda: png_with(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8), 9))),
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """By name, the memory that a file took, and what became of it."""
    folder = tmp_path_factory.mktemp("pictures")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in KINDS.items():
            with open_image(io.BytesIO(make(600))) as image:
                each = image_files._bytes_per_pixel(image) + image_files._strip(image) / 600**2
            (folder / f"{name}, small").write_bytes(make(64))
            for size, share in (("just", 0.97), ("over", 1.1)):
                (folder / f"{name}, {size}").write_bytes(make(int((BOUND * share / each) ** 0.5)))
        for name, bomb in BOMBS.items():
            (folder / name).write_bytes(bomb())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(folder), str(BOUND)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {name: (taken, said) for name, taken, said in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_takes_no_more_memory_than_is_promised(name: str, measured: dict[str, tuple[int, str]]) -> None:
    taken, said = measured[f"{name}, just"]
    assert said == "RGB"
    assert taken <= BOUND + SLACK
    taken, said = measured[f"{name}, over"]
    assert "DecompressionBombError" in said
    assert taken <= SLACK


@pytest.mark.parametrize("name", BOMBS)
def test_a_picture_that_is_larger_inside_takes_no_more_either(name: str, measured: dict[str, tuple[int, str]]) -> None:
    taken, said = measured[name]
    assert taken <= BOUND + SLACK
    if not name.startswith(("TIFF of", "PNG with", "JPEG with")):
        assert "Error" in said


def test_usual_photos_are_taken() -> None:
    """At the real bound: cameras of 24 megapixels, upright or turned, and telephones of 48."""
    for side, options in ((6900, {}), (4900, {"exif": turned()}), (4900, {"progressive": True})):
        data = encoded(Image.new("RGB", (side, side)), "JPEG", **options)
        with open_image(io.BytesIO(data)) as image:
            assert image.size == (side, side)


# Formats


def test_every_format_of_the_list_is_read_and_no_other(tmp_path: Path) -> None:
    Image.init()
    read, refused = set(), []
    for kind in sorted(Image.SAVE):
        for mode in ("RGB", "L", "1", "F"):
            try:
                data = encoded(picture(64, mode), kind)
            except Exception:  # a kind that cannot be written, or not so
                continue
            try:
                with decode(io.BytesIO(data)):
                    read.add(kind)
            except FormatError as error:
                refused.append(str(error))
            except Image.UnidentifiedImageError:
                pass  # by nothing in its beginning can one tell what it is
            break
    assert read <= {*FORMATS, "MPO"}  # several JPEGs in one, of which the first is read
    assert read >= set(FORMATS)
    assert len(refused) > 10
    for said in refused:
        assert re.fullmatch(r"of the format \w+, which is not read; save it as PNG or JPEG \(.*\)", said)


@pytest.mark.parametrize(
    ("name", "make"),
    [("EPS", lambda: EPS), ("IPTC", lambda: iim(EPS)), ("ICO", BOMBS["ICO"]), ("ICNS", BOMBS["ICNS"]),
     ("PSD", lambda: b"8BPS\0\1" + bytes(50)), ("WMF", lambda: b"\xd7\xcd\xc6\x9a\0\0" + bytes(60)),
     ("AVIF", lambda: encoded(picture(64), "AVIF")), ("FITS", lambda: b"SIMPLE  =" + b" " * 80)],
)  # fmt: skip
def test_another_format_is_named_with_what_to_save_it_as(
    name: str, make: Callable[[], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a) or pytest.fail("a program was started"))
    (tmp_path / "cat.jpg").write_bytes(make())
    for photo in (tmp_path / "cat.jpg", make()):
        with pytest.raises(
            RowError, match=rf"rows, row 1: the photo .*is of the format {name}, which is not read; save it as"
        ):
            load_image(photo, "rows, row 1")
    assert not started


@pytest.mark.parametrize("compression", ["webp", "zstd", "lzma"])
def test_a_tiff_leads_to_no_other_decoder_than_that_of_jpeg(compression: str) -> None:
    try:
        data = encoded(picture(64), "TIFF", compression=compression)
    except Exception:
        data = tiff_of_tile(64, b"x" * 100, {"webp": 50001, "zstd": 50000, "lzma": 34925}[compression])
    with pytest.raises(RowError, match=rf"of the format TIFF, compressed as {compression}, which is not read"):
        load_image(data, "rows, row 1")


# Places


def test_pictures_are_opened_in_one_place() -> None:
    """Nothing but that module opens a picture, by whatever name; notebooks neither."""
    root = Path(mmtune.__file__).parent
    opens = []
    sources = {file.relative_to(root).as_posix(): file.read_text() for file in root.rglob("*.py")}
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Image.open", "imread", "read_image")):
                opens.append((name, "formats" in {keyword.arg for keyword in node.keywords}))
    assert set(opens) == {("data/image_files.py", True)}
    assert not [file for file in (root.parent / "notebooks").glob("*.ipynb") if "Image.open(" in file.read_text()]


@pytest.mark.parametrize("shape", ["plain", "list", "struct", "list of structs"])
def test_the_hub_s_libraries_decode_no_picture(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep a column of pictures lies, it is read as bytes; the library would open any format by itself."""
    import datasets

    from mmtune.common.hub import undecoded_rows

    cell: Any = {"bytes": iim(EPS), "path": None}
    image = datasets.Image()
    value, feature = {
        "plain": (cell, image),
        "list": ([cell], datasets.List(image)),
        "struct": ({"image": cell}, {"image": image}),
        "list of structs": ([{"image": cell}], datasets.List({"image": image})),
    }[shape]
    data = datasets.Dataset.from_list([{"x": value}], features=datasets.Features({"x": feature}))
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("decoded"))
    [row] = undecoded_rows(data)
    assert row["x"] == value
