"""What only TF Serving understands: the spec's ``tfserving:`` key."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from servewright.fields import Part, Positive


class BatchingOptions(Part):
    """Fields of BatchingParameters that no other server has."""

    enable_large_batch_splitting: bool = False
    max_execution_batch_size: Positive | None = None
    pad_variable_length_inputs: bool = False
    thread_pool_name: Annotated[str, Field(min_length=1, max_length=128)] | None = None


class Options(Part):
    """Settings of a TF Serving fleet beyond the spec's own keys.

    ``session`` holds fields of tensorflow.ConfigProto; ``flags`` further command-line flags by name.
    """

    batching: BatchingOptions = BatchingOptions()
    flags: dict[str, bool | int | float | str] = Field(default_factory=dict)
    session: dict[str, Any] = Field(default_factory=dict)
    base_path: Annotated[str, Field(pattern=r"^(/|[a-z0-9]+://).+")] | None = None
    monitoring_path: Annotated[str, Field(pattern=r"^/\S*$")] = "/monitoring/prometheus/metrics"
    warmup: bool = True
