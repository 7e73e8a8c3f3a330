"""Other tools' models: read as ours, and ours written as theirs.

sources.py         what kind of LLaVA folder a reference is
llava_hf.py        transformers' LLaVA (`llava-hf/*`)
llava_original.py  the layout of the released code (`liuhaotian/llava-*`), adapters and aligned projectors too
clip.py            CLIP towers between open_clip and transformers
photos.py          the settings of transformers' image processors
chat.py            our conversation templates as jinja, and which of them a jinja template is
vocabulary.py      room for the image token in tokenizer and embedding
weights.py         tensors from safetensors and .bin files, in one file or many, never running code
export.py          writing: llava-hf, peft, merged
"""
