"""The handlers in a real TorchServe: batches over HTTP and gRPC in which one request is bad."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from servewright.assets import asset_dir
from servewright.backends.torchserve import payload, process
from servewright.backends.torchserve.client import Client
from servewright.backends.torchserve.properties import escape_value
from servewright.errors import LaunchError, ServerAnswerError, UnavailableError
from servewright.processes import ProcessPlan, free_ports, start, wait_until

pytest.importorskip("torch")

MODELS = ("numbers", "pictures", "texts")
VOCABULARY = ("[PAD]", "[UNK]", "the", "cat", "sat")
# Each network also says how many rows its forward had, so that a test can see that requests met in one.
NETWORKS = """
import torch
from torch import nn


def with_company(scores):
    return scores, torch.full((len(scores), 1), float(len(scores)))


class Numbers(nn.Module):
    def forward(self, x):
        if bool((x > 1e6).any()):
            raise RuntimeError("a value that this network cannot bear")
        return with_company(2 * x)


class Pictures(nn.Module):
    def forward(self, image):
        return with_company(image.mean(dim=(2, 3)))


class Texts(nn.Module):
    def forward(self, input_ids, attention_mask):
        return with_company((input_ids * attention_mask).sum(1, keepdim=True).float())
"""


def spec(name: str, shape: list[int | None], dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape}


def archive(
    store: Path, name: str, use: str, inputs: list[dict[str, Any]], width: int, options: Mapping[str, Any] | None = None
) -> None:
    """Write the archive of one network, as the packaging would."""
    import torch

    config = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 8,
        "maxBatchDelay": 1000,
        "servewright": {
            "model": {"file": "model.pt", "format": "state_dict", "code": "net.py", "class": name.capitalize()},
            "signature": {"inputs": inputs, "outputs": [spec("scores", [None, width]), spec("company", [None, 1])]},
            "options": dict(options or {}),
        },
    }
    handler = f"servewright_{use}.py"
    manifest = {
        "runtime": "python",
        "model": {"modelName": name, "modelVersion": "1", "handler": handler, "configFile": "model-config.yaml"},
    }
    weights = io.BytesIO()
    torch.save({}, weights)
    with zipfile.ZipFile(store / f"{name}.mar", "w") as mar:
        mar.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        mar.writestr("model-config.yaml", yaml.safe_dump(config))
        mar.writestr("net.py", NETWORKS)
        mar.writestr("model.pt", weights.getvalue())
        mar.writestr("vocab.txt", "\n".join(VOCABULARY))
        mar.writestr("labels.txt", "red\ngreen\nblue\n")
        for file in {handler, "servewright_tensor.py"}:
            mar.write(asset_dir("handlers") / file, file)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Run one server with one model for each handler, and yield a client of it."""
    try:
        program = process.find_program()
    except UnavailableError as error:
        pytest.skip(str(error))
    store = tmp_path_factory.mktemp("store")
    archive(store, "numbers", "tensor", [spec("x", [None, None])], width=2)
    signature = [spec("image", [None, 3, 8, 8])]
    archive(store, "pictures", "vision", signature, 3, {"labels": "labels.txt", "softmax": False})
    signature = [spec("input_ids", [None, None], "int64"), spec("attention_mask", [None, None], "int64")]
    archive(store, "texts", "text", signature, 1, {"text": {"tokenizer": "vocab.txt"}})
    names = ("http", "management", "metrics", "grpc", "grpc_management")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    run = Path(tempfile.mkdtemp(prefix="sw-"))  # workers' sockets need a short path
    for folder in (process.TEMPORARY, process.LOGS):
        (run / folder).mkdir()
    settings = {
        "inference_address": f"http://127.0.0.1:{ports['http']}",
        "management_address": f"http://127.0.0.1:{ports['management']}",
        "metrics_address": f"http://127.0.0.1:{ports['metrics']}",
        "grpc_inference_port": str(ports["grpc"]),
        "grpc_management_port": str(ports["grpc_management"]),
    }
    config = run / "config.properties"
    config.write_text("".join(f"{key}={escape_value(value)}\n" for key, value in settings.items()))
    argv = process.arguments(config=str(config), store=str(store), models={name: f"{name}.mar" for name in MODELS})
    environment = {**program.environment, **process.environment(run=str(run), config=str(config))}
    plan = ProcessPlan((*program.argv, *argv[1:]), environment, run, run / "server.log")
    with ExitStack() as held:
        server = start(plan, scratch=(run,))
        held.callback(server.stop)
        endpoints = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        connected = held.enter_context(Client(endpoints, key_file=run / process.KEY_FILE))

        def is_ready() -> bool:
            process.check_alive(server.log_tail(500))
            if not server.alive():
                raise LaunchError("it ended", log_tail=server.log_tail())
            return process.ready(connected, dict.fromkeys(MODELS))

        wait_until(is_ready, within_s=240, what="TorchServe is ready")
        yield connected


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Make all calls at once, and return what each gave or raised of our errors."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ServerAnswerError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


class TestNumbers:
    """The tensor handler."""

    @pytest.mark.parametrize("transport", ["http", "grpc"])
    @pytest.mark.parametrize("form", ["raw", "json", "npy"])
    def test_only_the_bad_requests_of_a_batch_fail(self, transport: str, form: payload.Form, client: Client) -> None:
        """A malformed request gets a 400, one that breaks the model a 500, and the others of its batch answers."""
        arrays = [np.full((rows, 2), rows, "float32") for rows in range(1, 7)]
        arrays[2] = np.full((1, 2), 1e9, "float32")  # breaks the model, and with it the batch's forward
        arrays[4] = np.zeros((3,), "float32")  # no such rank
        outcomes = together(
            *(
                lambda array=array: client.predict("numbers", {"x": array}, transport=transport, form=form)
                for array in arrays
            )
        )
        for number, (array, outcome) in enumerate(zip(arrays, outcomes, strict=True)):
            if number == 2:
                assert (outcome.status, "cannot bear" in outcome.message) == (500, True)
            elif number == 4:
                assert (outcome.status, "has shape [3]" in outcome.message) == (400, True)
            else:
                np.testing.assert_array_equal(outcome["scores"], 2 * array)

    @pytest.mark.parametrize("transport", ["http", "grpc"])
    def test_requests_of_a_batch_share_one_forward(self, transport: str, client: Client) -> None:
        """Concurrent requests meet in one forward, beside a bad one, and each gets its own rows."""
        arrays = [np.full((1, 2), number, "float32") for number in range(7)]
        calls = [lambda array=array: client.predict("numbers", {"x": array}, transport=transport) for array in arrays]
        *good, bad = together(
            *calls, lambda: client.predict("numbers", {"x": np.zeros((1,), "float32")}, transport=transport)
        )
        assert bad.status == 400
        for array, outputs in zip(arrays, good, strict=True):
            np.testing.assert_array_equal(outputs["scores"], 2 * array)
        assert max(outputs["company"].item() for outputs in good) > 1

    def test_answers_come_with_their_content_type(self, client: Client) -> None:
        """TorchServe names no type of its own for an answer; the handler does, for errors too."""
        body = json.dumps([[1, 2]]).encode()
        headers = {"Content-Type": "application/json"}
        answer = client.send("numbers", body, headers=headers)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json()["outputs"]["scores"] == [[2.0, 4.0]]
        refused = client.send("numbers", body, headers=headers | {"Accept": "image/png"})
        assert (refused.status, refused.headers["content-type"]) == (406, "application/json")
        assert refused.json()["type"] == "NotAcceptableException"

    def test_a_damaged_form_body_is_refused(self, client: Client) -> None:
        """The default Content-Type of some clients destroys payloads before the handler sees them; it says so."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = client.send("numbers", b'{"inputs": [[1, 2]]}', headers=headers)
        assert answer.status == 400
        assert "damages payloads" in answer.json()["message"]

    def test_a_multipart_form_is_read_as_fields(self, client: Client) -> None:
        """A form upload carries the same fields as gRPC."""
        parts = {"data": np.ones((1, 2), "float32").tobytes(), "dtype": b"float32", "shape": b"1,2"}
        body = b"".join(
            b'--cut\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
            % (name.encode(), b'; filename="x"\r\nContent-Type: application/octet-stream' * (name == "data"), value)
            for name, value in parts.items()
        )
        headers = {"Content-Type": "multipart/form-data; boundary=cut"}
        answer = client.send("numbers", body + b"--cut--\r\n", headers=headers)
        assert answer.status == 200, answer.body
        assert answer.json()["outputs"]["scores"] == [[2.0, 2.0]]


def picture(colour: tuple[int, int, int], form: str = "PNG") -> bytes:
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.new("RGB", (16, 8), colour).save(file, form)
    return file.getvalue()


class TestPictures:
    """The vision handler."""

    def test_only_the_broken_picture_of_a_batch_fails(self, client: Client) -> None:
        """JPEG and PNG give their classes; half a file in the same batch is a 400 of its own."""
        whole = picture((0, 255, 0))
        files = {"image/png": whole, "image/jpeg": picture((0, 0, 255), "JPEG"), "application/octet-stream": whole[:50]}
        png, jpeg, broken = together(
            *(
                lambda form=form, file=file: client.send("pictures", file, headers={"Content-Type": form})
                for form, file in files.items()
            )
        )
        assert [answer.status for answer in (png, jpeg, broken)] == [200, 200, 400]
        assert png.json()["predictions"][0][0] == {"index": 1, "label": "green", "score": pytest.approx(1)}
        assert jpeg.json()["predictions"][0][0]["label"] == "blue"
        assert "cannot be read" in broken.json()["message"]

    def test_over_grpc_the_broken_picture_is_an_error_body(self, client: Client) -> None:
        """Where no status arrives, the body of the bad one is an error and that of the good one is not."""
        whole = picture((255, 0, 0))
        good, broken = together(
            lambda: client.send_fields("pictures", {"data": whole}),
            lambda: client.send_fields("pictures", {"data": whole[:50]}),
        )
        assert json.loads(good)["predictions"][0][0]["label"] == "red"
        with pytest.raises(ServerAnswerError, match="cannot be read"):
            payload.decode_grpc(broken)


class TestTexts:
    """The text handler."""

    def test_texts_of_different_lengths_share_a_forward(self, client: Client) -> None:
        """Padding to the longest changes no answer; what is no UTF-8 fails alone."""
        sums = {"the": 2, "the cat": 5, "the cat sat": 9, "the cat sat sat": 13}
        answers = together(
            *(
                lambda text=text: client.send("texts", text.encode(), headers={"Content-Type": "text/plain"})
                for text in sums
            ),
            lambda: client.send_fields("texts", {"data": b"\xff"}),
        )
        outputs = [answer.json()["outputs"] for answer in answers[:-1]]
        assert [output["scores"] for output in outputs] == [[[total]] for total in sums.values()]
        assert max(output["company"][0][0] for output in outputs) > 1
        assert answers[-1].startswith(payload.ERROR_MAGIC)
