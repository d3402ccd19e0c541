"""Files of fixtures: what a library computed, beside what it was asked for."""

import importlib
import json

import numpy as np
import torch
from safetensors.torch import save_file

LIBRARIES = ("torch", "diffusers", "transformers")
# Where a library is imported by another name.
MODULES = {"pillow": "PIL"}


def save(path, tensors, cases, libraries=LIBRARIES):
    """Writes tensors of torch or numpy with an `about` in the header: the libraries' versions, and the scalars of each
    case."""
    versions = {name: importlib.import_module(MODULES.get(name, name)).__version__ for name in libraries}
    tensors = {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in tensors.items()}
    # One key: safetensors writes several in random order.
    save_file(tensors, path, {"about": json.dumps(versions | {"cases": cases})})
    path.chmod(0o644)


def stacked(pictures):
    """Pictures of Pillow as u8 [images,height,width,3]."""
    return np.stack([np.asarray(picture) for picture in pictures])
