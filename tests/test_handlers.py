"""The handlers inside TorchServe's own loader and service; only the socket between server and worker is missing."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servewright.backends.torchserve import payload
from servewright.errors import ServerAnswerError

torch = pytest.importorskip("torch")
model_loader = pytest.importorskip("ts.model_loader")

pytestmark = pytest.mark.torch

NETWORKS = '''
from typing import Optional

import torch
from torch import Tensor, nn

batches = []  # the rows of every forward


class Digits(nn.Module):
    """Ten scores for a picture of any size."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(image.flatten(1)[:, :4])


class Counted(Digits):
    def forward(self, image):
        batches.append(len(image))
        if bool((image > 1e6).any()):
            raise RuntimeError("a value that this network cannot bear")
        if bool((image < -1e6).any()):
            raise MemoryError
        return super().forward(image)


class Mean(nn.Module):
    def forward(self, image):
        return image.mean(dim=0, keepdim=True).flatten(1)


class Both(nn.Module):
    def forward(self, left, right):
        return {"product": left * right, "total": left + right, "unnamed": left}


class Pair(nn.Module):
    def forward(self, left, right):
        return left * right, left + right


class Scaled(nn.Module):
    """A parameter between the inputs that nobody gives, another after it, and outputs in outputs."""

    def forward(
        self, left, power: Optional[float] = None, right: Optional[Tensor] = None, factor: Optional[Tensor] = None
    ):
        if right is None or factor is None:
            return left, (left, left)
        whole = (left - right) * factor
        return whole, (left + right, whole.abs())


class Words(nn.Module):
    """The mean of the embeddings that are no padding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.embedding = nn.Embedding(50, 3)

    def forward(self, input_ids, attention_mask):
        batches.append(tuple(input_ids.shape))
        mask = attention_mask[..., None].float()
        return (self.embedding(input_ids) * mask).sum(1) / mask.sum(1)


class Bag(Words):
    def forward(self, input_ids):
        batches.append(tuple(input_ids.shape))
        return self.embedding(input_ids).mean(1)
'''


def tensor_spec(name: str, shape: Sequence[int | None] | None, dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": None if shape is None else list(shape)}


IMAGE = tensor_spec("image", [None, 1, 2, 2])
SCORES = tensor_spec("scores", [None, 10])
LEFT, RIGHT = tensor_spec("left", [None, 3]), tensor_spec("right", [None, 3])


@dataclass(frozen=True)
class Ask:
    """One request as it reaches a worker: values and content types of its fields, and headers if it came by HTTP."""

    fields: Mapping[str, tuple[Any, str]]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a worker gives back for one request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        return payload.decode_http(self.status, self.headers, self.body)


def http(body: bytes, headers: Mapping[str, str] | None = None, **more: str) -> Ask:
    """Return a request as TorchServe hands it on: JSON and text parsed, everything else as bytes."""
    sent = {name.replace("_", "-"): value for name, value in {**(headers or {}), **more}.items()}
    form = sent.get("Content-Type", "")
    value: Any = bytearray(body)
    if form == "application/json":
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = bytearray(body)
    elif form.startswith("text"):
        value = body.decode()
    return Ask({"body": (value, form)}, {"Host": "127.0.0.1", "url_path": ""} | sent)


def as_json(content: Any, **headers: str) -> Ask:
    return http(json.dumps(content).encode(), {"Content-Type": "application/json"}, **headers)


def raw(array: np.ndarray, **headers: str) -> Ask:
    described = {
        "Content-Type": "application/octet-stream",
        "X-Tensor-Dtype": array.dtype.name,
        "X-Tensor-Shape": ",".join(map(str, array.shape)),
    }
    return http(array.tobytes(), described, **headers)


def grpc(fields: Mapping[str, bytes]) -> Ask:
    return Ask({name: (bytearray(value), "") for name, value in fields.items()})


class Worker:
    """One worker process' inside: TorchServe loads the handler from a folder and calls it with batches."""

    def __init__(self, folder: Path, use: str, config: Mapping[str, Any], *, gpu: int | None = None) -> None:
        handler = f"servewright_{use}.py"
        manifest = {"model": {"modelName": "m", "handler": handler, "configFile": "model-config.yaml"}}
        (folder / "MAR-INF").mkdir(exist_ok=True)
        (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
        (folder / "model-config.yaml").write_text(yaml.safe_dump({"servewright": dict(config)}))
        loader = model_loader.ModelLoaderFactory.get_model_loader()
        self.service = loader.load("m", str(folder), handler, gpu, 32)

    def __call__(self, *asks: Ask) -> list[Answer]:
        batch = [
            {
                "requestId": str(number).encode(),
                "parameters": [
                    {"name": name, "contentType": form, "value": value} for name, (value, form) in ask.fields.items()
                ],
                "headers": [{"name": k.encode(), "value": v.encode()} for k, v in ask.headers.items()],
            }
            for number, ask in enumerate(asks)
        ]
        context = self.service.context
        context.request_processor, data, context.request_ids = self.service.retrieve_data_for_inference(batch)
        bodies = self.service._entry_point(data, context)
        assert len(bodies) == len(asks)
        return [
            Answer(context.get_response_status(number)[0], context.get_response_headers(number), bytes(body))
            for number, body in enumerate(bodies)
        ]


def network(name: str, **arguments: Any) -> Any:
    """Return one of the networks above, with weights that are the same every time."""
    scope: dict[str, Any] = {"__name__": "networks"}
    exec(compile(NETWORKS, "networks.py", "exec"), scope)
    torch.manual_seed(1)
    return scope[name](**arguments).eval()


def state_dict_model(folder: Path, name: str) -> dict[str, str]:
    torch.save(network(name).state_dict(), folder / "model.pt")
    (folder / "net.py").write_text(NETWORKS)
    return {"file": "model.pt", "format": "state_dict", "code": "net.py", "class": name}


def batches() -> list[Any]:
    """Return what the loaded network wrote down about its forwards, and forget it."""
    seen: list[Any] = sys.modules["servewright_model_net"].batches
    found = list(seen)
    seen.clear()
    return found


MakeWorker = Callable[..., Worker]


@pytest.fixture
def worker(tmp_path: Path) -> MakeWorker:
    """Return a function that starts a worker for one of the networks."""

    def make(
        name: str,
        inputs: Sequence[Mapping[str, Any]] = (IMAGE,),
        outputs: Sequence[Mapping[str, Any]] = (SCORES,),
        *,
        use: str = "tensor",
        gpu: int | None = None,
        model: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Worker:
        signature = {"name": "serving_default", "inputs": list(inputs), "outputs": list(outputs)}
        chosen = dict(model or state_dict_model(tmp_path, name))
        return Worker(tmp_path, use, {"model": chosen, "signature": signature, "options": options}, gpu=gpu)

    return make


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """Return one worker for tests that only differ in what they send."""
    folder = tmp_path_factory.mktemp("digits")
    signature = {"name": "serving_default", "inputs": [IMAGE], "outputs": [SCORES]}
    return Worker(folder, "tensor", {"model": state_dict_model(folder, "Digits"), "signature": signature})


def images(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, 1, 2, 2), dtype="float32")


def digits_of(array: np.ndarray) -> np.ndarray:
    """Return what the network itself says."""
    with torch.inference_mode():
        return np.asarray(network("Digits")(torch.from_numpy(np.ascontiguousarray(array, "float32"))))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class TestModels:
    """Every format of model file, and archives that cannot work."""

    @pytest.mark.parametrize("form", ["torchscript", "state_dict", "exported_program", "onnx"])
    def test_every_format_answers_as_the_network_itself(self, form: str, tmp_path: Path, worker: MakeWorker) -> None:
        """A model gives the same numbers from any file format, for one row and for many."""
        model = {"file": "model.pt", "format": form}
        if form == "state_dict":
            model = state_dict_model(tmp_path, "Digits")
        elif form == "torchscript":
            torch.jit.trace(network("Digits"), torch.zeros(2, 1, 2, 2)).save(str(tmp_path / "model.pt"))
        elif form == "exported_program":
            dims = {"image": {0: torch.export.Dim("rows")}}
            program = torch.export.export(network("Digits"), (torch.zeros(2, 1, 2, 2),), dynamic_shapes=dims)
            torch.export.save(program, tmp_path / "model.pt")
        else:
            _save_onnx(tmp_path / "model.pt")
        served = worker("Digits", model=model)
        for rows in (1, 5):
            (answer,) = served(raw(images(rows)))
            np.testing.assert_allclose(answer.arrays["scores"], digits_of(images(rows)), rtol=1e-5, atol=1e-6)

    def test_names_that_are_not_the_onnx_files_go_by_order(self, tmp_path: Path, worker: MakeWorker) -> None:
        """A signature may rename the tensors of an ONNX file."""
        _save_onnx(tmp_path / "model.onnx")
        model = {"file": "model.onnx", "format": "onnx"}
        served = worker("", [IMAGE | {"name": "x"}], [SCORES | {"name": "y"}], model=model)
        (answer,) = served(raw(images(2)))
        np.testing.assert_allclose(answer.arrays["y"], digits_of(images(2)), rtol=1e-5, atol=1e-6)

    def test_a_training_checkpoint_and_a_function_are_taken_too(self, tmp_path: Path, worker: MakeWorker) -> None:
        """The weights may lie beside the optimiser's, and a function may make the network, as `init` suggests."""
        plain = worker("Digits", model=state_dict_model(tmp_path, "Digits"))(raw(images(4)))
        weights = torch.load(tmp_path / "model.pt", weights_only=True)
        torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "model.pt")
        (tmp_path / "net.py").write_text(NETWORKS + "\n\ndef made():\n    return Digits()\n")
        model = {"file": "model.pt", "format": "state_dict", "code": "net.py", "class": "made"}
        found = worker("Digits", model=model)(raw(images(4)))
        np.testing.assert_array_equal(found[0].arrays["scores"], plain[0].arrays["scores"])

    def test_a_state_dict_that_would_run_code_is_refused(self, tmp_path: Path, worker: MakeWorker) -> None:
        """Only weights are unpickled."""
        model = state_dict_model(tmp_path, "Digits")
        torch.save({"linear.weight": Bomb()}, tmp_path / "model.pt")
        with pytest.raises(Exception, match="weights_only"):
            worker("Digits", model=model)

    def test_training_mode_is_left(self, tmp_path: Path, worker: MakeWorker) -> None:
        """A module saved in training mode serves in eval mode: dropout would make answers random."""
        noisy = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 10), torch.nn.Dropout(0.5)).train()
        torch.jit.script(noisy).save(str(tmp_path / "model.pt"))
        served = worker("", model={"file": "model.pt", "format": "torchscript"})
        first, second = served(raw(images(4)), raw(images(4)))
        np.testing.assert_array_equal(first.arrays["scores"], second.arrays["scores"])

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"model": {"file": "model.pt", "format": "pickle"}}, "pickle is not one of"),
            ({"device": "cuda"}, "no CUDA device"),
            ({"labels": "labels.txt"}, "3 lines, but output 'scores' has 10 classes"),
            ({"inputs": [tensor_spec("image", [None], "string")]}, "dtype string"),
            ({"name": "Missing"}, "nothing called 'Missing' that makes a torch.nn.Module"),
            ({"name": "batches"}, "nothing called 'batches' that makes a torch.nn.Module"),
            ({"use": "vision", "inputs": [LEFT]}, "needs one input of shape"),
            ({"use": "vision", "vision": {"mode": "RGB"}}, "3 channels, but the model takes 1"),
            ({"use": "vision", "vision": {"size": [4, 4]}}, "not the model's"),
            ({"use": "vision", "vision": {"mean": [1, 2]}}, "mean and std need 1"),
            ({"use": "vision", "vision": {"resize": "zoom"}}, "crop, pad, stretch"),
            ({"use": "text"}, "needs token ids"),
            ({"use": "text", "inputs": [tensor_spec("ids", [None, None], "int64")]}, "needs a tokenizer"),
        ],
    )
    def test_an_archive_that_cannot_work_fails_at_load(
        self, changes: dict[str, Any], says: str, tmp_path: Path, worker: MakeWorker
    ) -> None:
        """What is wrong with an archive is said when it is loaded, not at the first request."""
        (tmp_path / "labels.txt").write_text("a\nb\nc\n")
        model = state_dict_model(tmp_path, "Digits")
        if name := changes.pop("name", None):
            model["class"] = name
        with pytest.raises(ValueError, match=says):
            worker("Digits", **({"model": model} | changes))

    def test_an_archive_without_our_section_says_so(self, tmp_path: Path) -> None:
        """A hand-written model-config.yaml without the section names what is missing."""
        with pytest.raises(ValueError, match="no section 'servewright'"):
            Worker(tmp_path, "tensor", {})

    def test_options_of_torch_do_not_go_with_onnx(self, tmp_path: Path, worker: MakeWorker) -> None:
        """An option that would silently do nothing is refused."""
        _save_onnx(tmp_path / "model.onnx")
        with pytest.raises(ValueError, match="for torch models"):
            worker("", model={"file": "model.onnx", "format": "onnx"}, dtype="bfloat16")


class Bomb:
    """An object whose unpickling would call a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


def _save_scaled(folder: Path, form: str) -> None:
    """Write the network `Scaled`; a script is made of its source, so it is imported from a file."""
    spec = importlib.util.spec_from_file_location("scaled_net", folder / "net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scaled, rows = module.Scaled().eval(), {0: torch.export.Dim("rows")}
    if form == "torchscript":
        torch.jit.script(scaled).save(str(folder / "scaled.pt"))
        return
    one, *others = (torch.ones(2, 3) for _ in range(3))
    given = dict(zip(("right", "factor"), others, strict=True))
    shapes = {"left": rows, "right": rows, "factor": rows}
    torch.export.save(torch.export.export(scaled, (one,), given, dynamic_shapes=shapes), folder / "scaled.pt")


def _save_two_outputs(path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    values = [helper.make_tensor_value_info(name, kind, ["rows", 3]) for name in ("left", "output_0", "output_1")]
    nodes = [helper.make_node("Neg", ["left"], ["output_0"]), helper.make_node("Abs", ["left"], ["output_1"])]
    graph = helper.make_graph(nodes, "two", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def _save_onnx(path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    linear = network("Digits").linear
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["scores"], transB=1),
        ],
        "digits",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["rows", 1, 2, 2])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["rows", 10])],
        [
            onnx.numpy_helper.from_array(linear.weight.detach().numpy(), "weight"),
            onnx.numpy_helper.from_array(linear.bias.detach().numpy(), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


class TestOptions:
    """What the options change."""

    def test_autocast_answers_in_the_signatures_dtype(self, worker: MakeWorker) -> None:
        """With dtype bfloat16 the forward is coarser, and the answer is float32 still."""
        served = worker("Digits", dtype="bfloat16")
        (answer,) = served(raw(images(3), Accept="application/octet-stream"))
        scores = answer.arrays["scores"]
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, digits_of(images(3)), atol=0.02)
        assert np.abs(scores - digits_of(images(3))).max() > 0

    @pytest.mark.parametrize("form", ["torchscript", "state_dict"])
    def test_scripted_models_give_the_same_numbers(self, form: str, tmp_path: Path, worker: MakeWorker) -> None:
        """The option script freezes and optimizes, and changes nothing else."""
        model = state_dict_model(tmp_path, "Digits")
        if form == "torchscript":
            torch.jit.trace(network("Digits"), torch.zeros(2, 1, 2, 2)).save(str(tmp_path / "model.pt"))
            model = {"file": "model.pt", "format": "torchscript"}
        (answer,) = worker("Digits", model=model, script=True)(raw(images(3)))
        np.testing.assert_allclose(answer.arrays["scores"], digits_of(images(3)), rtol=1e-5, atol=1e-6)

    def test_compiled_models_are_warm_before_the_first_request(
        self, worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With compile, loading runs the sizes that torch compiles apart; requests give the same numbers."""
        compiled = torch.compile
        monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend="eager"))  # needs no C++ compiler
        served = worker("Counted", compile=True)
        assert batches() == [1, 2, 3]
        (answer,) = served(raw(images(7)))
        np.testing.assert_allclose(answer.arrays["scores"], digits_of(images(7)), rtol=1e-5, atol=1e-6)

    def test_threads_are_set_for_the_worker(self, worker: MakeWorker) -> None:
        """The option threads bounds what one operation may use."""
        before = torch.get_num_threads()
        try:
            worker("Digits", threads=1)
            assert torch.get_num_threads() == 1
        finally:
            torch.set_num_threads(before)

    def test_a_gpu_given_to_a_worker_without_cuda_is_not_used(self, worker: MakeWorker) -> None:
        """Without an option, the worker's device is the GPU that TorchServe names, where torch can use it."""
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        (answer,) = worker("Digits", gpu=0)(raw(images(1)))
        assert answer.status == 200


class TestBatches:
    """Batches: who shares a forward, and who pays for a failure."""

    def test_share_one_forward_and_keep_their_own_rows(self, worker: MakeWorker) -> None:
        """Requests of different sizes go through one forward, and each gets its own rows."""
        served = worker("Counted")
        asked = [images(rows, seed=rows) for rows in (1, 3, 2)]
        answers = served(*map(raw, asked))
        assert batches() == [6]
        for array, answer in zip(asked, answers, strict=True):
            np.testing.assert_allclose(answer.arrays["scores"], digits_of(array), rtol=1e-5, atol=1e-6)

    def test_with_other_free_sizes_go_apart(self, worker: MakeWorker) -> None:
        """Requests that differ in a free dimension are grouped by shape; nothing is padded."""
        served = worker("Counted", [tensor_spec("image", [None, 1, None, None])])
        asked = [np.ones((2, 1, 2, 2), "f4"), np.ones((1, 1, 3, 3), "f4"), np.ones((4, 1, 2, 2), "f4")]
        answers = served(*map(raw, asked))
        assert batches() == [6, 1]
        assert [len(answer.arrays["scores"]) for answer in answers] == [2, 1, 4]

    def test_of_a_model_with_a_fixed_batch_size_go_alone(self, worker: MakeWorker) -> None:
        """A signature that fixes the first axis cannot take rows of others."""
        served = worker("Counted", [tensor_spec("image", [1, 1, 2, 2])], [tensor_spec("scores", [1, 10])])
        answers = served(raw(images(1)), raw(images(1, seed=1)), raw(images(2)))
        assert [answer.status for answer in answers] == [200, 200, 400]
        assert batches() == [1, 1]

    def test_lose_only_the_request_that_cannot_be_used(self, worker: MakeWorker) -> None:
        """A bad request gets its own 400, and the others share their forward."""
        served = worker("Counted")
        answers = served(raw(images(1)), raw(images(1).reshape(1, 4)), as_json({"inputs": "x"}), raw(images(2)))
        assert [answer.status for answer in answers] == [200, 400, 400, 200]
        assert batches() == [3]
        assert answers[1].headers["content-type"] == "application/json"
        assert answers[1].json == {
            "code": 400,
            "type": "BadRequestException",
            "message": "input 'image' has shape [1, 4], but the signature says [null, 1, 2, 2]",
        }

    def test_lose_only_the_request_on_which_the_model_fails(self, worker: MakeWorker) -> None:
        """When a forward fails, requests are tried one by one; only the culprit gets the 500."""
        served = worker("Counted")
        good, poison = images(2), np.full((1, 1, 2, 2), 1e9, "f4")
        answers = served(raw(good), raw(poison), raw(good), raw(-poison))
        assert [answer.status for answer in answers] == [200, 500, 200, 507]
        assert "cannot bear" in answers[1].json["message"]
        assert batches() == [6, 2, 1, 2, 1]
        np.testing.assert_allclose(answers[2].arrays["scores"], digits_of(good), rtol=1e-5, atol=1e-6)

    def test_refuse_a_model_that_mixes_rows(self, worker: MakeWorker) -> None:
        """An output without the batch axis cannot be split, and everybody is told."""
        served = worker("Mean", outputs=[tensor_spec("mean", [None, 4])])
        answers = served(raw(images(2)), raw(images(3)))
        assert [answer.status for answer in answers] == [500, 500]
        assert "has shape [1, 4] for 5 rows of input: its first axis is not the batch" in answers[0].json["message"]

    @pytest.mark.parametrize(
        ("outputs", "says"),
        [
            ([tensor_spec("scores", [None, 12])], "but the signature says float32 of"),
            ([tensor_spec("scores", [None, 10], "int64")], "but the signature says int64 of"),
            ([tensor_spec("scores", [None, 10]), tensor_spec("more", None)], "gives 1 outputs"),
        ],
    )
    def test_refuse_a_model_that_is_not_what_its_signature_says(
        self, outputs: list[dict[str, Any]], says: str, worker: MakeWorker
    ) -> None:
        """An answer of another shape, dtype or number than the signature's is an error, never passed on."""
        (answer,) = worker("Digits", outputs=outputs)(raw(images(1)))
        assert answer.status == 500
        assert says in answer.json["message"]

    @pytest.mark.parametrize("name", ["Both", "Pair"])
    def test_carry_many_inputs_and_outputs_by_name(self, name: str, worker: MakeWorker) -> None:
        """Inputs go by name in any order; outputs come from a mapping by key, from a tuple by order."""
        outputs = [tensor_spec("product", [None, 3]), tensor_spec("total", [None, 3])]
        served = worker(name, [LEFT, RIGHT], outputs)
        left, right = np.ones((2, 3), "f4"), np.full((2, 3), 5, "f4")
        body, headers = payload.encode_http({"right": right, "left": left})
        (answer,) = served(http(body, headers))
        np.testing.assert_array_equal(answer.arrays["product"], left * right)
        np.testing.assert_array_equal(answer.arrays["total"], left + right)

    @pytest.mark.parametrize(
        ("form", "names"),
        [
            ("torchscript", ("right", "factor", "left")),
            ("state_dict", ("right", "factor", "left")),
            ("exported_program", ("right", "factor", "left")),
            ("exported_program", ("minuend", "subtrahend", "by")),
        ],
    )
    def test_give_inputs_to_the_parameters_of_their_names(
        self, form: str, names: tuple[str, str, str], tmp_path: Path, worker: MakeWorker
    ) -> None:
        """In whatever order the signature has them; names of one's own go by order; outputs in outputs come flat."""
        model = state_dict_model(tmp_path, "Scaled")
        if form != "state_dict":
            model = {"file": "scaled.pt", "format": form}
            _save_scaled(tmp_path, form)
        inputs = [tensor_spec(name, [None, 3]) for name in names]
        outputs = [tensor_spec(name, [None, 3]) for name in ("difference", "total", "distance")]
        served = worker("Scaled", inputs, outputs, model=model)
        values = {"left": 2, "right": 5, "factor": 7}
        values |= dict(zip(("minuend", "subtrahend", "by"), values.values(), strict=True))
        body, headers = payload.encode_http({name: np.full((2, 3), values[name], "f4") for name in names})
        (answer,) = served(http(body, headers))
        found = {name: array[0, 0] for name, array in answer.arrays.items()}
        assert found == {"difference": -21, "total": 7, "distance": 21}

    def test_names_that_match_in_part_are_never_swapped(self, worker: MakeWorker) -> None:
        """An input of another name goes to the parameter that is left; half of a mapping's names is an error."""
        body, headers = payload.encode_http({"right": np.full((1, 3), 5, "f4"), "other": np.full((1, 3), 2, "f4")})
        inputs = [RIGHT, LEFT | {"name": "other"}]
        outputs = [tensor_spec(name, [None, 3]) for name in ("total", "product", "unnamed")]
        (answer,) = worker("Both", inputs, outputs)(http(body, headers))
        np.testing.assert_array_equal(answer.arrays["unnamed"], np.full((1, 3), 2))
        outputs[2] = tensor_spec("something", [None, 3])
        (answer,) = worker("Both", inputs, outputs)(http(body, headers))
        assert answer.status == 500
        assert "without the signature's ['something']" in answer.json["message"]

    @pytest.mark.parametrize("order", [("output_0", "output_1"), ("output_1", "output_0")])
    def test_an_onnx_files_outputs_come_by_name(
        self, order: tuple[str, str], tmp_path: Path, worker: MakeWorker
    ) -> None:
        """Whatever they are called, and in whatever order the signature has them."""
        _save_two_outputs(tmp_path / "model.onnx")
        outputs = [tensor_spec(name, [None, 3]) for name in order]
        served = worker("", [LEFT], outputs, model={"file": "model.onnx", "format": "onnx"})
        (answer,) = served(raw(np.ones((2, 3), "f4")))
        assert {name: array[0, 0] for name, array in answer.arrays.items()} == {"output_0": -1, "output_1": 1}

    def test_an_output_missing_from_a_mapping_is_named(self, worker: MakeWorker) -> None:
        """A model that does not give what its signature names says which."""
        served = worker("Both", [LEFT, RIGHT], [tensor_spec("quotient", [None, 3])])
        body, headers = payload.encode_http({"left": np.ones((1, 3), "f4"), "right": np.ones((1, 3), "f4")})
        (answer,) = served(http(body, headers))
        assert answer.status == 500
        assert "'quotient'" in answer.json["message"]


X = images(2, seed=3)
BITS = X.view("uint32") >> 16  # the upper half of a float32 is a bfloat16


class TestRequests:
    """Requests: every form, and everything that is no request."""

    @pytest.mark.parametrize(
        "ask",
        [
            as_json({"inputs": {"image": X.tolist()}}),
            as_json({"inputs": X.tolist()}),
            as_json({"instances": X.tolist()}),
            as_json({"instances": [{"image": row} for row in X.tolist()]}),
            as_json(X.tolist()),
            http(json.dumps(X.tolist()).encode(), {"Content-Type": "application/json; charset=utf-8"}),
            http(npy(X), {"Content-Type": "application/x-npy"}),
            http(npy(np.asfortranarray(X)), {"Content-Type": "application/x-npy"}),
            http(npy(X.astype(">f8")), {"content-type": "application/x-npy", "Content-Type": "application/x-npy"}),
            http(*payload.encode_http({"image": X}, "npy")),
            raw(X),
            raw(X, X_Tensor_Name="image"),
            raw(X.astype("float64")),
            http(*payload.encode_http({"image": X})),
            http(*payload.encode_http({"image": X}, "json")),
            grpc(payload.encode_grpc({"image": X}) | {"accept": b"application/json"}),
            grpc({"data": X.tobytes(), "dtype": b"float32", "shape": b"2, 1, 2, 2"}),
            grpc({"body": json.dumps(X.tolist()).encode()}),
            Ask({"data": (bytearray(npy(X)), "application/x-npy")}, {"Content-Type": "multipart/form-data"}),
        ],
    )
    def test_of_every_form_mean_the_same(self, ask: Ask, digits: Worker) -> None:
        """One array gives one answer, however it is sent."""
        (answer,) = digits(ask)
        assert answer.status == 200, answer.body
        headers = {"content-type": "application/json"} | dict(answer.headers)
        scores = payload.decode_http(200, headers, answer.body)["scores"]
        np.testing.assert_allclose(scores, digits_of(X), rtol=1e-5, atol=1e-6)

    def test_in_bfloat16_are_widened(self, digits: Worker) -> None:
        """Raw bfloat16, which numpy does not have, is read as the same values in float32."""
        shape = {"X-Tensor-Dtype": "bfloat16", "X-Tensor-Shape": "2,1,2,2", "Content-Type": "application/octet-stream"}
        (answer,) = digits(http(BITS.astype("<u2").tobytes(), shape))
        widened = (BITS << 16).view("float32")
        np.testing.assert_allclose(answer.arrays["scores"], digits_of(widened), rtol=1e-5, atol=1e-6)

    def test_in_json_may_hold_nan_and_infinity(self, digits: Worker) -> None:
        """What a float can be, JSON can carry in both directions."""
        (answer,) = digits(as_json([[[[1, float("nan")], [2, 3]]], [[[1, float("inf")], [2, 3]]]]))
        assert answer.status == 200
        assert np.isnan(answer.arrays["scores"][0]).all()

    @pytest.mark.parametrize(
        ("ask", "status", "says"),
        [
            (http(b"[1, bad]", {"Content-Type": "application/json"}), 400, "not JSON"),
            (http(b"[" * 5000, {"Content-Type": "application/json"}), 400, "not JSON"),
            (as_json({}), 400, "the keys []"),
            (as_json({"inputs": [1], "instances": [1]}), 400, "the keys"),
            (as_json({"inputs": {}}), 400, "the inputs are []"),
            (as_json({"inputs": {"picture": [1.0]}}), 400, "['picture']"),
            (as_json({"inputs": None}), 400, "not a nested list"),
            (as_json({"instances": 3}), 400, "not a list of rows"),
            (as_json({"instances": [{"image": [1]}, {"x": [1]}]}), 400, "row 1"),
            (as_json({"instances": [{"image": [1]}, 5]}), 400, "row 1"),
            (as_json([]), 400, "shape [0]"),
            (as_json([[[[1, 2], [3]]]]), 400, "ragged"),
            (as_json([[[["1", "2"], ["3", "4"]]]]), 400, "not a nested list of numbers"),
            (as_json([[[[1, None], [3, 4]]]]), 400, "not a nested list of numbers"),
            (as_json([[[[1, 2**70], [3, 4]]]]), 400, "not numbers that fit 64 bits"),
            (as_json([[[[1, 1e300], [3, 4]]]]), 400, "beyond float32"),
            (as_json(5), 400, "not a nested list"),
            (http(b"text", {"Content-Type": "text/plain"}), 415, "text/plain"),
            (http(b"", {"Content-Type": "image/gif"}), 415, "image/gif"),
            (http(b"", {}), 400, "not JSON"),
            (http(b"1234", {"Content-Type": "application/octet-stream"}), 400, "X-Tensor-Dtype"),
            (raw(X, X_Tensor_Shape="2,1,2,3"), 400, "takes 48 bytes, but 32 came"),
            (raw(X, X_Tensor_Shape="-2,1,2,-2"), 400, "not a list of sizes"),
            (raw(X, X_Tensor_Shape="2,,"), 400, "not a list of sizes"),
            (raw(X, X_Tensor_Dtype="object"), 400, "'object' is not one of"),
            (raw(X, X_Tensor_Dtype="complex64"), 400, "'complex64' is not one of"),
            (raw(X, X_Tensor_Name="picture"), 400, "['picture']"),
            (raw(X[:0]), 400, "holds nothing"),
            (raw(np.zeros((0,)), X_Tensor_Shape="1000000000000,0"), 400, "shape [1000000000000, 0]"),
            (http(b"\x93NUMPY", {"Content-Type": "application/x-npy"}), 400, "not a .npy"),
            (http(npy(X)[:-1], {"Content-Type": "application/x-npy"}), 400, "takes 32 bytes, but 31 came"),
            (
                http(npy(X).replace(b"(2, 1, 2, 2)", b"(2**40, 99) "), {"Content-Type": "application/x-npy"}),
                400,
                ".npy",
            ),
            (
                http(npy(X).replace(b"(2, 1, 2, 2)", b"(99999999, )"), {"Content-Type": "application/x-npy"}),
                400,
                "takes",
            ),
            (http(npy(np.array([{}])), {"Content-Type": "application/x-npy"}), 400, "dtype object"),
            (http(npy(np.zeros(2, "f4,i4")), {"Content-Type": "application/x-npy"}), 400, "dtype"),
            (http(b"\xff" * 64, {"Content-Type": "application/x-safetensors"}), 400, "not a safetensors frame"),
            (http(b"\x02" + bytes(7) + b"[]", {"Content-Type": "application/x-safetensors"}), 400, "safetensors"),
            (Ask({"a": (b"1", "")}, {"Content-Type": "application/x-www-form-urlencoded"}), 400, "damages payloads"),
            (Ask({}, {"Content-Type": "application/x-www-form-urlencoded; x"}), 400, "damages payloads"),
            (Ask({"data": (b"1", ""), "shap": (b"1", "")}, {"Host": "h"}), 400, "unknown fields ['shap']"),
            (Ask({"data": (b"1", ""), "dtype": (b"\xff", "")}, {"Host": "h"}), 400, "dtype is not UTF-8"),
            (Ask({}, {"Host": "h"}), 400, "no payload"),
        ],
    )
    def test_that_cannot_be_used_are_told_why(self, ask: Ask, status: int, says: str, digits: Worker) -> None:
        """Every malformed request gets its own 4xx and a reason, and the good one beside it is served."""
        bad, good = digits(ask, raw(X))
        assert (bad.status, good.status) == (status, 200), bad.body
        assert bad.json["code"] == status
        assert says in bad.json["message"]

    @pytest.mark.parametrize(
        ("sent", "wanted", "accepted"),
        [
            ("int64", "float32", True),
            ("bool", "int64", True),
            ("float64", "float16", True),
            ("int64", "uint8", True),
            ("float32", "int64", False),
            ("int64", "bool", False),
            ("float16", "bfloat16", True),
        ],
    )
    def test_are_converted_where_no_kind_is_lost(
        self, sent: str, wanted: str, accepted: bool, tmp_path: Path, worker: MakeWorker
    ) -> None:
        """Numbers may become wider or finer ones of the signature; fractions never become integers."""
        torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "model.pt"))
        specs = [tensor_spec("x", [None], wanted)]
        served = worker("", specs, specs, model={"file": "model.pt", "format": "torchscript"})
        (answer,) = served(raw(np.array([0, 1], sent), Accept="application/octet-stream"))
        assert answer.status == (200 if accepted else 400), answer.body
        if accepted:
            array = next(iter(answer.arrays.values()))
            assert array.tolist() == [0, 1]
            assert array.dtype.name == wanted.replace("bfloat16", "float32")

    def test_with_integers_beyond_the_signature_are_refused(self, tmp_path: Path, worker: MakeWorker) -> None:
        """An integer that does not fit is an error, not another integer."""
        torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "model.pt"))
        specs = [tensor_spec("x", [None], "uint8")]
        served = worker("", specs, specs, model={"file": "model.pt", "format": "torchscript"})
        statuses = [served(as_json([value]))[0].status for value in (0, 255, 256, -1)]
        assert statuses == [200, 200, 400, 400]

    def test_with_inputs_of_different_rows_are_refused(self, worker: MakeWorker) -> None:
        """All inputs of a request have the same number of rows."""
        served = worker("Both", [LEFT, RIGHT], [tensor_spec("total", [None, 3])])
        body, headers = payload.encode_http({"left": np.ones((1, 3), "f4"), "right": np.ones((2, 3), "f4")})
        (answer,) = served(http(body, headers))
        assert answer.status == 400
        assert "differ in rows" in answer.json["message"]

    def test_without_a_name_need_a_model_with_one_input(self, worker: MakeWorker) -> None:
        """A single unnamed tensor says nothing to a model with two inputs."""
        served = worker("Both", [LEFT, RIGHT], [tensor_spec("total", [None, 3])])
        (answer,) = served(as_json([[1, 2, 3]]))
        assert answer.status == 400
        assert "['left', 'right']: name them" in answer.json["message"]

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        body=st.binary(max_size=200) | st.builds(lambda head, tail: head + tail, st.sampled_from([
            b"\x93NUMPY\x01\x00", npy(X)[:90], npy(X), payload.encode_http({"image": X, "y": X})[0][:100],
            b'{"inputs": [[', b'{"instances": [',
        ]), st.binary(max_size=60)),
        headers=st.fixed_dictionaries(
            {"Content-Type": st.sampled_from([payload.JSON, payload.NPY, payload.RAW, payload.FRAME, "text/x", ""])},
            optional={
                "X-Tensor-Dtype": st.sampled_from(["float32", "uint8", "bfloat16", "object", "f4"]),
                "X-Tensor-Shape": st.text("0123456789,-e ", max_size=30),
                "X-Tensor-Name": st.text(max_size=5),
                "X-Top-K": st.text(max_size=5),
                "Accept": st.text(max_size=20),
            },
        ),
    )  # fmt: skip
    def test_of_any_bytes_never_raise_and_never_harm_others(
        self, body: bytes, headers: dict[str, str], digits: Worker
    ) -> None:
        """Whatever arrives, handle() returns; a bad request gets a 4xx, and the one beside it its answer."""
        if headers["Content-Type"].startswith("text"):
            body = b"text"
        some, good = digits(http(body, headers), raw(X))
        assert some.status == 200 or 400 <= some.status < 500, some.body
        np.testing.assert_allclose(good.arrays["scores"], digits_of(X), rtol=1e-5, atol=1e-6)

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        content=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["inputs", "instances", "image", "b64"]), inner, max_size=2)
            ),
            max_leaves=12,
        )
    )
    def test_of_any_json_never_raise_and_never_harm_others(self, content: Any, digits: Worker) -> None:
        """Any JSON at all is either the model's input or a 400."""
        some, good = digits(as_json(content), raw(X))
        assert some.status in (200, 400), some.body
        assert good.status == 200


class TestAnswers:
    """Answers: every form, errors, and classes."""

    @pytest.mark.parametrize(
        ("accept", "form"),
        [
            ("", "application/json"),
            ("*/*", "application/json"),
            ("text/html, application/json;q=0.5", "application/json"),
            ("application/x-npy", "application/x-npy"),
            ("application/octet-stream", "application/octet-stream"),
            ("APPLICATION/X-SAFETENSORS", "application/x-safetensors"),
            ("application/json;q=0.1, application/x-npy;q=0.9", "application/x-npy"),
            ("application/json;q=0, application/x-npy;q=x, application/octet-stream", "application/octet-stream"),
        ],
    )
    def test_come_in_the_form_that_is_asked_for(self, accept: str, form: str, digits: Worker) -> None:
        """Accept chooses the form, by weight and then by order; JSON is the default."""
        (answer,) = digits(raw(X, Accept=accept))
        assert answer.headers["content-type"] == form
        np.testing.assert_allclose(next(iter(answer.arrays.values())), digits_of(X), rtol=1e-5, atol=1e-6)

    def test_in_a_form_that_nobody_has_are_406(self, digits: Worker) -> None:
        """An Accept that cannot be met is refused with the forms that there are."""
        (answer,) = digits(raw(X, Accept="image/png"))
        assert answer.status == 406
        assert "application/x-npy" in answer.json["message"]

    def test_of_several_tensors_do_not_fit_a_single_one(self, worker: MakeWorker) -> None:
        """Forms of one tensor are skipped when the model gives two."""
        served = worker("Pair", [LEFT, RIGHT], [LEFT | {"name": "product"}, RIGHT | {"name": "total"}])
        body, headers = payload.encode_http({"left": np.ones((1, 3), "f4"), "right": np.ones((1, 3), "f4")})
        frame, refused = served(http(body, headers), http(body, headers, Accept="application/x-npy"))
        assert frame.headers["content-type"] == "application/x-safetensors"
        assert refused.status == 406

    @pytest.mark.parametrize("form", ["raw", "json", "npy"])
    def test_are_read_by_the_client(self, form: payload.Form, digits: Worker) -> None:
        """What the client encodes, the handler reads, and back, over HTTP and over gRPC."""
        inputs = {"image": X}
        over_http, over_grpc = digits(http(*payload.encode_http(inputs, form)), grpc(payload.encode_grpc(inputs, form)))
        for outputs in (over_http.arrays, payload.decode_grpc(over_grpc.body)):
            np.testing.assert_allclose(outputs["scores"], digits_of(X), rtol=1e-5, atol=1e-6)

    def test_over_grpc_errors_are_unmistakable(self, digits: Worker) -> None:
        """Where no status arrives, an error begins with a line that no answer can begin with, and the client raises."""
        bad, good = digits(grpc({"data": b"{}"}), grpc(payload.encode_grpc({"image": X})))
        assert bad.body.startswith(b"SERVEWRIGHT-ERROR\n{")
        with pytest.raises(ServerAnswerError) as caught:
            payload.decode_grpc(bad.body)
        assert caught.value.status == 400
        assert payload.decode_grpc(good.body)["scores"].shape == (2, 10)

    def test_name_the_classes_when_asked(self, tmp_path: Path, worker: MakeWorker) -> None:
        """X-Top-K asks a tensor model for its likeliest classes, with labels and probabilities."""
        names = [f"digit {number}" for number in range(10)]
        (tmp_path / "labels.txt").write_text("\n".join(names) + "\n")
        served = worker("Digits", labels="labels.txt")
        ranked, plain, wrong = served(raw(X, X_Top_K="3"), raw(X), raw(X, X_Top_K="three"))
        scores = digits_of(X)
        likely = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        for row, best in zip(likely, ranked.json["predictions"], strict=True):
            order = np.argsort(-row)[:3].tolist()
            assert [entry["index"] for entry in best] == order
            assert [entry["label"] for entry in best] == [names[index] for index in order]
            np.testing.assert_allclose([entry["score"] for entry in best], row[order], rtol=1e-5)
        assert "outputs" in plain.json
        assert wrong.status == 400

    def test_that_are_probabilities_already_stay_so(self, tmp_path: Path, worker: MakeWorker) -> None:
        """A model that ends in softmax is not flattened by a second one."""
        torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "model.pt"))
        specs = [tensor_spec("x", [None, 3])]
        served = worker("", specs, specs, model={"file": "model.pt", "format": "torchscript"})
        (answer,) = served(as_json([[0.1, 0.7, 0.2]], X_Top_K="1"))
        assert answer.json["predictions"][0][0]["score"] == pytest.approx(0.7)

    def test_of_classes_need_a_row_of_scores(self, tmp_path: Path, worker: MakeWorker) -> None:
        """A model whose output is no list of scores has no classes to rank."""
        torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "model.pt"))
        specs = [tensor_spec("x", [None])]
        served = worker("", specs, specs, model={"file": "model.pt", "format": "torchscript"})
        (answer,) = served(as_json([1.0], X_Top_K="1"))
        assert answer.status == 400
        assert "[rows, classes]" in answer.json["message"]


def picture(array: np.ndarray, form: str = "PNG") -> bytes:
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.fromarray(array).save(file, form, **({"quality": 95} if form == "JPEG" else {}))
    return file.getvalue()


COLOURS = np.random.default_rng(5).integers(0, 256, (6, 9, 3), dtype="uint8")
SMOOTH = np.linspace(0, 255, 8 * 8 * 3).reshape(8, 8, 3).astype("uint8")
RGB = tensor_spec("image", [None, 3, 4, 4])
IDENTITY = {"file": "model.pt", "format": "torchscript"}


class TestVision:
    """Pictures."""

    @pytest.fixture
    def seen(self, tmp_path: Path, worker: MakeWorker) -> Callable[..., np.ndarray]:
        """Return a function from a picture to the tensor that the model gets: its model is the identity."""
        torch.jit.script(torch.nn.Identity()).save(str(tmp_path / "model.pt"))

        def model_input(file: bytes, spec: dict[str, Any] = RGB, **vision: Any) -> np.ndarray:
            served = worker("", [spec], [spec], use="vision", model=IDENTITY, vision=vision)
            (answer,) = served(http(file, {"Content-Type": "image/png"}, Accept="application/octet-stream"))
            return next(iter(answer.arrays.values()))

        return model_input

    def test_pixels_become_channels_between_0_and_1(self, seen: Callable[..., np.ndarray]) -> None:
        """A picture of the model's size is not resampled: [channels, height, width], divided by 255."""
        exact = COLOURS[:4, :4]
        np.testing.assert_allclose(seen(picture(exact))[0], exact.transpose(2, 0, 1) / 255, rtol=1e-6)

    def test_mean_and_std_are_applied_by_channel(self, seen: Callable[..., np.ndarray]) -> None:
        """Normalisation is (x - mean) / std on the scaled values."""
        exact, mean, std = COLOURS[:4, :4], [0.5, 0.4, 0.3], [0.2, 0.25, 0.5]
        expected = ((exact / 255 - mean) / std).transpose(2, 0, 1)
        np.testing.assert_allclose(seen(picture(exact), mean=mean, std=std)[0], expected, rtol=1e-5, atol=1e-6)

    def test_uint8_models_get_bytes(self, seen: Callable[..., np.ndarray]) -> None:
        """A model that takes uint8 gets the pixels as they are."""
        exact = COLOURS[:4, :4]
        np.testing.assert_array_equal(seen(picture(exact), RGB | {"dtype": "uint8"})[0], exact.transpose(2, 0, 1))

    def test_one_channel_means_grey(self, seen: Callable[..., np.ndarray]) -> None:
        """A model of one channel gets luminance, from colours too."""
        grey = seen(picture(np.full((4, 4, 3), (255, 0, 0), "uint8")), tensor_spec("image", [None, 1, 4, 4]))
        np.testing.assert_allclose(grey, 76 / 255, rtol=1e-6)

    def test_free_sizes_stay_as_they_are(self, seen: Callable[..., np.ndarray]) -> None:
        """A model of any size gets the picture's own, unless a size is configured."""
        free = tensor_spec("image", [None, 3, None, None])
        assert seen(picture(COLOURS), free).shape == (1, 3, 6, 9)
        assert seen(picture(COLOURS), free, size=[2, 5]).shape == (1, 3, 2, 5)

    @pytest.mark.parametrize(("resize", "corner", "middle"), [("crop", 255, 255), ("pad", 0, 255), ("stretch", 0, 255)])
    def test_other_proportions_are_cut_padded_or_stretched(
        self, resize: str, corner: int, middle: int, seen: Callable[..., np.ndarray]
    ) -> None:
        """Crop cuts the longer side around the middle; pad adds black; stretch keeps all of it, out of proportion."""
        wide = np.zeros((8, 24, 3), "uint8")
        wide[:, 8:16] = 255
        if resize == "pad":
            wide[:] = 255
        got = seen(picture(wide), tensor_spec("image", [None, 3, 8, 8]), resize=resize)[0, 0] * 255
        assert got[0, 0] == pytest.approx(corner, abs=1)
        assert got[4, 4] == pytest.approx(middle, abs=1)

    def test_answers_classes_or_scores(self, tmp_path: Path, worker: MakeWorker) -> None:
        """A picture gives its likeliest classes; scores come in a binary form, or with X-Top-K: 0."""
        (tmp_path / "labels.txt").write_text("\n".join("abcdefghij"))
        served = worker("Digits", use="vision", labels="labels.txt", top_k=2)
        grey = np.array([[0, 85], [170, 255]], "uint8")
        form = {"Content-Type": "image/png"}
        ranked, binary, plain, tensors = served(
            http(picture(grey), form),
            http(picture(grey), form, Accept="application/octet-stream"),
            http(picture(grey), form, X_Top_K="0"),
            raw(grey.astype("f4").reshape(1, 1, 2, 2) / np.float32(255), Accept="application/x-npy"),
        )
        expected = digits_of(grey.reshape(1, 1, 2, 2) / 255)
        assert len(ranked.json["predictions"][0]) == 2
        assert ranked.json["predictions"][0][0]["label"] == "abcdefghij"[int(expected.argmax())]
        for answer in (binary, plain, tensors):
            np.testing.assert_allclose(next(iter(answer.arrays.values())), expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        "ask",
        [
            http(picture(SMOOTH, "JPEG"), {"Content-Type": "image/jpeg"}),
            http(picture(SMOOTH), {"Content-Type": "application/octet-stream"}),
            http(picture(SMOOTH)),
            grpc({"data": picture(SMOOTH)}),
            grpc({"data": picture(SMOOTH, "JPEG"), "content_type": b"image/jpeg"}),
            as_json({"instances": [{"b64": base64.b64encode(picture(SMOOTH)).decode()}]}),
            grpc({"data": b'{"instances": [{"b64": "%s"}]}' % base64.b64encode(picture(SMOOTH)),
                  "content_type": b"application/json"}),
        ],
    )  # fmt: skip
    def test_takes_pictures_in_every_form(self, ask: Ask, worker: MakeWorker) -> None:
        """JPEG and PNG come as a body, as a field, or in base64 within JSON."""
        served = worker("Digits", [tensor_spec("image", [None, 3, 8, 8])], use="vision", top_k=10)
        (answer,) = served(ask)
        assert answer.status == 200, answer.body
        expected = digits_of(SMOOTH.transpose(2, 0, 1)[None] / 255)[0]
        ranking = [entry["index"] for entry in answer.json["predictions"][0]]
        assert ranking[:3] == np.argsort(-expected)[:3].tolist()

    def test_several_pictures_are_rows_of_one_request(self, worker: MakeWorker) -> None:
        """A JSON list of pictures gives one list of classes for each, in one forward with the others."""
        served = worker("Counted", [tensor_spec("image", [None, 3, 8, 8])], use="vision")
        encoded = [{"b64": base64.b64encode(picture(SMOOTH + shade)).decode()} for shade in (0, 1, 2)]
        answers = served(as_json({"instances": encoded}), http(picture(SMOOTH), {"Content-Type": "image/png"}))
        assert [len(answer.json["predictions"]) for answer in answers] == [3, 1]
        assert batches() == [4]

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (b"", "cannot be read"),
            (b"GIF89a" + bytes(100), "cannot be read"),
            (picture(COLOURS)[:60], "cannot be read"),
            (picture(COLOURS, "JPEG")[:200], "cannot be read"),
            (picture(COLOURS)[:16] + b"\0\1\0\0\0\1\0\0" + picture(COLOURS)[24:], "cannot be read"),
        ],
    )
    def test_a_broken_picture_fails_alone(self, body: bytes, says: str, worker: MakeWorker) -> None:
        """What is no whole JPEG or PNG of a sane size is a 400 for its sender, and for nobody else."""
        served = worker("Digits", [tensor_spec("image", [None, 3, 8, 8])], use="vision")
        bad, good = served(*(http(file, {"Content-Type": "image/png"}) for file in (body, picture(SMOOTH))))
        assert (bad.status, good.status) == (400, 200)
        assert says in bad.json["message"]

    def test_a_picture_of_too_many_pixels_is_not_unpacked(self, worker: MakeWorker) -> None:
        """A small file that says it is enormous is refused by its header."""
        image = pytest.importorskip("PIL.Image")
        file = io.BytesIO()
        image.new("1", (8200, 8200)).save(file, "PNG")
        served = worker("Digits", [tensor_spec("image", [None, 3, 8, 8])], use="vision")
        (answer,) = served(http(file.getvalue(), {"Content-Type": "image/png"}))
        assert answer.status == 400
        assert "8200 x 8200 pixels are more than" in answer.json["message"]

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(cut=st.integers(0, 200), noise=st.binary(max_size=40), form=st.sampled_from(["PNG", "JPEG"]))
    def test_any_damage_is_a_400_or_a_picture(self, cut: int, noise: bytes, form: str, vision: Worker) -> None:
        """Whatever bytes follow a picture's beginning, the handler returns and the neighbour is served."""
        whole = picture(COLOURS, form)
        damaged = whole[:cut] + noise + whole[cut + len(noise) :]
        some, good = vision(*(http(file, {"Content-Type": "image/png"}) for file in (damaged, picture(SMOOTH))))
        assert some.status in (200, 400), some.body
        assert good.status == 200


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    folder = tmp_path_factory.mktemp("vision")
    signature = {"inputs": [tensor_spec("image", [None, 3, 8, 8])], "outputs": [SCORES]}
    return Worker(folder, "vision", {"model": state_dict_model(folder, "Digits"), "signature": signature})


VOCABULARY = ["[PAD]", "[UNK]", "the", "cat", "sat", "on", "mat", "."]
IDS, MASK = tensor_spec("input_ids", [None, None], "int64"), tensor_spec("attention_mask", [None, None], "int64")
MEANING = tensor_spec("meaning", [None, 3])
SENTENCES = ["The cat sat.", "the mat", "The cat sat on the big mat.", "cat"]


def text(content: str, **headers: str) -> Ask:
    return http(content.encode(), {"Content-Type": "text/plain; charset=utf-8"}, **headers)


def mean_of(*numbers: int) -> np.ndarray:
    """Return what both networks say about one row of token ids."""
    return network("Words").embedding.weight[list(numbers)].mean(0).detach().numpy()


class TestText:
    """Texts."""

    @pytest.fixture(params=["vocab.txt", "tokenizer.json"])
    def tokenizer(self, request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
        """Write one vocabulary in both forms that an archive may carry."""
        path = tmp_path / request.param
        if path.suffix == ".txt":
            path.write_text("\n".join(VOCABULARY))
        else:
            tokenizers = pytest.importorskip("tokenizers")
            words = tokenizers.models.WordLevel({word: n for n, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
            made = tokenizers.Tokenizer(words)
            made.normalizer = tokenizers.normalizers.Lowercase()
            made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
            made.save(str(path))
        return {"tokenizer": request.param}

    def test_a_masked_model_takes_one_forward_padded_to_the_longest(
        self, tokenizer: dict[str, Any], worker: MakeWorker
    ) -> None:
        """Texts of every length share a forward; padding that the model is told about changes no answer."""
        served = worker("Words", [IDS, MASK], [MEANING], use="text", text=tokenizer)
        together = served(*map(text, SENTENCES))
        assert batches() == [(4, 8)]
        for sentence, answer in zip(SENTENCES, together, strict=True):
            (alone,) = served(text(sentence))
            np.testing.assert_allclose(answer.arrays["meaning"], alone.arrays["meaning"], rtol=1e-5)
        np.testing.assert_allclose(together[0].arrays["meaning"][0], mean_of(2, 3, 4, 7), rtol=1e-5)
        np.testing.assert_allclose(together[2].arrays["meaning"][0], mean_of(2, 3, 4, 5, 2, 1, 6, 7), rtol=1e-5)

    def test_a_model_without_a_mask_gets_lengths_apart(self, tokenizer: dict[str, Any], worker: MakeWorker) -> None:
        """Where padding would change an answer, no text is padded for another request's sake."""
        served = worker("Bag", [IDS], [MEANING], use="text", text=tokenizer)
        answers = served(*map(text, ["the mat", "the cat sat", "cat sat"]))
        assert batches() == [(2, 2), (1, 3)]
        for numbers, answer in zip([(2, 6), (2, 3, 4), (3, 4)], answers, strict=True):
            np.testing.assert_allclose(answer.arrays["meaning"][0], mean_of(*numbers), rtol=1e-5)

    def test_a_fixed_length_is_filled_and_never_passed(self, tokenizer: dict[str, Any], worker: MakeWorker) -> None:
        """A model of fixed length gets exactly that: short texts padded, long ones cut."""
        specs = [spec | {"shape": [None, 3]} for spec in (IDS, MASK)]
        served = worker("Words", specs, [MEANING], use="text", text=tokenizer)
        short, long = served(text("cat"), text("the cat sat on the mat"))
        assert batches() == [(2, 3)]
        np.testing.assert_allclose(short.arrays["meaning"][0], mean_of(3), rtol=1e-5)
        np.testing.assert_allclose(long.arrays["meaning"][0], mean_of(2, 3, 4), rtol=1e-5)

    def test_long_texts_are_cut(self, tokenizer: dict[str, Any], worker: MakeWorker) -> None:
        """max_length bounds the tokens of a text."""
        served = worker("Words", [IDS, MASK], [MEANING], use="text", text=tokenizer | {"max_length": 2})
        (answer,) = served(text("the cat sat on the mat"))
        np.testing.assert_allclose(answer.arrays["meaning"][0], mean_of(2, 3), rtol=1e-5)

    @pytest.mark.parametrize(
        "ask",
        [
            as_json(["the mat", "the cat sat"]),
            as_json({"instances": ["the mat", "the cat sat"]}),
            as_json({"inputs": ["the mat", "the cat sat"]}),
            grpc({"data": b'["the mat", "the cat sat"]', "content_type": b"application/json"}),
        ],
    )
    def test_several_texts_are_rows_of_one_request(self, ask: Ask, tmp_path: Path, worker: MakeWorker) -> None:
        """A JSON list of texts gives one row for each."""
        (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
        served = worker("Words", [IDS, MASK], [MEANING], use="text", text={"tokenizer": "vocab.txt"})
        (answer,) = served(ask)
        rows = answer.json["outputs"]["meaning"]
        np.testing.assert_allclose(rows, [mean_of(2, 6), mean_of(2, 3, 4)], rtol=1e-5)

    def test_plain_bytes_and_token_ids_are_taken(self, tmp_path: Path, worker: MakeWorker) -> None:
        """Text comes as a gRPC field too, and ready tokens go straight to the model."""
        (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
        served = worker("Words", [IDS, MASK], [MEANING], use="text", text={"tokenizer": "vocab.txt"})
        ids, mask = [[2, 6, 0]], [[1, 1, 0]]
        plain, ready = served(
            grpc({"data": b"the mat"}), as_json({"inputs": {"input_ids": ids, "attention_mask": mask}})
        )
        for answer in (plain, ready):
            np.testing.assert_allclose(answer.json["outputs"]["meaning"], [mean_of(2, 6)], rtol=1e-5)

    @pytest.mark.parametrize(
        ("ask", "says"),
        [
            (text(""), "text 0 has no tokens"),
            (as_json(["the", " "]), "text 1 has no tokens"),
            (grpc({"data": b"\xff\xfe"}), "not UTF-8"),
            (as_json(["the", 3]), "texts and other values"),
            (as_json([]), "the model has 2 inputs"),
            (as_json({"inputs": {"input_ids": [[1] * 513], "attention_mask": [[1] * 513]}}), "more than 512 tokens"),
            (as_json({"inputs": {"input_ids": [[1, 2]], "attention_mask": [[1, 1, 1]]}}), "different shapes"),
        ],
    )
    def test_what_is_no_text_fails_alone(self, ask: Ask, says: str, tmp_path: Path, worker: MakeWorker) -> None:
        """Empty, undecodable and mixed payloads are their sender's error alone."""
        (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
        served = worker("Words", [IDS, MASK], [MEANING], use="text", text={"tokenizer": "vocab.txt"})
        bad, good = served(ask, text("the cat"))
        assert says in bad.body.decode()
        assert good.status == 200

    def test_labels_name_the_classes(self, tmp_path: Path, worker: MakeWorker) -> None:
        """With labels, a text gives its likeliest classes."""
        (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
        (tmp_path / "labels.txt").write_text("bad\ngood\nugly")
        options = {"text": {"tokenizer": "vocab.txt"}, "labels": "labels.txt", "top_k": 1}
        (answer,) = worker("Words", [IDS, MASK], [MEANING], use="text", **options)(text("the cat"))
        expected = ["bad", "good", "ugly"][int(mean_of(2, 3).argmax())]
        assert [entry["label"] for entry in answer.json["predictions"][0]] == [expected]
