"""A slice of benchmarks/reader_fuzz.py: whatever a file holds, its reader gives an answer or an error of ours."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import hostile_inputs

_CORPUS = Path(os.environ.get("SERVEWRIGHT_CORPUS", "/nonexistent"))
READERS = hostile_inputs.readers(_CORPUS if _CORPUS.is_dir() else None)
INPUTS = 1200  # of the hundred thousand; those of each reader are every twelfth
# What the whole run has found, by the readers of then: each once took for ever or fell over.
FOUND = {
    "properties": [b'models={\n"m"', b"model_store=/" + b"h\\\\" * 2000],
    "pbtxt tfs_model_config": [
        b"model_config_list { config { base_path: '/m\0' } }",
        b"model_config_list { config { base_path: '/m\\ud800' } }",
        b"model_config_list { config { name: 'a\\\nb' } }",
        b"model_config_list { config { name: '\\u12' } }",
    ],
    "pbtxt tfs_batching": [b"max_batch_size { value: " + b"1" * 5000 + b" }"],
    "yaml": [b"minWorkers: {a: 1,\n", b"a: [\n\n\n"],
}


@pytest.mark.parametrize("number", range(len(READERS)), ids=[reader.name for reader in READERS])
def test_survives_mutations(number: int, tmp_path: Path) -> None:
    """Each input is taken or refused as another reader of the format would; nothing else comes out."""
    taken = 0
    for each in range(number, INPUTS, len(READERS)):
        reader, content = hostile_inputs.made(READERS, 7, each)
        try:
            taken += reader.read(content, tmp_path)
        except Exception as error:
            error.add_note(f"input {each} of seed 7: {content[:200]!r}")
            raise
    assert taken > 0, "nothing was taken: the inputs are too wild to say anything"


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in FOUND for content in FOUND[name]])
def test_survives_what_was_found(name: str, content: bytes, tmp_path: Path) -> None:
    """What once made a reader hang or fall over does so no more."""
    (reader,) = [reader for reader in READERS if reader.name == name]
    reader.read(content, tmp_path)


def test_inputs_are_the_same_everywhere() -> None:
    """A number and a seed name an input."""
    first = [hostile_inputs.made(READERS, 1, number)[1] for number in range(60)]
    assert first == [hostile_inputs.made(READERS, 1, number)[1] for number in range(60)]
    assert first != [hostile_inputs.made(READERS, 2, number)[1] for number in range(60)]
