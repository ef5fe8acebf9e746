"""A TorchServe handler for models of text: UTF-8 in, classes or tensors out.

It needs ``servewright_tensor.py`` beside it in the archive: batching, errors and models are one and the same for
every handler, and a copy would drift. The tokenizer lies in the archive: a ``tokenizer.json`` of the tokenizers
package, or a ``vocab.txt`` of words, one a line, which needs no package at all. Token ids are taken as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import servewright_tensor as tensor

MASKS = ("attention_mask", "mask", "input_mask")
TYPES = ("token_type_ids", "segment_ids")
PADS = ("[PAD]", "<pad>")
UNKNOWNS = ("[UNK]", "<unk>")

Tokenize = Callable[[list[str]], list[list[int]]]


class TextHandler(tensor.TensorHandler):
    """Serve one model whose inputs are token ids, [rows, length], and perhaps a mask and types beside them."""

    def initialize(self, context: Any) -> None:
        """Load the model and its tokenizer."""
        super().initialize(context)
        names = [spec["name"] for spec in self.inputs]
        self.mask = next((name for name in names if name in MASKS), None)
        ids = [name for name in names if name != self.mask and name not in TYPES]
        shapes = [spec["shape"] or [] for spec in self.inputs]
        if len(ids) != 1 or len(shapes[0]) != 2 or any(shape != shapes[0] for shape in shapes):
            raise ValueError(f"the text handler needs token ids of shape [null, length], not {self.inputs}")
        self.ids, self.length = ids[0], shapes[0][1]
        text = self.options.get("text") or {}
        if not text.get("tokenizer"):
            raise ValueError("the text handler needs a tokenizer: text: {tokenizer: tokenizer.json}")
        self.longest = min(filter(None, (text.get("max_length", 512), self.length)))
        self.tokenize, self.pad = read_tokenizer(self.folder / text["tokenizer"], self.longest)
        self.default_top_k = self.options.get("top_k", 5) if self.labels else 0

    def decode(self, payload: Any, about: Mapping[str, str]) -> tensor.Tensors:
        """Return the model's inputs for one text, for a JSON list of them, or for tensors that came ready."""
        texts = texts_of(payload, about)
        if texts is None:
            tensors = super().decode(payload, about)
            # One whose mask is of another length could not be padded, and would fail the whole batch.
            if len({array.shape for array in tensors.values()}) > 1:
                raise tensor.bad_request("the inputs have different shapes; give each token its mask")
            # Neighbours are padded to the longest of their batch: nobody may make them longer than texts can be.
            if any(array.ndim > 1 and array.shape[1] > self.longest for array in tensors.values()):
                raise tensor.bad_request(f"more than {self.longest} tokens, the archive's max_length")
            return tensors
        rows = self.tokenize(texts)
        if not all(rows):
            raise tensor.bad_request(f"text {rows.index([])} has no tokens")
        length = self.length or max(map(len, rows))
        inputs = {spec["name"]: np.zeros((len(rows), length), spec["dtype"]) for spec in self.inputs}
        inputs[self.ids][:] = self.pad
        for number, row in enumerate(rows):
            inputs[self.ids][number, : len(row)] = row
            if self.mask:
                inputs[self.mask][number, : len(row)] = 1
        return inputs

    def collate(self, batch: dict[int, tensor.Tensors]) -> dict[int, tensor.Tensors]:
        """Pad to the longest of the batch if the model is told what is padding; else lengths go in forwards apart.

        A model without a mask would answer according to the company that a text happens to keep.
        """
        if not self.mask or self.length:
            return batch
        longest = max((tensors[self.ids].shape[1] for tensors in batch.values()), default=0)
        return {
            index: {
                name: np.pad(
                    array,
                    ((0, 0), (0, longest - array.shape[1])),
                    constant_values=self.pad if name == self.ids else 0,
                )
                for name, array in tensors.items()
            }
            for index, tensors in batch.items()
        }


def texts_of(payload: Any, about: Mapping[str, str]) -> list[str] | None:
    """Return the texts of a payload: plain text, or JSON with strings where numbers could be; else None."""
    form = about["content_type"]
    if isinstance(payload, (bytes, bytearray)):
        plain = form.startswith("text/") or (form in ("", tensor.RAW) and "dtype" not in about)
        return [tensor.text_of(payload, "the text")] if plain else None
    if isinstance(payload, dict) and len(payload) == 1:
        (payload,) = payload.values()
    texts = [payload] if isinstance(payload, str) else payload
    if not isinstance(texts, list) or not any(isinstance(text, str) for text in texts):
        return None
    if not all(isinstance(text, str) for text in texts):
        raise tensor.bad_request("the list holds texts and other values; send texts alone, or tensors alone")
    return texts


def read_tokenizer(path: Path, longest: int) -> tuple[Tokenize, int]:
    """Return a function from texts to token ids, at most ``longest`` for each, and the id that pads."""
    if path.suffix == ".json":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(path))
        padding = tokenizer.padding
        pad = padding["pad_id"] if padding else first_known(PADS, tokenizer.token_to_id)
        tokenizer.no_padding()
        tokenizer.enable_truncation(longest)
        return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts)], pad or 0
    words = {word: number for number, word in enumerate(path.read_text(encoding="utf-8").splitlines())}
    unknown = first_known(UNKNOWNS, words.get)

    def tokenize(texts: list[str]) -> list[list[int]]:
        found = [[words.get(word, unknown) for word in split(text)] for text in texts]
        return [[number for number in row if number is not None][:longest] for row in found]

    return tokenize, first_known(PADS, words.get) or 0


def first_known(names: tuple[str, ...], number_of: Callable[[str], int | None]) -> int | None:
    """Return the number of the first of these tokens that the vocabulary has."""
    return next((number for number in map(number_of, names) if number is not None), None)


def split(text: str) -> list[str]:
    """Return the words and the punctuation marks of a text, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())
