"""The digits network in every format that a server loads: ``python -m servewright.demo.formats FOLDER [EPOCHS]``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from servewright.demo import digits as data


def write(folder: Path, *, epochs: int = 12) -> None:
    """Train in torch and in Keras, and write ``torch/`` and ``keras/`` below ``folder``, each with golden data."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from servewright.demo import keras_training, torch_training

    split = data.load_digits()
    sample = split.test_images[:8]
    homes = folder / "torch", folder / "keras"
    for home in homes:
        home.mkdir(parents=True, exist_ok=True)
    net = torch_training.train(split, epochs=epochs)
    torch_training.write_torchscript(net, homes[0], sample)
    torch_training.write_state_dict(net, homes[0])
    torch_training.write_exported_program(net, homes[0], sample)
    torch_training.write_onnx(net, homes[0], sample)
    data.write_samples(homes[0], sample, torch_training.scores(net, sample))
    model = keras_training.train(split, epochs=epochs)
    keras_training.write_saved_model(model, homes[1])
    keras_training.write_keras(model, homes[1])
    data.write_samples(homes[1], sample, keras_training.scores(model, sample))


if __name__ == "__main__":
    write(Path(sys.argv[1]), epochs=int(sys.argv[2]) if len(sys.argv) > 2 else 12)
