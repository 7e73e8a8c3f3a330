"""Small models of transformers' families, and the figures of ours and of transformers' own code side by side."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from mmtune.data.collate import PackedBatch, pack
from mmtune.data.conversation import Conversation
from mmtune.data.encoding import encode
from mmtune.generation.generator import VisionLanguageModel
from mmtune.interfaces import Turn
from mmtune.models.decoding.alone import forget_lengths
from mmtune.training.objectives.token_loss import supervised_loss

TOKENS = 320  # the byte-level tokenizer's 259, padded
_CLOSE = 2e-3  # between the two likeliest logits: which one is taken is a matter of rounding
TALK = (
    ("Say hi", "hi"),
    ("Count to ten, in words and in figures, please", "one 1 two 2 three 3 four 4 five 5 six 6 seven 7"),
    ("What is the capital of France?", "Paris, of course"),
)
PROMPTS = ("a", "Is it so?", "What do you make of this much longer question, of more tokens than the others?")


def save_family(folder: Path, tokenizer_of: Path, config: Any) -> None:
    """A model of random weights that leave nothing without effect, with the byte-level tokenizer."""
    shutil.copytree(tokenizer_of, folder, ignore=shutil.ignore_patterns("*.safetensors", "*config.json"))
    shutil.copy(tokenizer_of / "tokenizer_config.json", folder)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                wide = parameter.shape[-1] if parameter.ndim > 1 else 0
                if wide >= 16:
                    parameter.normal_(std=1.2 * wide**-0.5)
                else:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def small_config(model_type: str, **options: Any) -> Any:
    """A config of a family, small; options it does not know are left out by it."""
    sizes = {
        "vocab_size": TOKENS,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 256,
        "eos_token_id": 258,
        "pad_token_id": 256,
    }
    return AutoConfig.for_model(model_type, **{**sizes, **options})


class Side:
    """Ours and transformers' own, of one folder."""

    def __init__(self, folder: Path) -> None:
        self.ours = VisionLanguageModel.from_pretrained(folder, template="chatml")
        self.own: Any = AutoModelForCausalLM.from_pretrained(folder).eval()

    def batch(self) -> PackedBatch:
        """Three documents in a pack."""
        said = [Conversation((Turn("user", q), Turn("assistant", a)), (), "rows", i) for i, (q, a) in enumerate(TALK)]
        inputs = self.ours.inputs()
        return pack([encode(one, inputs, 512) for one in said], inputs)

    def losses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of our pack, and of transformers' own forward of each document by itself."""
        batch = self.batch()
        ours = supervised_loss(self.ours(batch), batch.targets, self.ours.output_layer, chunk=16)
        logits = torch.cat([self.logits(ids) for ids in batch.input_ids.split(batch.document_lengths)])
        return ours, cross_entropy(logits.float(), batch.targets, ignore_index=-100)

    def gradients(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Of both losses, by the parameter's name."""
        self.ours.requires_grad_(True)
        self.own.requires_grad_(True)
        for loss in self.losses():
            loss.backward()
        ours, own = (
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            for model in (self.ours.base_language, self.own)
        )
        self.ours.zero_grad()
        self.own.zero_grad()
        return ours, own

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Transformers' own, [tokens, vocabulary], as of a model that has seen nothing before."""
        forget_lengths(self.own)
        logits: torch.Tensor = self.own(input_ids=ids[None], use_cache=False).logits[0]
        return logits

    def likelihoods(self, choices: Sequence[str]) -> tuple[list[list[float]], list[list[float]]]:
        """Of each choice after each prompt."""
        ours = self.ours.loglikelihood(PROMPTS, [choices] * len(PROMPTS))
        own = []
        for text in self._texts():
            prompt = self._ids(text)
            row = []
            for choice in choices:
                ids = self._ids(text + choice)
                with torch.no_grad():
                    found = self.logits(ids[:-1]).float().log_softmax(-1)[len(prompt) - 1 :]
                row.append(float(found.gather(1, ids[len(prompt) :, None]).sum()))
            own.append(row)
        return ours, own

    def answers(self, tokens: int = 8) -> list[tuple[str, str]]:
        """Greedy answers to the prompts, in one call, and of transformers' `generate` to each by itself."""
        ours = self.ours.answer(PROMPTS, max_tokens=tokens)
        return [(text, self._own_answer(prompt, tokens)) for text, prompt in zip(ours, self._texts(), strict=True)]

    def _own_answer(self, text: str, tokens: int) -> str:
        """Transformers' own greedy answer, up to the first token that rounding may decide."""
        ids = self._ids(text)
        forget_lengths(self.own)
        out = self.own.generate(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=258,
            pad_token_id=256,
            output_scores=True,
            return_dict_in_generate=True,
        )
        said = out.sequences[0][-len(out.scores) :]
        for step, scores in enumerate(out.scores):
            first, second = scores[0].topk(2).values.tolist()
            if first - second < _CLOSE:
                said = said[:step]
                break
        answer: str = self.ours.tokenizer.decode(said, skip_special_tokens=True)
        return answer

    def _texts(self) -> list[str]:
        return [self.ours.template.prompt([Turn("user", prompt)]) for prompt in PROMPTS]

    def _ids(self, text: str) -> torch.Tensor:
        return torch.tensor(self.ours.tokenizer(text, add_special_tokens=False).input_ids)
