"""Options that describe the parts of a model; their docstrings are the help text of the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mmtune.common.errors import UserError, check_seed
from mmtune.common.schema import validate

ProjectorKind = Literal["linear", "mlp2x_gelu"]
ImageFit = Literal["pad", "crop", "squash"]
Quantisation = Literal["nf4", "int8"]
_MOST = 2**20  # maximum rank and alpha: no layer is as wide


@dataclass
class VisionOptions:
    """The frozen vision tower.

    Attributes:
        tower: `open_clip:NAME`, `timm:NAME`, or `clip:REFERENCE`: the CLIP tower that the config of a hub id or folder
            in transformers' format describes, a LLaVA's too.
        weights: an open_clip tag (`openai`), `pretrained` (timm's own, or those of the tower's REFERENCE), a file, or
            `package:NAME/file`, for `clip:` another hub id or folder; `random` leaves the tower untrained, for tests.
        blocks: which blocks' features to use, counted as open_clip and timm count them (-2: the last but one);
            several are concatenated.
        grid: pool the features to grid x grid tokens; None keeps every patch.
        standardise: bring every feature to mean 0 and deviation 1, measured on the first photos of the alignment.
        fit: how a photo becomes square: `pad` with the mean colour (LLaVA 1.5), `crop` the centre of what was resized
            (CLIP), or `squash`.
        class_token: give the class token's feature too, before the patches'.
    """

    tower: str = "open_clip:ViT-L-14-336-quickgelu"
    weights: str = "openai"
    blocks: list[int] = field(default_factory=lambda: [-2])
    grid: int | None = None
    standardise: bool = False
    fit: ImageFit = "pad"
    class_token: bool = False


@dataclass
class LoraOptions:
    """Low-rank adapters on the language model (peft).

    Attributes:
        r: rank.
        alpha: scale; the update is multiplied by alpha / r. None takes 2 r, the recipe's proportion (LLaVA 1.5).
        dropout: dropout on the adapter's input.
        targets: names of the linear layers that get an adapter; None takes every one but the output layer.
        experts: adapt the weights of a mixture's experts too, which are no linear layers but one tensor a block. Needs
            `dropout 0` and no `dora`, and a copy of a block's experts in memory while the block is computed.
        dora: weight-decomposed adapters (DoRA).
        rslora: scale by alpha / sqrt(r) instead (rsLoRA).
    """

    r: int = 128
    alpha: int | None = None
    dropout: float = 0.05
    targets: list[str] | None = None
    experts: bool = False
    dora: bool = False
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.alpha is None:
            self.alpha = 2 * self.r

    def check(self) -> None:
        """Check the values of the options.

        Raises:
            UserError: a value is out of range.
        """
        if self.r < 1:
            raise UserError(f"--model.lora.r {self.r}: must be at least 1")
        for name, value in (("r", self.r), ("alpha", self.alpha)):
            if value is not None and abs(value) > _MOST:
                raise UserError(f"--model.lora.{name}: must be at most {_MOST:,}")
        if self.experts and (self.dropout or self.dora):
            given = f"--model.lora.dropout {self.dropout}" if self.dropout else "--model.lora.dora true"
            raise UserError(
                f"{given}: adapters of experts know none (--model.lora.experts true); give --model.lora.dropout 0 and "
                "no --model.lora.dora"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"--model.lora.dropout {self.dropout}: must lie in [0, 1)")


@dataclass
class ModelSpec:
    """All settings needed to build a model again; `mmtune.json` in a saved model.

    Attributes:
        language: hub id, folder, GGUF file or `package:NAME/file` of the language model.
        vision: the tower; None for a text-only model.
        projector: `mlp2x_gelu` (LLaVA 1.5) or `linear` (LLaVA).
        template: how conversations are written down; see `mmtune.data.rendering.templates`.
        lora: adapters on the language model; None for none.
        quantise: keep the language model's linear layers in 4 bits (NF4, doubly quantised) or 8 (bitsandbytes).
        language_trained: the language model was finetuned in full, so its weights are saved too.
        seed: seed of the projector's and the adapters' initial weights.
        template_date: date that the template writes as today's; None takes the current date where it writes one.
    """

    language: str
    vision: VisionOptions | None = None
    projector: ProjectorKind = "mlp2x_gelu"
    template: str = "vicuna_v1"
    lora: LoraOptions | None = None
    quantise: Quantisation | None = None
    language_trained: bool = False
    seed: int = 42
    template_date: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as a dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any], where: str) -> ModelSpec:
        """Build a spec from a dictionary of JSON values.

        Raises:
            UserError: a key is missing or unknown, or a value has another type; the message begins with `where`.
        """
        spec = validate(cls, value, where, remedy="save or copy the model again, with this version of mmtune")
        check_seed(spec.seed, f"{where}: seed")
        return spec

    def check(self, where: str) -> None:
        """Check the types of values that come from another tool's files.

        Raises:
            UserError: a value has another type; the message begins with `where`.
        """
        self.from_dict(self.to_dict(), where)
