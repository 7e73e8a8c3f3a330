"""Conversion between our models and those of other tools, in both directions.

sources.py          kind of LLaVA folder that a reference is
llava_hf.py         transformers' LLaVA (`llava-hf/*`)
llava_original.py   the layout of the released code (`liuhaotian/llava-*`), adapters and aligned projectors too
clip.py             CLIP towers between open_clip and transformers
image_processor.py  the settings of transformers' image processors
chat_templates.py   our chat templates as Jinja, and recognition of ours in a Jinja template
vocabulary.py       a row for the image token in tokenizer and embedding
weights.py          tensors from safetensors and .bin files, in one file or several, never running code

Export (llava-hf, peft, merged) is in `mmtune.models.export`.
"""
