"""Make `import torchvision` work beside a CPU-only torch.

torchvision's wheel carries compiled operators (`nms`, `qnms`) linked to CUDA libraries. Where these do not load,
`import torchvision` fails with "operator torchvision::nms does not exist", and with it transformers' models,
open_clip, timm, peft and lightning, none of which need those operators here. Declaring their schemas lets the
import go through; calling them would still fail. Import this module before any of those libraries.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _compiled_operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to mend
    library = next(Path(spec.origin).parent.glob("_C.*"), None)
    if library is None:
        return False
    try:
        torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


_declared: torch.library.Library | None = None  # the schemas live as long as this object
if not _compiled_operators_load():
    _declared = torch.library.Library("torchvision", "DEF")
    for _schema in _SCHEMAS.values():
        _declared.define(_schema)
