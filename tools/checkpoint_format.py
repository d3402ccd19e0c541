"""What the scripts that write checkpoints share: files and keys as public Stable Diffusion checkpoints have them."""

import json

from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_symbols():
    """GPT-2's byte alphabet: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def write_clip_tokenizer(folder, merges, padding=END):
    """CLIP's tokenizer from its byte-pair merges: every byte alone and at the end of a word, what the merges make,
    start and end. `padding` is "!" for OpenCLIP's. Returns the number of tokens."""
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(merge) for merge in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    assert len(vocabulary) == len(tokens), "two merges make the same token"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": padding}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return len(tokens)


def make_clip(vocabulary, width, layers, heads, activation="quick_gelu", projected=False):
    """A CLIP text encoder for a tokenizer of `write_clip_tokenizer`, whose last two tokens are start and end.
    `projected`: with the projection of pooled texts that XL takes."""
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=77,
            hidden_act=activation,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def save_component(model, folder, dtype):
    """Saves the configuration, and the weights as `dtype` under the keys of public checkpoints: transformers 5
    leaves the text encoder's `text_model.` out. Returns how many numbers there are."""
    text = isinstance(model, CLIPTextModel | CLIPTextModelWithProjection)
    model.config.save_pretrained(folder) if text else model.save_config(folder)
    name = "model" if text else "diffusion_pytorch_model"
    prefix = "text_model." if isinstance(model, CLIPTextModel) else ""
    weights = {prefix + key: value.to(dtype).contiguous() for key, value in model.state_dict().items()}
    file = folder / f"{name}.safetensors"
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod(0o644)
    return sum(value.numel() for value in weights.values())
