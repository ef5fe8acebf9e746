"""Finding what a pickle would import, without reading it."""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright.errors import ModelFileError, UntrustedPickleError
from servewright.modelfiles import pickles

PLAIN_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


class Calls:
    """Pickles as a call of ``function`` when read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def names(content: bytes) -> list[str]:
    return [found.name for found in pickles.imports(io.BytesIO(content))]


@given(PLAIN_DATA, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_data_imports_nothing(value: object, protocol: int) -> None:
    """Containers of plain values import nothing; before protocol 3, only what rebuilds bytes."""
    found = pickles.imports(io.BytesIO(pickle.dumps(value, protocol)))
    assert {item.name for item in found} <= ({"_codecs.encode", "__builtin__.bytes"} if protocol < 3 else set())


@given(
    PLAIN_DATA,
    st.integers(0, pickle.HIGHEST_PROTOCOL),
    st.sampled_from([eval, exec, collections.OrderedDict, zipfile.ZipFile]),
)
def test_every_call_is_found(value: object, protocol: int, function: Any) -> None:
    """Whatever stands around it, a call is found under its module and name."""
    content = pickle.dumps([value, {"key": (value, Calls(function, "1"))}], protocol)
    module = {"builtins": {"__builtin__", "builtins"}}.get(function.__module__, {function.__module__})
    assert any(name in {f"{part}.{function.__name__}" for part in module} for name in names(content))


@given(st.binary(max_size=300))
def test_noise_is_no_pickle(content: bytes) -> None:
    """Bytes that are no pickle give an error of reading, or imports, but never run or hang."""
    with contextlib.suppress(ValueError, IndexError, KeyError, OverflowError, AttributeError):
        pickles.imports(io.BytesIO(content))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"cposix\nsystem\n(S'id'\ntR.", "posix.system"),
        (b"(S'id'\niposix\nsystem\n.", "posix.system"),
        (b"\x80\x04\x8c\x05posix\x940\x8c\x06system\x940h\x00h\x01\x93\x8c\x02id\x85R.", "posix.system"),
        (
            b"\x80\x04\x8c\x05posix\x8c\x06system2\x8c\x02idq\x0500\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
            "posix.system",
        ),
        (b"\x80\x02\x82\x01.", "copyreg extension 1"),
    ],
    ids=["GLOBAL", "INST", "STACK_GLOBAL from the memo", "STACK_GLOBAL under other texts", "EXT1"],
)
def test_every_opcode_that_imports_is_known(content: bytes, expected: str) -> None:
    """All ways in which a pickle can import are found by name."""
    assert names(content) == [expected]


def test_a_computed_name_is_refused() -> None:
    """A name that does not stand in the pickle as text counts as dangerous: it hides what it imports."""
    persistent = b"\x80\x04Pposix\n\x8c\x06system\x93."
    (found,) = pickles.imports(io.BytesIO(persistent))
    assert not found.plain
    assert "hides" in found.danger


def test_the_end_of_a_pickle_is_found() -> None:
    """Several pickles in one stream are read one by one, as torch's old format has them."""
    stream = io.BytesIO(pickle.dumps(1) + pickle.dumps(Calls(eval, "1")) + b"raw")
    assert pickles.imports(stream) == ()
    assert [found.name for found in pickles.imports(stream)] == ["builtins.eval"]
    assert stream.read() == b"raw"


def test_length_is_bounded() -> None:
    """A pickle longer than the limit is an error instead of a long wait."""
    with pytest.raises(ValueError, match="longer than 100 bytes"):
        pickles.imports(io.BytesIO(pickle.dumps(list(range(1000)))), limit=100)


def test_the_scanner_knows_every_opcode() -> None:
    """The opcodes for which Python's own reader looks up a class are the ones that the scanner reports."""
    names_of_codes = {op.code: op.name for op in pickletools.opcodes}
    importing = {
        names_of_codes[chr(code)]
        for code, load in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined]
        if {"find_class", "get_extension"} & set(load.__code__.co_names)
    }
    assert importing == {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}


@pytest.mark.torch
def test_plain_is_what_torch_reads_weights_only(models: Any) -> None:
    """All that torch's weights-only reader allows is plain here."""
    allowed = models.truth("torch")["allowed"]
    assert len(allowed) > 100
    assert [name for name in allowed if not pickles.Import(name, 0).plain] == []


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "posix.system", "builtins.eval", "torch.load", "torch.hub.load", "torch.jit.load",
        "torch.os.system", "torch.FloatStorage.from_file", "torch._utils.import_module", "torch.serialization.load",
        "torchvision.models.resnet", "torch.nn.modules.linear.Linear", "numpy.core.multiarray.scalar",
        "collections.namedtuple", "functools.partial",
        "_codecs.encode.x", "torch.float32.x", "torch.float_power", "torch.int_repr", "torch.bool_thing", "",
    ],
)  # fmt: skip
def test_code_is_not_plain(name: str) -> None:
    """Names that run something, or only look like a tensor's parts, are not plain."""
    assert not pickles.Import(name, 0).plain


@pytest.mark.torch
@pytest.mark.parametrize("name", ["weights.pt", "legacy.pt", "checkpoint.pt"])
def test_weights_are_plain(models: Any, name: str) -> None:
    """State dicts in both forms of torch.save import only what rebuilds tensors."""
    found = pickles.torch_imports(models["torch"] / name)
    assert "torch._utils._rebuild_tensor_v2" in [item.name for item in found]
    assert all(item.plain for item in found)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["bomb.pt", "legacy_bomb.pt"])
def test_a_bomb_is_refused_and_does_not_go_off(models: Any, name: str) -> None:
    """A pickle that runs a command is refused by that command's name, and nothing ran."""
    path = models["torch"] / name
    with pytest.raises(UntrustedPickleError, match=r"posix\.system.*any command.*--trust"):
        pickles.refuse_strangers(path, pickles.torch_imports(path), remedy="save the weights")
    assert not (models["torch"] / "canary").exists()


@pytest.mark.torch
def test_a_whole_network_is_refused_by_its_class(models: Any) -> None:
    """A pickled network names its class, and the error says that its code would run."""
    path = models["torch"] / "whole.pt"
    with pytest.raises(UntrustedPickleError, match=r"net\.Net.*runs the code of 'net'"):
        pickles.refuse_strangers(path, pickles.torch_imports(path), remedy="save the weights")


@pytest.mark.torch
@pytest.mark.parametrize("name", ["weights.pt", "legacy.pt"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_cut_file_is_an_error(models: Any, tmp_path: Path, name: str, share: float) -> None:
    """A file that breaks off within its pickle says so."""
    content = (models["torch"] / name).read_bytes()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(content[: int(len(content) * share * (0.3 if name == "legacy.pt" else 1))])
    with pytest.raises(ModelFileError, match="broken"):
        pickles.torch_imports(cut)
