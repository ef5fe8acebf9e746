"""What a load sends: rows of a user's own, or rows that are made up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from load_toys import SPEC
from servewright import pipeline, registry
from servewright.errors import InputError, ServerAnswerError
from servewright.load import requests


class _Refusing:
    """A client whose server takes nothing."""

    def predict(self, *_: object, **__: object) -> dict[str, object]:
        raise ServerAnswerError(500, "index out of range")


class TestWhatIsSent:
    """Rows of a user's own, or rows that are made up."""

    def test_requests_of_many_rows_have_the_users_rows(self, tmp_path: Path) -> None:
        """What is made up may be none that the model takes: an embedding of four ids bears no fifth."""
        (tmp_path / "one.yaml").write_text(SPEC.replace("NAME", "one").replace("float32", "int64"))
        document = pipeline.load(tmp_path / "one.yaml").models[0]
        np.savez(tmp_path / "ids.npz", x=np.array([1, 3], np.int64))
        assert requests.stacked(document, 5, file=tmp_path / "ids.npz")["x"].tolist() == [1, 3, 1, 3, 1]
        assert requests.stacked(document, 5)["x"].shape == (5,)

    @pytest.mark.parametrize("rows", [1, 2, 1000, 5000])
    def test_each_row_of_a_file_is_sent_as_it_is(self, rows: int, tmp_path: Path) -> None:
        """Nothing is mixed into it, also where there is one; of very many, some from all over the file."""
        (tmp_path / "one.yaml").write_text(SPEC.replace("NAME", "one"))
        document = pipeline.load(tmp_path / "one.yaml").models[0]
        np.savez(tmp_path / "x.npz", x=np.arange(rows, dtype=np.float32))
        sent = [float(each["x"][0]) for each in requests.samples(document, file=tmp_path / "x.npz")]
        assert sent == sorted(set(sent))
        assert set(sent) <= set(range(rows))
        assert len(sent) == min(rows, 1024)
        assert sent[-1] >= 0.99 * (rows - 1)

    def test_a_file_without_rows_is_refused(self, tmp_path: Path) -> None:
        """There is nothing to send."""
        (tmp_path / "one.yaml").write_text(SPEC.replace("NAME", "one"))
        np.savez(tmp_path / "x.npz", x=np.zeros(0, np.float32))
        with pytest.raises(InputError, match="has no rows; write one at least"):
            requests.samples(pipeline.load(tmp_path / "one.yaml").models[0], file=tmp_path / "x.npz")

    def test_a_refusal_of_made_up_rows_says_that_they_were(self, tmp_path: Path) -> None:
        """The remedy is data of the user's own; where that was refused, the server's words are enough."""
        (tmp_path / "one.yaml").write_text(SPEC.replace("NAME", "one"))
        document = pipeline.load(tmp_path / "one.yaml").models[0]
        backend = dataclasses.replace(registry.get("tfserving"), asking=lambda _client, _name: _Refusing())
        made_up = requests.samples(document)
        with pytest.raises(ServerAnswerError, match=r"index out of range; the inputs were made up .* give --data"):
            requests.prepared(document, backend, None, "http", made_up)
        with pytest.raises(ServerAnswerError, match=r"index out of range$"):
            requests.prepared(document, backend, None, "http", made_up, file=tmp_path / "x.npz")
