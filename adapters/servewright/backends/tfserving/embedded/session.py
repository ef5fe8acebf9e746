"""A loaded SavedModel: TensorFlow's own session, with its inputs and outputs by name."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from threading import Lock, local
from typing import Any

from servewright.backends.tfserving.embedded.capi import (
    STRING_WIDTH,
    Output,
    Status,
    free_strings,
    library,
    read_strings,
    string_bytes,
)
from servewright.backends.tfserving.embedded.status import Code, StatusError
from servewright.backends.tfserving.embedded.tensor import STRING, Tensor
from servewright.backends.tfserving.fields import varint

Names = tuple[str, ...]
_thread = local()


def _status() -> Status:
    """Return this thread's own TF_Status: one is made once a thread, not once a call."""
    status: Status | None = getattr(_thread, "status", None)
    if status is None:
        status = _thread.status = Status()
    return status


class Session:
    """A TensorFlow session with the graph of one SavedModel; safe to run from many threads at once."""

    def __init__(self, path: str, *, tags: Sequence[str], config: bytes = b"") -> None:
        """Load the SavedModel in the folder ``path``; raise `StatusError` with TensorFlow's own text."""
        tf, status = library(), Status()
        self.meta_graph = b""
        self._runners: dict[tuple[Names, Names], Runner] = {}
        self._lock = Lock()
        self._session: int | None = None
        self._graph = tf.NewGraph()
        options, buffer = tf.NewSessionOptions(), tf.NewBuffer()
        words = (c.c_char_p * len(tags))(*[tag.encode() for tag in tags])
        try:
            if config:
                tf.SetConfig(options, config, len(config), status.pointer)
                status.check()
            self._session = tf.LoadSessionFromSavedModel(
                options, None, path.encode(), words, len(tags), self._graph, buffer, status.pointer
            )
            status.check()
            self.meta_graph = c.string_at(buffer.contents.data, buffer.contents.length)
        except StatusError:
            tf.DeleteGraph(self._graph)
            raise
        finally:
            tf.DeleteBuffer(buffer)
            tf.DeleteSessionOptions(options)

    def runner(self, feeds: Names, fetches: Names) -> Runner:
        """Return what runs the graph from tensors called ``feeds`` to those called ``fetches``."""
        key = (feeds, fetches)
        if (runner := self._runners.get(key)) is None:
            with self._lock:
                runner = self._runners.setdefault(key, Runner(self, feeds, fetches))
        return runner

    def output(self, name: str, kind: str) -> Output:
        """Return the place of the tensor ``name`` (``node:0``); raise `StatusError` where the graph has none."""
        node, _, index = name.partition(":")
        operation = library().GraphOperationByName(self._graph, node.encode())
        number = int(index) if index.isdecimal() else 0
        if not operation or number >= library().OperationNumOutputs(operation):
            raise StatusError(
                Code.NOT_FOUND if kind == "fetch" else Code.INVALID_ARGUMENT,
                f"FetchOutputs {name}: not found"
                if kind == "fetch"
                else f"Tensor {name}, specified in either feed_devices or fetch_devices was not found in the Graph",
            )
        return Output(operation, number)

    @property
    def pointer(self) -> int:
        """The TF_Session."""
        if self._session is None:
            raise StatusError(Code.CANCELLED, "Session has been closed.")
        return self._session

    def close(self) -> None:
        """Free the model's memory; no run may be in progress."""
        tf, status = library(), Status()
        session, self._session = self._session, None
        if session is not None:
            tf.CloseSession(session, status.pointer)
            tf.DeleteSession(session, status.pointer)
            tf.DeleteGraph(self._graph)


class Runner:
    """Runs one set of feeds and fetches of a session."""

    def __init__(self, session: Session, feeds: Names, fetches: Names) -> None:
        self._session, self._tf = session, library()
        self._n_in, self._n_out = len(feeds), len(fetches)
        self._inputs = (Output * self._n_in)(*[session.output(name, "feed") for name in feeds])
        self._outputs = (Output * self._n_out)(*[session.output(name, "fetch") for name in fetches])
        self._in_type, self._out_type = c.c_void_p * self._n_in, c.c_void_p * self._n_out

    def __call__(self, inputs: Sequence[Tensor], timeout_ms: int = 0) -> list[Tensor]:
        """Return the outputs for ``inputs``, in the order of their names; ``timeout_ms`` 0 waits for ever."""
        taken: list[Any] = []
        feeds = self._in_type()
        try:
            for index, tensor in enumerate(inputs):
                feeds[index] = _feed(tensor, taken)
            return [_fetch(handle, self._tf) for handle in self._run(feeds, timeout_ms)]
        finally:
            self._release(feeds, taken)

    def merged(
        self, inputs: Sequence[Sequence[Tensor]], sizes: Sequence[int], timeout_ms: int = 0
    ) -> tuple[list[tuple[int, ...]], list[list[Tensor]]]:
        """Run the parts of each input joined along the first axis.

        Returns each output's whole shape, and its parts: rows in the order of ``sizes``. An output of another
        number of rows has no parts.
        """
        taken: list[Any] = []
        feeds = self._in_type()
        try:
            for index, parts in enumerate(inputs):
                feeds[index] = _feed_joined(parts, taken)
            shapes, split = [], []
            for handle in self._run(feeds, timeout_ms):
                shape, parts = _fetch_split(handle, sizes, self._tf)
                shapes.append(shape)
                split.append(parts)
            return shapes, split
        finally:
            self._release(feeds, taken)

    def _run(self, feeds: Any, timeout_ms: int) -> Any:
        tf, status = self._tf, _status()
        fetched = self._out_type()
        options = None
        if timeout_ms > 0:
            message = b"\x10" + varint(timeout_ms)  # RunOptions.timeout_in_ms
            options = tf.NewBufferFromString(message, len(message))
        try:
            tf.SessionRun(
                self._session.pointer, options, self._inputs, feeds, self._n_in, self._outputs, fetched, self._n_out,
                None, 0, None, status.pointer,
            )  # fmt: skip
        finally:
            if options is not None:
                tf.DeleteBuffer(options)
        if tf.GetCode(status.pointer):
            status.check()
        return fetched

    def _release(self, feeds: Any, taken: list[Any]) -> None:
        for handle in feeds:
            if handle:
                self._tf.DeleteTensor(handle)
        for places in taken:
            if isinstance(places, list):
                free_strings(places)


def _dims(shape: tuple[int, ...]) -> Any:
    return (c.c_int64 * len(shape))(*shape)


def _feed(tensor: Tensor, taken: list[Any]) -> int:
    """Return a TF_Tensor of the tensor's own memory; what must live as long goes to ``taken``."""
    tf, shape = library(), tensor.shape
    if tensor.dtype == STRING:
        return _feed_strings(tensor.data, shape, taken)
    data = tensor.data
    return _made(tf.NewTensor(tensor.dtype, _dims(shape), len(shape), data, len(data), tf.nothing, None))


def _made(handle: int | None) -> int:
    """Return a TF_Tensor, or raise `StatusError` where the library could not make it."""
    if not handle:
        raise StatusError(Code.RESOURCE_EXHAUSTED, "a tensor could not be allocated")
    return handle


def _feed_strings(values: list[bytes], shape: tuple[int, ...], taken: list[Any]) -> int:
    tf = library()
    block = c.create_string_buffer(max(1, STRING_WIDTH * len(values)))
    address = c.addressof(block)
    taken += [string_bytes(values, address), block]
    size = STRING_WIDTH * len(values)
    return _made(tf.NewTensor(STRING, _dims(shape), len(shape), address, size, tf.nothing, None))


def _feed_joined(parts: Sequence[Tensor], taken: list[Any]) -> int:
    first = parts[0]
    if len(parts) == 1:
        return _feed(first, taken)
    tf = library()
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    if first.dtype == STRING:
        return _feed_strings([value for part in parts for value in part.data], shape, taken)
    size = sum(len(part.data) for part in parts)
    handle = _made(tf.AllocateTensor(first.dtype, _dims(shape), len(shape), size))
    at = tf.TensorData(handle)
    for part in parts:
        c.memmove(at, part.data, len(part.data))
        at += len(part.data)
    return handle


def _shape(handle: int, tf: Any) -> tuple[int, ...]:
    return tuple([tf.Dim(handle, axis) for axis in range(tf.NumDims(handle))])


def _fetch(handle: int, tf: Any) -> Tensor:
    shape, dtype = _shape(handle, tf), tf.TensorType(handle)
    size = tf.TensorByteSize(handle)
    address = tf.TensorData(handle) if size else 0
    if dtype == STRING:
        data: Any = read_strings(address, size // STRING_WIDTH) if size else []
    else:
        data = c.string_at(address, size) if size else b""
    tf.DeleteTensor(handle)
    return Tensor(dtype, shape, data)


def _fetch_split(handle: int, sizes: Sequence[int], tf: Any) -> tuple[tuple[int, ...], list[Tensor]]:
    shape = _shape(handle, tf)
    if not shape or shape[0] != sum(sizes):
        tf.DeleteTensor(handle)
        return shape, []
    dtype, rest = tf.TensorType(handle), shape[1:]
    if dtype == STRING:
        whole = _fetch(handle, tf)
        width = len(whole.data) // shape[0] if shape[0] else 0
        return shape, _cut(whole.data, sizes, width, dtype, rest)
    row = tf.TensorByteSize(handle) // shape[0] if shape[0] else 0
    at, parts = tf.TensorData(handle) if row else 0, []
    for size in sizes:
        parts.append(Tensor(dtype, (size, *rest), c.string_at(at, size * row) if row else b""))
        at += size * row
    tf.DeleteTensor(handle)
    return shape, parts


def _cut(values: list[bytes], sizes: Sequence[int], width: int, dtype: int, rest: tuple[int, ...]) -> list[Tensor]:
    at, parts = 0, []
    for size in sizes:
        parts.append(Tensor(dtype, (size, *rest), values[at : at + size * width]))
        at += size * width
    return parts
