from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from mmtune.common.errors import UserError
from mmtune.data.collate import PackedBatch
from mmtune.data.encoding import IMAGE_TOKEN, Example
from mmtune.data.rendering.templates import get_template
from mmtune.generation.generator import VisionLanguageModel
from mmtune.models.spec import LoraOptions
from mmtune.training.objectives.token_loss import supervised_loss

Make = Callable[..., Example]
Pack = Callable[[VisionLanguageModel, list[Example]], PackedBatch]
Build = Callable[..., VisionLanguageModel]


def refuse(*_: Any) -> None:
    raise AssertionError("the tower ran")


def test_a_text_pack_never_runs_the_tower(seeing_model: VisionLanguageModel, example: Make, packed: Pack) -> None:
    tower = seeing_model.tower
    assert tower is not None
    before = tower.images_encoded
    hooks = [module.register_forward_pre_hook(refuse) for module in tower.modules()]
    try:
        batch = packed(seeing_model, [example(seeing_model, "one", "two"), example(seeing_model, "a", "b")])
        seeing_model.set_stage("tune")
        supervised_loss(seeing_model(batch), batch.targets, seeing_model.output_layer).backward()
        seeing_model.answer(["hello"], max_tokens=3)
        with pytest.raises(AssertionError, match="the tower ran"):  # the hooks do notice
            seeing_model(packed(seeing_model, [example(seeing_model, "what?", "that", (0,))]))
    finally:
        seeing_model.zero_grad()
        for hook in hooks:
            hook.remove()
    assert tower.images_encoded == before


def test_photos_are_counted(seeing_model: VisionLanguageModel, example: Make, packed: Pack) -> None:
    before = seeing_model.usage["tower_passes"]
    seeing_model(
        packed(seeing_model, [example(seeing_model, "what?", "that", (0, 1)), example(seeing_model, "a", "b")])
    )
    assert seeing_model.usage["tower_passes"] == before + 2


def test_features_land_in_their_places_in_order(seeing_model: VisionLanguageModel, example: Make, packed: Pack) -> None:
    model = seeing_model
    assert model.tower is not None
    assert model.projector is not None
    batch = packed(
        model,
        [example(model, "which?", "that", (0, 1)), example(model, "a", "b"), example(model, "c", "d", (2,))],
    )
    assert batch.pixels is not None
    with torch.no_grad():
        embedded = model.embed(batch)
        alone = torch.cat([model.projector(model.tower(one[None]))[0] for one in batch.pixels])
    marked = batch.input_ids == IMAGE_TOKEN
    assert int(marked.sum()) == 3 * 4
    torch.testing.assert_close(embedded[marked], alone, rtol=1e-5, atol=1e-6)
    words = model.base_language.get_input_embeddings()(batch.input_ids[~marked])
    assert torch.equal(embedded[~marked], words)
    assert not torch.allclose(alone[:4], alone[4:8])  # the photos differ, so that an exchange would show


def test_photos_and_places_that_differ_name_the_sample(
    seeing_model: VisionLanguageModel, example: Make, packed: Pack
) -> None:
    batch = packed(seeing_model, [example(seeing_model, "what?", "that", (0, 1), row=17)])
    assert batch.pixels is not None
    with pytest.raises(ValueError, match=r"rows, row 17: 8 photo positions for 4 photo features"):
        seeing_model(dataclasses.replace(batch, pixels=batch.pixels[:1]))
    with pytest.raises(ValueError, match=r"rows, row 17: 8 photo positions for no photos"):
        seeing_model(dataclasses.replace(batch, pixels=None))


@pytest.mark.parametrize("kinds", ["ttt", "vvv", "tvt", "vtv"])
def test_a_document_in_a_pack_is_as_it_is_alone(
    seeing_model: VisionLanguageModel, example: Make, packed: Pack, kinds: str
) -> None:
    model = seeing_model
    documents = [
        example(model, "question " * (i + 1), "answer " * (3 - i), (i,) if kind == "v" else ())
        for i, kind in enumerate(kinds)
    ]
    with torch.no_grad():
        together = model(packed(model, documents)).split([len(d) for d in documents])
        for document, hidden in zip(documents, together, strict=True):
            torch.testing.assert_close(hidden, model(packed(model, [document])), rtol=1e-4, atol=1e-5)


def test_no_document_sees_another(seeing_model: VisionLanguageModel, example: Make, packed: Pack) -> None:
    model = seeing_model
    first, last = example(model, "before", "first", (0,)), example(model, "after", "last", (1,))
    one, other = example(model, "same length", "AAAA", (2,)), example(model, "same_Length", "zzzz", (3,))
    with torch.no_grad():
        hidden = [model(packed(model, [first, middle, last])) for middle in (one, other)]
    for part in (slice(0, len(first)), slice(-len(last), None)):
        torch.testing.assert_close(hidden[0][part], hidden[1][part], rtol=0, atol=1e-6)
    middle = slice(len(first), -len(last))
    assert (hidden[0][middle] - hidden[1][middle]).abs().max() > 0.1  # the change does show where it was made


def padded_reference(model: VisionLanguageModel, examples: list[Example], packed: Pack) -> torch.Tensor:
    """The loss as transformers computes it, on rows padded to the longest."""
    batches = [packed(model, [one]) for one in examples]
    rows = [model.embed(b) for b in batches]
    longest = max(len(row) for row in rows)
    embeddings = torch.stack([torch.nn.functional.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
    mask, labels = torch.zeros(2, len(rows), longest, dtype=torch.long)
    labels.fill_(-100)
    for i, one in enumerate(examples):
        mask[i, : len(one)] = 1
        learnt = torch.from_numpy(one.supervised)
        labels[i, : len(one)][learnt] = torch.from_numpy(one.input_ids).long()[learnt]
    loss: torch.Tensor = model.language(inputs_embeds=embeddings, attention_mask=mask, labels=labels).loss
    return loss


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("kinds", ["ttt", "vtv", "vvv"])
def test_packed_training_is_padded_training(build: Build, example: Make, packed: Pack, kinds: str, lora: bool) -> None:
    model = build(vision=True, lora=LoraOptions(r=4, alpha=8, dropout=0.0) if lora else None)
    model.set_stage("tune")
    examples = [
        example(model, "question " * (i + 1), "an answer " * (4 - i), (i,) if kind == "v" else ())
        for i, kind in enumerate(kinds)
    ]
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert any("projector" in n for n in trained)
    assert any("lora_A" in n for n in trained) is lora
    batch = packed(model, examples)
    loss = supervised_loss(model(batch), batch.targets, model.output_layer, chunk=7)
    loss.backward()
    ours = {n: p.grad.clone() for n, p in trained.items() if p.grad is not None}
    model.zero_grad()
    reference = padded_reference(model, examples, packed)
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-6)
    theirs = {n: p.grad for n, p in trained.items() if p.grad is not None}
    assert set(ours) == set(theirs)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_gradient_checkpointing_changes_no_gradient(build: Build, example: Make, packed: Pack) -> None:
    gradients = []
    calls: list[int] = []
    for checkpointed in (False, True):
        model = build(vision=True, lora=LoraOptions(r=4, alpha=8, dropout=0.0))
        model.set_stage("tune")
        if checkpointed:
            model.base_language.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        count = [0]
        model.base_language.base_model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, c=count: c.__setitem__(0, c[0] + 1)
        )
        batch = packed(model, [example(model, "what?", "that", (0,)), example(model, "a", "bcd")])
        supervised_loss(model(batch), batch.targets, model.output_layer).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        calls.append(count[0])
    assert calls == [1, 2]  # it does compute the block twice
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("stage", ["align", "tune"])
@pytest.mark.parametrize("lora", [True, False])
def test_a_stage_says_what_is_trained(build: Build, stage: Any, lora: bool) -> None:
    model = build(vision=True, lora=LoraOptions(r=2) if lora else None)
    model.set_stage(stage)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    projector = {n for n, _ in model.named_parameters() if n.startswith("projector.")}
    language = {n for n, _ in model.named_parameters() if n.startswith("language.") and (not lora or "lora_" in n)}
    assert trained == (projector if stage == "align" else projector | language)


def test_a_text_model_cannot_be_aligned(build: Build) -> None:
    with pytest.raises(UserError, match=r"--model\.vision"):
        build().set_stage("align")


def test_first_weights_come_from_the_seed(build: Build) -> None:
    lora = LoraOptions(r=4)
    torch.manual_seed(1)
    first = build(vision=True, lora=lora, seed=5)
    torch.manual_seed(2)
    again, other = build(vision=True, lora=lora, seed=5), build(vision=True, lora=lora, seed=6)
    assert first.fingerprint == again.fingerprint
    ours, theirs = first.state_dict(), other.state_dict()
    drawn = [n for n in ours if "lora_A" in n or n in ("projector.0.weight", "projector.2.weight")]
    assert len(drawn) == 2 + 2 * 7
    assert not any(torch.equal(ours[n], theirs[n]) for n in drawn)


def test_dtype_of_the_frozen_weights(llama: Any) -> None:
    from mmtune.models.spec import ModelSpec

    model = VisionLanguageModel.assemble(
        ModelSpec(str(llama), template="chatml", lora=LoraOptions(r=2)), dtype=torch.bfloat16
    )
    dtypes = {n: p.dtype for n, p in model.language.named_parameters()}
    assert {t for n, t in dtypes.items() if "lora_" in n} == {torch.float32}
    assert {t for n, t in dtypes.items() if "lora_" not in n} == {torch.bfloat16}


class TestFingerprint:
    def test_any_trained_weight_changes_it(self, build: Build) -> None:
        model = build(vision=True, lora=LoraOptions(r=2))
        prints = {model.fingerprint}
        for name in ("projector.0.bias", "tower.feature_mean"):
            with torch.no_grad():
                model.state_dict()[name][3] += 1e-3
            prints.add(model.fingerprint)
        for part in ("lora_A", "lora_B"):
            parameter = next(p for n, p in model.named_parameters() if part in n)
            with torch.no_grad():
                parameter[0, 0] += 1e-4
            prints.add(model.fingerprint)
        assert len(prints) == 5

    def test_the_template_and_the_base_change_it(self, build: Build) -> None:
        model = build()
        first = model.fingerprint
        with torch.no_grad():
            model.language.get_input_embeddings().weight.mul_(1.01)  # another base under the same name
        second = model.fingerprint
        with torch.no_grad():
            model.language.get_input_embeddings().weight[3, 5] += 1e-3  # one number of it
        third = model.fingerprint
        model.template = get_template("vicuna_v1", model.tokenizer)
        assert len({first, second, third, model.fingerprint}) == 4


class TestGenerate:
    prompts = (
        "hi",
        "a much longer question than that\nwith a line more",
        "<image>what is this?",
        "<image><image>two of them?",
    )

    def seen(self, photos: list[Image.Image]) -> list[list[Image.Image]]:
        return [[], [], photos[:1], photos[1:3]]

    @pytest.mark.parametrize("batch_tokens", [100, 220, 4096])
    def test_a_batch_answers_as_one_by_one(
        self, seeing_model: VisionLanguageModel, photos: list[Image.Image], batch_tokens: int
    ) -> None:
        model, seen = seeing_model, self.seen(photos)
        alone, used = [], []
        for prompt, images in zip(self.prompts, seen, strict=True):
            before = model.usage
            alone += model.answer([prompt], [images], max_tokens=12, stop=["e", "Q"])
            used.append({k: model.usage[k] - before[k] for k in before})
        before = model.usage
        together = model.answer(self.prompts, seen, max_tokens=12, stop=["e", "Q"], batch_tokens=batch_tokens)
        assert together == alone
        assert len(set(alone)) > 1
        spent = {k: model.usage[k] - before[k] for k in before}
        apart = {k: sum(u[k] for u in used) for k in before}
        assert spent["prompt_tokens"] + spent["reused_tokens"] == apart["prompt_tokens"]
        assert spent["generated_tokens"] == apart["generated_tokens"]
        assert spent["tower_passes"] == apart["tower_passes"] == 3

    def test_text_is_transformers_own_greedy_answer(self, text_model: VisionLanguageModel) -> None:
        tokenizer = text_model.tokenizer
        for question in ("hi", "why is it so?"):
            text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            out = text_model.language.generate(
                ids, do_sample=False, max_new_tokens=20, eos_token_id=258, pad_token_id=258
            )
            expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            before = text_model.usage
            assert text_model.answer([question], max_tokens=20) == [expected]
            assert text_model.usage["prompt_tokens"] - before["prompt_tokens"] == ids.shape[1]
            assert text_model.usage["generated_tokens"] - before["generated_tokens"] == out.shape[1] - ids.shape[1]

    def test_an_answer_ends_with_the_first_stop_string(self, text_model: VisionLanguageModel) -> None:
        (whole,) = text_model.answer(["tell me"], max_tokens=20)
        stop = whole[4]
        assert text_model.answer(["tell me"], max_tokens=20, stop=["not in it", stop]) == [
            whole[: whole.index(stop) + 1]
        ]

    def test_the_response_prefix_begins_the_answer_and_is_no_part_of_it(self, text_model: VisionLanguageModel) -> None:
        tokenizer = text_model.tokenizer
        ids = tokenizer(
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nThe",
            return_tensors="pt",
            add_special_tokens=False,
        )
        out = text_model.language.generate(
            ids["input_ids"], do_sample=False, max_new_tokens=8, eos_token_id=258, pad_token_id=258
        )
        expected = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text_model.answer(["hi"], response_prefix="The", max_tokens=8) == [expected]
        assert text_model.answer(["hi"], max_tokens=8) != [expected]

    def test_an_end_token_ends_the_answer(self, build: Build) -> None:
        model = build()
        head = torch.nn.Linear(64, 259)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        with torch.no_grad():
            head.bias[258] = 1.0
        model.language.lm_head = head.to(model.device)
        assert model.answer(["a", "bc"], max_tokens=9) == ["", ""]
        assert model.usage["generated_tokens"] == 2

    def test_an_end_marker_that_is_no_token_ends_the_answer_too(self, build: Build) -> None:
        model = build()
        model.template = dataclasses.replace(model.template, stops=())
        (whole,) = model.answer(["tell me"], max_tokens=20)
        marker = whole[4:6]
        model.template = dataclasses.replace(model.template, stops=(marker,))
        assert model.answer(["tell me"], max_tokens=20) == [whole[: whole.index(marker)]]

    def test_photos_and_marks_that_differ_are_refused(
        self, seeing_model: VisionLanguageModel, photos: list[Image.Image]
    ) -> None:
        with pytest.raises(UserError, match=r"prompt 2: 2 <image> mark\(s\) but 1 photo"):
            seeing_model.answer(["<image>", "<image> <image>"], [photos[:1], photos[:1]])
        with pytest.raises(UserError, match=r"prompt 1: 1 <image> mark\(s\) but 0 photo"):
            seeing_model.answer(["<image>what?"])
        with pytest.raises(UserError, match="2 prompts but photos for 1"):
            seeing_model.answer(["<image>", "b"], [photos[:1]])

    def test_a_text_model_takes_no_photo(self, text_model: VisionLanguageModel, photos: list[Image.Image]) -> None:
        with pytest.raises(UserError, match="has no vision tower"):
            text_model.answer(["<image>what?"], [photos[:1]])

    def test_no_prompts_no_answers(self, text_model: VisionLanguageModel) -> None:
        assert text_model.answer([]) == []
