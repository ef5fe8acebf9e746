"""How many processors a program may use, and what the stand-in makes of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from servewright import processors
from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded.flags import parse
from servewright.backends.tfserving.embedded.settings import batch_threads


@pytest.fixture
def bound_to_one() -> Iterator[None]:
    """Bind this program to one of its processors, for as long as a test lasts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.skipif(sys.platform != "linux", reason="programs are bound to processors on Linux alone")
@pytest.mark.usefixtures("bound_to_one")
def test_defaults_follow_what_may_be_used() -> None:
    """TensorFlow counts what it may run on: four threads for each, and one that computes batches."""
    flags = parse([]).flags
    assert processors.usable() == 1
    assert (flags.grpc_max_threads, flags.rest_api_num_threads) == (4, 4)
    assert batch_threads(protos.BatchingParameters()) == 1
