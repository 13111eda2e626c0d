"""Writes tests/golden/data/open_clip/expected.npz: embeddings of open_clip's CLIP with pseudo-weights.

    python -m tests.golden.make_open_clip

Needs open_clip_torch 3.3.0 and torchvision 0.28.0, of which no compiled operator is used.
"""

import json
from pathlib import Path

import numpy as np

from tests.golden.pseudo_weights import tensor, uniform

FOLDER = Path(__file__).parent / "data" / "open_clip"


def pseudo_weight(name, shape):
    """Returns the pseudo-weight of a tensor. The scales of norms, named ln_*, are close to 1."""
    return np.asarray(tensor(name.replace("ln_", "norm_"), shape))


def main():
    import torch

    # torchvision registers shapes of operators that its compiled library defines.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor x) -> Tensor")
    from open_clip.model import CLIP

    config = json.loads((FOLDER / "open_clip_config.json").read_text())["model_cfg"]
    model = CLIP(**config).eval()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(pseudo_weight(name, shape)) for name, shape in shapes.items()})
    size, length = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    end = config["text_cfg"]["vocab_size"] - 1
    ids = np.zeros((2, length), np.int64)
    ids[0, :4], ids[1] = [end - 1, 5, 6, end], [end - 1, *range(1, length - 1), end]
    pixels = uniform("pixels", (2, size, size, 3))
    with torch.inference_mode():
        images = model.encode_image(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), normalize=True)
        texts = model.encode_text(torch.from_numpy(ids), normalize=True)
    (FOLDER / "shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")
    np.savez(FOLDER / "expected.npz", ids=ids.astype(np.int32), images=images.numpy(), texts=texts.numpy())


if __name__ == "__main__":
    main()
