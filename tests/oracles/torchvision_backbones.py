"""Writes torchvision_backbones.npz: the maps of torchvision's classification networks with weights of cases.py.

In an environment of its own, from the repository's root:
    pip install torch torchvision && python -m tests.oracles.torchvision_backbones
`NETWORK/layerN`: the map at `inputs.positions` of that name; `.../moments`: its mean and standard deviation, both
computed in float64; `.../float32`: how far torchvision's own float32 run is from it at most, anywhere on the map.
"""

from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from tests.goldens import inputs
from tests.oracles import cases


def filled(name: str) -> nn.Module:
    """The network in double precision, in eval mode."""
    model = getattr(torchvision.models, name)(weights=None).double()
    state = {
        key: torch.from_numpy(cases.backbone_weight(name, key, tuple(tensor.shape)))
        for key, tensor in model.state_dict().items()
        if tensor.ndim and not key.startswith("fc.")
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith("fc.") or key.endswith("num_batches_tracked") for key in missing)
    return model.eval()


@torch.no_grad()
def maps(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    out = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = out[name] = getattr(model, name)(x)
    return out


def main() -> None:
    images = torch.from_numpy(cases.backbone_images())
    arrays = {
        "fingerprint": np.array(inputs.fingerprint()),
        "versions": np.array([torch.__version__, torchvision.__version__, np.__version__]),
    }
    for network in cases.BACKBONES:
        model = filled(network)
        exact = maps(model, images.double())
        rough = maps(model.float(), images)
        for layer, x in exact.items():
            name = f"{network}/{layer}"
            where = inputs.positions(name, x.numel(), cases.BACKBONE_SAMPLES)
            arrays[name] = x.flatten()[where].numpy().astype(np.float32)
            arrays[f"{name}/moments"] = np.array([x.mean(), x.std(correction=0)], np.float32)
            arrays[f"{name}/float32"] = (rough[layer].double() - x).abs().max().numpy().astype(np.float32)
            print(name, tuple(x.shape), *arrays[f"{name}/moments"], arrays[f"{name}/float32"])
    path = Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
