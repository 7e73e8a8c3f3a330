"""Access to the Hugging Face hub: offline mode, cache folders, undecoded rows."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse


@functools.cache
def go_offline_if_unreachable() -> bool:
    """Switch the hub libraries to their offline mode where the hub's name does not resolve.

    Without it every missing file costs half a minute of retries and as many warnings. Behind a proxy the name need not
    resolve here, so nothing is concluded. Returns whether the process is offline now.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not any(os.environ.get(k) for k in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        try:
            socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True
            os.environ["HF_HUB_OFFLINE"] = "1"  # for libraries imported later and for worker processes
    return bool(constants.HF_HUB_OFFLINE)


def kept_files() -> tuple[Path, ...]:
    """Return the cache folders in which the hub libraries keep the files of datasets."""
    import mmtune.common.torchvision_ops  # noqa: F401  # before datasets

    from datasets import config  # isort: skip
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE), Path(config.HF_DATASETS_CACHE), Path(config.DOWNLOADED_DATASETS_PATH)


def undecoded_rows(data: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `datasets.Dataset` without decoding images and sounds, at any depth.

    They stay bytes or paths. By default the library decodes them, with decoders that open any format.
    """
    for table in data.with_format("arrow").iter(batch_size=256):
        yield from table.to_pylist()
