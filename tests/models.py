"""A program that writes one group of small models, and what the frameworks themselves say of them, into a folder.

It runs in a process of its own, so that no framework is imported into the tests': ``python models.py GROUP FOLDER``.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

NETWORK = '''
import torch


class Net(torch.nn.Module):
    """Scores and their sum."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x, scale):
        scores = self.layer(x) * scale
        return scores, scores.sum(-1)


class Other(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(5, 3)

    def forward(self, x):
        return self.layer(x)


class Wants(torch.nn.Module):
    def __init__(self, size):
        super().__init__()


def crashes():
    import os, signal
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs():
    import time
    time.sleep(600)


def talks():
    print("what a network prints must not reach the pipe")
    return Net()


number = 3
'''


class Bomb:
    """Runs a command in whoever reads its pickle."""

    def __init__(self, canary: Path) -> None:
        self.command = f"touch {canary}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def torch_models(folder: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    torch.manual_seed(0)
    (folder / "net.py").write_text(NETWORK)
    sys.path.insert(0, str(folder))
    import net

    network = net.Net().eval()
    x, scale = torch.arange(8.0).reshape(2, 4), torch.ones(2, 1)
    scores, total = network(x, scale)
    np.savez(folder / "example.npz", scale=scale.numpy(), x=x.numpy())  # not in forward's order
    np.savez(folder / "other_names.npz", first=x.numpy(), second=scale.numpy())
    np.savez(folder / "answer.npz", scores=scores.detach().numpy(), total=total.detach().numpy())

    torch.jit.script(network).save(folder / "script.pt")
    torch.jit.trace(network, (x[:1], scale[:1])).save(folder / "trace.pt")

    class Named(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"twice": x * 2, "half": (x / 2).to(torch.bfloat16)}

    torch.jit.script(Named()).save(folder / "named.pt")

    class FixedBatch(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 4)

    torch.jit.script(FixedBatch()).save(folder / "fixed.pt")
    np.savez(folder / "x.npz", x=x.numpy())

    torch.save(network.state_dict(), folder / "weights.pt")
    torch.save(network.state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "model_state_dict": network.state_dict()}, folder / "checkpoint.pt")
    torch.save(network, folder / "whole.pt")
    torch.save({"weights": torch.ones(2), "bomb": Bomb(folder / "canary")}, folder / "bomb.pt")
    torch.save(Bomb(folder / "canary"), folder / "legacy_bomb.pt", _use_new_zipfile_serialization=False)

    from torch._weights_only_unpickler import _get_allowed_globals

    return {"allowed": sorted(_get_allowed_globals()), "exported": exported_programs(folder, network, x, scale)}


def exported_programs(folder: Path, network: Any, x: Any, scale: Any) -> dict[str, Any]:
    import torch

    size = torch.export.Dim

    class Keyword(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)
            self.constant = torch.tensor([1.0, 2.0, 3.0])

        def forward(self, x: Any, *, scale: Any) -> dict[str, Any]:
            scores = self.layer(x) * scale
            return {"scores": scores, "probabilities": torch.softmax(scores, -1) + self.constant}

    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(50, 16)
            self.encoder = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, tokens: Any, mask: Any) -> Any:
            return (self.encoder(self.embedding(tokens)) * mask[..., None]).mean(1).to(torch.bfloat16)

    class Picture(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(1, 8, 3, 2, 1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
                torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(32, 10),
            )  # fmt: skip

        def forward(self, image: Any) -> Any:
            return self.layers(torch.nn.functional.interpolate(image, scale_factor=0.5))

    class Choice(torch.nn.Module):
        def forward(self, x: Any, y: Any) -> Any:
            torch._check(x.shape[0] >= 2)
            return torch.cond(x.sum() > 0, lambda a, b: a + b, lambda a, b: a - b, (x, y))

    tokens = torch.ones(2, 7, dtype=torch.int64)
    both = {0: size("batch"), 1: size("length", max=64)}
    auto = {0: size.AUTO}
    made = {
        "plain": (network, (x, scale), {}, {"x": {0: size("batch")}, "scale": {0: size("batch")}}),
        "keyword": (Keyword().eval(), (x,), {"scale": torch.ones(1)}, {"x": {0: size("b")}, "scale": None}),
        "text": (Text().eval(), (tokens, torch.ones(2, 7)), {}, {"tokens": both, "mask": both}),
        "picture": (
            Picture().eval(),
            (torch.ones(2, 1, 28, 28),),
            {},
            {"image": {0: size.DYNAMIC, 2: size.DYNAMIC, 3: size.DYNAMIC}},
        ),
        "choice": (Choice(), (x, x), {}, {"x": auto, "y": auto}),
        "fixed": (network, (x, scale), {}, None),
    }
    truth = {}
    for name, (module, arguments, keywords, shapes) in made.items():
        program = torch.export.export(module, arguments, keywords, dynamic_shapes=shapes)
        torch.export.save(program, folder / f"{name}.pt2")
        nodes = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
        sides = program.graph_signature.user_inputs, program.graph_signature.user_outputs
        truth[name] = [[_of_tensor(nodes[node]) for node in side] for side in sides]
    return truth


def _of_tensor(value: Any) -> list[Any]:
    return [str(value.dtype).removeprefix("torch."), [size if type(size) is int else None for size in value.shape]]


def tensorflow_models(folder: Path) -> dict[str, Any]:
    import tensorflow as tf

    tf.random.set_seed(0)

    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable([[1.0, 0.0], [0.5, 2.0]])

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
        def run(self, x: Any) -> dict[str, Any]:
            return {"scores": x @ self.weights, "best": tf.argmax(x @ self.weights, axis=-1)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def lower(self, text: Any) -> dict[str, Any]:
            return {"text": tf.strings.lower(text), "half": tf.cast(tf.strings.length(text), tf.bfloat16)}

        @tf.function(input_signature=[tf.TensorSpec(None, tf.int64, name="any"), tf.TensorSpec([3], tf.bool, name="b")])
        def odd(self, any: Any, b: Any) -> dict[str, Any]:  # noqa: A002
            return {"any": any + 1, "not": tf.logical_not(b)}

    model = Model()
    signatures = {"lower": model.lower, "serving_default": model.run, "odd": model.odd}
    tf.saved_model.save(model, str(folder / "saved_model"), signatures=signatures)
    tf.saved_model.save(model, str(folder / "unsigned"))

    from google.protobuf import text_format
    from tensorflow.core.protobuf import saved_model_pb2

    parsed = saved_model_pb2.SavedModel.FromString((folder / "saved_model/saved_model.pb").read_bytes())
    (folder / "as_text/variables").mkdir(parents=True)
    (folder / "as_text/saved_model.pbtxt").write_text(text_format.MessageToString(parsed))
    for file in (folder / "saved_model/variables").iterdir():
        (folder / "as_text/variables" / file.name).write_bytes(file.read_bytes())
    untagged = saved_model_pb2.SavedModel.FromString(parsed.SerializeToString())
    untagged.meta_graphs[0].meta_info_def.tags[:] = ["train"]
    (folder / "untagged").mkdir()
    (folder / "untagged/saved_model.pb").write_bytes(untagged.SerializeToString())
    sparse = saved_model_pb2.SavedModel.FromString(parsed.SerializeToString())
    sparse.meta_graphs[0].signature_def["serving_default"].inputs["x"].coo_sparse.values_tensor_name = "x"
    (folder / "sparse").mkdir()
    (folder / "sparse/saved_model.pb").write_bytes(sparse.SerializeToString())

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 2], name="x")
        y = x * tf.compat.v1.get_variable("w", initializer=tf.constant([2.0, 3.0]))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(folder / "version_1"), {"in/x": x}, {"y": y})
    return {
        name: {
            key: [
                {item: _of_spec(spec) for item, spec in side.items()}
                for side in (function.structured_input_signature[1], function.structured_outputs)
            ]
            for key, function in tf.saved_model.load(str(folder / name)).signatures.items()
        }
        for name in ("saved_model", "version_1")
    }


def _of_spec(spec: Any) -> list[Any]:
    return [spec.dtype.name, None if spec.shape.rank is None else spec.shape.as_list()]


def keras_models(folder: Path) -> dict[str, Any]:
    import keras
    import numpy as np
    from keras import layers

    keras.utils.set_random_seed(0)
    digits = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(),
            layers.Dropout(0.2), layers.Dense(10, activation="softmax", name="scores"),
        ]
    )  # fmt: skip
    digits.save(folder / "digits.keras")
    digits.save(folder / "digits.h5")
    digits.save_weights(folder / "only.weights.h5")
    image = np.linspace(0, 1, 192, dtype=np.float32).reshape(3, 8, 8, 1)
    np.savez(folder / "digits.npz", image=image, scores=np.asarray(digits(image, training=False)))

    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b", dtype="int32")
    hidden = layers.Dense(3, name="y")(a)
    looked_up = layers.Embedding(7, 2, name="lookup")(b)
    summed = keras.ops.sum(looked_up, axis=1)
    keras.Model({"b": b, "a": a}, {"total": summed * 2, "logits": hidden}).save(folder / "mapping.keras")
    listed = keras.Model([b, a], [layers.Activation("softmax", name="soft")(hidden), looked_up, hidden])
    listed.save(folder / "listed.keras")
    twice = layers.Dense(4, name="same")
    keras.Model(a, [twice(a), twice(twice(a))]).save(folder / "shared.keras")
    fixed = keras.Input(batch_shape=(2, 4), name="a")
    keras.Model(fixed, layers.Dense(1, name="y")(fixed)).save(folder / "fixed.keras")
    keras.Model(a, layers.Lambda(lambda value: value * 2, name="twice")(a)).save(folder / "lambda.keras")
    keras.Model(a, layers.Lambda(lambda value: value * 2, name="twice")(a)).save(folder / "lambda.h5")

    @keras.saving.register_keras_serializable("mine")
    class Plus(layers.Layer):
        def call(self, value: Any) -> Any:
            return value + 1

    keras.Model(a, Plus()(a)).save(folder / "custom.keras")
    return {}


def onnx_models(folder: Path) -> dict[str, Any]:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "weights")
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, [4, 3]),  # as exporters before IR 4 did
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, 3]),
            helper.make_tensor_value_info("best", TensorProto.INT64, ["batch"]),
        ],
        [weights],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "small.onnx")
    (folder / "apart").mkdir()
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save_model(model, folder / "apart/model.onnx", **options)
    (folder / "lost").mkdir()
    (folder / "lost/model.onnx").write_bytes((folder / "apart/model.onnx").read_bytes())
    (folder / "outside").mkdir()
    climbing = (folder / "apart/model.onnx").read_bytes().replace(b"weights.bin", b"../../a.bin")
    (folder / "outside/model.onnx").write_bytes(climbing)

    upper = helper.make_graph(
        [helper.make_node("StringConcat", ["text", "text"], ["twice"])],
        "text",
        [helper.make_tensor_value_info("text", TensorProto.STRING, [None])],
        [helper.make_tensor_value_info("twice", TensorProto.STRING, [None])],
    )
    onnx.save(helper.make_model(upper, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), folder / "text.onnx")
    return {}


def broken_files(folder: Path) -> dict[str, Any]:
    files = {
        "empty.pt": b"",
        "pointer.pt": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "page.onnx": b"\n<!DOCTYPE html><html><body>404: Not Found</body></html>",
        "archive.tar.gz": b"\x1f\x8b\x08\x00" + b"\0" * 20,
        "lite.tflite": b"\x1c\x00\x00\x00TFL3" + b"\0" * 20,
        "some.safetensors": (30).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[]}}',
        "noise.onnx": b"\xff\xfe\xfd\xfc" * 100,
        "settings.json": b'{"a": 1}',
        "notes.txt": b"train accuracy 0.97\n",
        "pickled.pkl": pickle.dumps({"a": 1}),
        "joined.npy": b"\x93NUMPY\x01\x00" + b"\0" * 20,
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "plain.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    (folder / "folder").mkdir()
    (folder / "versions/2").mkdir(parents=True)
    (folder / "versions/10").mkdir()
    (folder / "versions/10/saved_model.pb").write_bytes(b"")
    return {}


GROUPS = {
    "torch": torch_models,
    "tensorflow": tensorflow_models,
    "keras": keras_models,
    "onnx": onnx_models,
    "broken": broken_files,
}

if __name__ == "__main__":
    target = Path(sys.argv[2])
    truth = GROUPS[sys.argv[1]](target)
    (target / "truth.json").write_text(json.dumps(truth))
