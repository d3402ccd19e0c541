"""What the scripts that write checkpoints share: files and keys as public Stable Diffusion checkpoints have them."""

from safetensors.torch import save_file
from transformers import CLIPTextModel


def byte_symbols():
    """GPT-2's byte alphabet: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def save_component(model, folder, dtype):
    """Saves the configuration, and the weights as `dtype` under the keys of public checkpoints: transformers 5
    leaves the text encoder's `text_model.` out. Returns how many numbers there are."""
    text = isinstance(model, CLIPTextModel)
    model.config.save_pretrained(folder) if text else model.save_config(folder)
    prefix, name = ("text_model.", "model") if text else ("", "diffusion_pytorch_model")
    weights = {prefix + key: value.to(dtype).contiguous() for key, value in model.state_dict().items()}
    file = folder / f"{name}.safetensors"
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod(0o644)
    return sum(value.numel() for value in weights.values())
