"""Training the network in torch, and writing it in every format that TorchServe's handlers load."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from servewright.demo import net as network
from servewright.demo.digits import Digits


def train(digits: Digits, *, epochs: int = 12) -> network.DigitsNet:
    """Return the trained network, in inference mode."""
    torch.manual_seed(0)
    net = network.DigitsNet()
    images, labels = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return net.eval()


def scores(net: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the network's scores for ``images``."""
    with torch.inference_mode():
        found: NDArray[np.float32] = net(torch.from_numpy(images)).numpy()
    return found


def write_torchscript(net: nn.Module, folder: Path, sample: NDArray[np.float32]) -> Path:
    """Write ``model.pt``."""
    target = folder / "model.pt"
    with warnings.catch_warnings():
        # torch 2.13 deprecates TorchScript; fleets hold little else.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(net, torch.from_numpy(sample[:2])).save(str(target))  # type: ignore[no-untyped-call]
    return target


def write_state_dict(net: nn.Module, folder: Path) -> Path:
    """Write ``weights.pt``, and the network's code beside it."""
    target = folder / "weights.pt"
    torch.save(net.state_dict(), target)
    shutil.copyfile(network.__file__, folder / "net.py")
    return target


def write_exported_program(net: nn.Module, folder: Path, sample: NDArray[np.float32]) -> Path:
    """Write ``model.pt2``, for batches of any size."""
    target = folder / "model.pt2"
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(net, (torch.from_numpy(sample[:2]),), dynamic_shapes={"image": {0: batch}})
    torch.export.save(program, target)
    return target


def write_onnx(net: nn.Module, folder: Path, sample: NDArray[np.float32]) -> Path:
    """Write ``model.onnx``, for batches of any size."""
    target = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            net,
            (torch.from_numpy(sample[:2]),),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["scores"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=4096)}},
        )
        assert program is not None
        program.save(str(target))
    return target
