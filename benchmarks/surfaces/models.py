"""The three models whose surfaces are recorded, each for both servers, with random weights.

    python benchmarks/surfaces/models.py mlp torchserve FOLDER     # writes FOLDER/model.pt and FOLDER/mlp.yaml

``mlp``: a perceptron 784-512-256-10. ``cnn``: three strided convolutions over 3x64x64. ``transformer``: two encoder
layers of width 64 over 32 tokens. What is random is the weights alone: batching does not read them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

NAMES = ("mlp", "cnn", "transformer")
BACKENDS = ("torchserve", "tfserving")
_INPUTS = {
    "mlp": "{name: x, dtype: float32, shape: [null, 784]}",
    "cnn": "{name: x, dtype: float32, shape: [null, 3, 64, 64]}",
    "transformer": "{name: x, dtype: int64, shape: [null, 32]}",
}
_FILES = {"torchserve": ("model.pt", "torchscript"), "tfserving": ("saved_model", "saved_model")}
# The default that is compared with is a batch of 1 and the server's own workers: TorchServe starts one for each CPU.
SPEC = """servewright: 1
name: {name}
model: {{path: {path}, format: {form}}}
signature:
  inputs: [{inputs}]
  outputs: [{{name: y, dtype: float32, shape: [null, 10]}}]
"""
_TOKENS, _WIDTH, _HEADS, _WORDS = 32, 64, 4, 1000


def write(name: str, backend: str, folder: Path) -> Path:
    """Write a model and its spec into ``folder``, and return the spec's path; what is there already is kept."""
    path, form = _FILES[backend]
    spec = folder / f"{name}.yaml"
    if spec.exists():
        return spec
    folder.mkdir(parents=True, exist_ok=True)
    (_torch if backend == "torchserve" else _tensorflow)(name, folder / path)
    spec.write_text(SPEC.format(name=name, path=path, form=form, inputs=_INPUTS[name]))
    return spec


def _torch(name: str, path: Path) -> None:
    import torch
    from torch import nn
    from torch.nn import functional

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.out = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
            self.wide, self.narrow = nn.Linear(_WIDTH, 2 * _WIDTH), nn.Linear(2 * _WIDTH, _WIDTH)
            self.first, self.second = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heads = self.project(self.first(x)).reshape(-1, _TOKENS, 3, _HEADS, _WIDTH // _HEADS)
            q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
            seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            x = x + self.out(seen.reshape(-1, _TOKENS, _WIDTH))
            return x + self.narrow(functional.gelu(self.wide(self.second(x))))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = nn.Embedding(_WORDS, _WIDTH), nn.Parameter(torch.zeros(_TOKENS, _WIDTH))
            self.layers, self.head = nn.Sequential(Encoder(), Encoder()), nn.Linear(_WIDTH, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen: torch.Tensor = self.head(self.layers(self.embed(x % _WORDS) + self.place).mean(dim=1))
            return seen

    torch.manual_seed(0)
    nets = {
        "mlp": lambda: nn.Sequential(
            nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)
        ),
        "cnn": lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        ),
        "transformer": Transformer,
    }  # fmt: skip
    examples = {
        "mlp": torch.zeros(2, 784), "cnn": torch.zeros(2, 3, 64, 64), "transformer": torch.zeros(2, _TOKENS).long()
    }  # fmt: skip
    torch.jit.trace(nets[name]().eval(), examples[name]).save(str(path))


def _tensorflow(name: str, path: Path) -> None:
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)
    weights: list[Any] = []

    def weight(*shape: int) -> Any:
        weights.append(tf.Variable(random.normal(size=shape).astype("f") * 0.05))
        return weights[-1]

    def mlp() -> Any:
        layers = [weight(784, 512), weight(512, 256), weight(256, 10)]
        return lambda x: tf.nn.relu(tf.nn.relu(x @ layers[0]) @ layers[1]) @ layers[2]

    def cnn() -> Any:
        layers, head = [weight(3, 3, 3, 16), weight(3, 3, 16, 32), weight(3, 3, 32, 64)], weight(64, 10)

        def forward(x: Any) -> Any:
            x = tf.transpose(x, [0, 2, 3, 1])
            for layer in layers:
                x = tf.nn.relu(tf.nn.conv2d(x, layer, 2, "SAME"))
            return tf.reduce_mean(x, [1, 2]) @ head

        return forward

    def transformer() -> Any:
        embed, place, head = weight(_WORDS, _WIDTH), weight(_TOKENS, _WIDTH), weight(_WIDTH, 10)
        layers = [
            [weight(_WIDTH, 3 * _WIDTH), weight(_WIDTH, _WIDTH), weight(_WIDTH, 2 * _WIDTH), weight(2 * _WIDTH, _WIDTH)]
            for _ in range(2)
        ]

        def normal(x: Any) -> Any:
            mean, variance = tf.nn.moments(x, [-1], keepdims=True)
            return (x - mean) * tf.math.rsqrt(variance + 1e-5)

        def forward(x: Any) -> Any:
            x = tf.gather(embed, x % _WORDS) + place
            for project, out, wide, narrow in layers:
                shape = [-1, _TOKENS, 3, _HEADS, _WIDTH // _HEADS]
                heads = tf.reshape(tf.tensordot(normal(x), project, 1), shape)
                q, k, v = tf.unstack(tf.transpose(heads, [2, 0, 3, 1, 4]))
                share = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) * (_WIDTH // _HEADS) ** -0.5)
                seen = tf.reshape(tf.transpose(tf.matmul(share, v), [0, 2, 1, 3]), [-1, _TOKENS, _WIDTH])
                x += tf.tensordot(seen, out, 1)
                x += tf.tensordot(tf.nn.gelu(tf.tensordot(normal(x), wide, 1)), narrow, 1)
            return tf.reduce_mean(x, 1) @ head

        return forward

    shapes = {
        "mlp": ([None, 784], tf.float32), "cnn": ([None, 3, 64, 64], tf.float32),
        "transformer": ([None, _TOKENS], tf.int64),
    }  # fmt: skip
    forward = {"mlp": mlp, "cnn": cnn, "transformer": transformer}[name]()
    module = tf.Module()
    module.weights = weights
    shape, dtype = shapes[name]
    served = tf.function(lambda x: {"y": forward(x)}, input_signature=[tf.TensorSpec(shape, dtype, name="x")])
    tf.saved_model.save(module, str(path), signatures=served)


if __name__ == "__main__":
    print(write(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
