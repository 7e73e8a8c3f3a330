"""Chat templates in the shape of those that model families are published with, and a byte tokenizer that carries one.

Each was written for these tests. What they share with the published ones is what counts here: markers, where the end
of a turn stands, and what is refused or left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EOS = "<|endoftext|>"


@dataclass(frozen=True)
class Family:
    """A template and what is known of it.

    Attributes:
        jinja: the template.
        tokens: its special tokens.
        ends: the markers that end an answer.
        middle: what ends the answers before the last, as they are learnt; None where they are not learnt.
        last: what ends the last one, as it is learnt.
        eos: the tokenizer's end token.
        system: whether a system prompt may be given.
    """

    jinja: str
    tokens: tuple[str, ...]
    ends: tuple[str, ...]
    middle: str | None
    last: str
    eos: str = EOS
    system: bool = True


def _turns(user: str, assistant: str, system: str = "", *, before: str = "", after: str = "") -> str:
    """A template of one piece of jinja for each role, each an expression over `m`."""
    third = f"{{% elif m.role == 'system' %}}{{{{ {system} }}}}" if system else ""
    return (
        f"{before}{{% for m in messages %}}{{% if m.role == 'user' %}}{{{{ {user} }}}}"
        f"{{% elif m.role == 'assistant' %}}{{{{ {assistant} }}}}{third}{{% endif %}}{{% endfor %}}{after}"
    )


def _ask(header: str, otherwise: str = "") -> str:
    other = f"{{% else %}}{otherwise}" if otherwise else ""
    return f"{{% if add_generation_prompt %}}{header}{other}{{% endif %}}"


_NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}{% endfor %}"
)
_ROLE = "'<|' + m.role + '|>\n' + m.content + '<|end|>\n'"
_IM = "'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'"
_LLAMA3 = "'<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>'"
_COMMAND = "'<|START_OF_TURN_TOKEN|><|{}_TOKEN|>' + m.content.strip() + '<|END_OF_TURN_TOKEN|>'"
_HARMONY = "'<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>')"
_GEMMA = "'<start_of_turn>{}\n' + m.content | trim + '<end_of_turn>\n'"

FAMILIES: dict[str, Family] = {
    "chatml, other eos": Family(
        _turns(_IM, _IM, _IM, after=_ask("<|im_start|>assistant\n")),
        ("<|im_start|>", "<|im_end|>"),
        ("<|im_end|>",),
        "<|im_end|>",
        "<|im_end|>",
    ),
    "phi-3": Family(
        _turns(_ROLE, _ROLE, _ROLE, after=_ask("<|assistant|>\n", "{{ eos_token }}")),
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        ("<|end|>",),
        "<|end|>",
        "<|end|>",
    ),
    "phi-4": Family(
        _turns(
            "'<|im_start|>user<|im_sep|>' + m.content + '<|im_end|>'",
            "'<|im_start|>assistant<|im_sep|>' + m.content + '<|im_end|>'",
            "'<|im_start|>system<|im_sep|>' + m.content + '<|im_end|>'",
            after=_ask("<|im_start|>assistant<|im_sep|>"),
        ),
        ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        ("<|im_end|>",),
        "<|im_end|>",
        "<|im_end|>",
    ),
    "llama-3": Family(
        _turns(
            _LLAMA3,
            _LLAMA3,
            _LLAMA3,
            before="<|begin_of_text|>",
            after=_ask("<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ),
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ("<|eot_id|>",),
        "<|eot_id|>",
        "<|eot_id|>",
    ),
    "gemma": Family(
        _turns(
            _GEMMA.format("user"),
            _GEMMA.format("model"),
            before="<bos>" + _NO_SYSTEM,
            after=_ask("<start_of_turn>model\n"),
        ),
        ("<bos>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n"),
        ("<end_of_turn>",),
        "<end_of_turn>",
        "<end_of_turn>",
        system=False,
    ),
    "command-r": Family(
        _turns(
            _COMMAND.format("USER"),
            _COMMAND.format("CHATBOT"),
            _COMMAND.format("SYSTEM"),
            after=_ask("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"),
        ),
        ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        ("<|END_OF_TURN_TOKEN|>",),
        "<|END_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
    ),
    "gpt-oss": Family(
        _turns(
            "'<|start|>user<|message|>' + m.content + '<|end|>'",
            _HARMONY,
            "'<|start|>developer<|message|>' + m.content + '<|end|>'",
            before="<|start|>system<|message|>You are a model.<|end|>",
            after=_ask("<|start|>assistant"),
        ),
        ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"),
        ("<|return|>", "<|end|>"),
        "<|end|>",
        "<|return|>",
    ),
    "deepseek": Family(
        _turns(
            "'<｜User｜>' + m.content",
            "'<｜Assistant｜>' + m.content + '<｜end▁of▁sentence｜>'",
            "m.content",
            before="<｜begin▁of▁sentence｜>",
            after=_ask("<｜Assistant｜>"),
        ),
        ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        ("<｜end▁of▁sentence｜>",),
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
    ),
    "mistral": Family(
        _turns("'[INST] ' + m.content + ' [/INST]'", "m.content + eos_token", before="<s>" + _NO_SYSTEM),
        ("<s>", "[INST]", "[/INST]", "</s>"),
        ("</s>",),
        "</s>",
        "</s>",
        eos="</s>",
        system=False,
    ),
    "llama-2": Family(
        _turns("'<s>[INST] ' + m.content + ' [/INST]'", "' ' + m.content + ' </s>'", before=_NO_SYSTEM),
        ("<s>", "</s>"),
        ("</s>",),
        " </s>",
        " </s>",
        eos="</s>",
        system=False,
    ),
    "glm": Family(
        _turns(
            "'<|user|>\n' + m.content",
            "'<|assistant|>\n' + m.content",
            "'<|system|>\n' + m.content",
            before="[gMASK]<sop>",
            after=_ask("<|assistant|>\n"),
        ),
        ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>"),
        ("<|user|>",),
        "<|user|>",
        "<|user|>",
    ),
    "eos at the last turn alone": Family(
        _turns(
            "'### User: ' + m.content + '\n'",
            "'### Assistant: ' + m.content + ('' if not loop.last else eos_token)",
            "m.content + '\n'",
            after=_ask("### Assistant: "),
        ),
        (),
        (EOS,),
        None,
        EOS,
    ),
    "a marker that is text": Family(
        _turns(_IM, _IM, _IM, after=_ask("<|im_start|>assistant\n")),
        (),
        ("<|im_end|>",),
        "<|im_end|>",
        "<|im_end|>",
    ),
    "words that are text": Family(
        _turns(
            "'User: ' + m.content + '\n'",
            "'Assistant: ' + m.content + '\n### End\n'",
            "m.content + '\n'",
            after=_ask("Assistant: "),
        ),
        (),
        ("\n### End",),
        "\n### End",
        "\n### End",
    ),
    "phi-3's shape as text": Family(
        _turns(_ROLE, _ROLE, _ROLE, after=_ask("<|assistant|>\n", "<|over|>")),
        (),
        ("<|end|>",),
        "<|end|>",
        "<|end|>",
    ),
    "zephyr": Family(
        _turns(
            "'<|user|>\n' + m.content + eos_token + '\n'",
            "'<|assistant|>\n' + m.content + eos_token + '\n'",
            "'<|system|>\n' + m.content + eos_token + '\n'",
            after=_ask("<|assistant|>\n"),
        ),
        ("</s>",),
        ("</s>",),
        "</s>",
        "</s>",
        eos="</s>",
    ),
}

NO_END = _turns("'User: ' + m.content + '\n'", "'Assistant: ' + m.content + '\n'", after=_ask("Assistant: "))
"""Nothing ends an answer."""
ALTERNATING = _turns(
    "'[INST] ' + m.content + ' [/INST]'", "m.content + eos_token", before=_NO_SYSTEM.partition("{% endif %}")[2]
)
"""Mistral's first: it complains of a system prompt as of a wrong order of roles."""
SYSTEM_AT_THE_END = (
    "{% if messages[0].role == 'system' %}{% set system, messages = messages[0].content, messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "[INST] {{ system + '\n\n' if system is defined and loop.last else '' }}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""Mistral's third: the system prompt goes with the last question, and goes away where an answer follows."""
CUTS_THOUGHTS = (
    "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
R1 = CUTS_THOUGHTS.removesuffix("{% endif %}") + "<think>\n{% endif %}"
"""DeepSeek-R1's cuts thoughts out of answers; from its second version on it opens one in the prompt."""
DROPS_SYSTEM = _turns("'<|user|>' + m.content", "'<|bot|>' + m.content + eos_token", after=_ask("<|bot|>"))


def carrying(jinja: str, tokens: tuple[str, ...] = (), eos: str = EOS) -> Any:
    """A tokenizer of one token a byte, and these, with this template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([t for t in dict.fromkeys((EOS, eos, *tokens)) if t.strip()])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens if not token.strip()])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=EOS, name_or_path="tiny")
    made.chat_template = jinja
    return made
