"""Counters and histograms under TF Serving's names, and the page on which Prometheus reads them.

Everything here is written from the event loop's thread alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

Labels = tuple[str, ...]


def _exponential(start: float, growth: float, count: int) -> tuple[float, ...]:
    return tuple(start * growth**power for power in range(count))


LATENCY_US = _exponential(10, 1.8, 33)
QUEUE_US = _exponential(100, 1.2, 52)
BATCH_ROWS = _exponential(1, 2, 14)
EXAMPLES = _exponential(1, 2, 15)


class Counter:
    """A number that grows, for each set of label values."""

    def __init__(self, name: str, labels: Sequence[str] = ()) -> None:
        self.name, self.labels = name, tuple(labels)
        self.cells: dict[Labels, int] = {}

    def add(self, *labels: str, by: int = 1) -> None:
        """Count ``by`` more under ``labels``."""
        self.cells[labels] = self.cells.get(labels, 0) + by

    def lines(self) -> Iterator[str]:
        """Yield the lines of this metric."""
        yield f"# TYPE {self.name} counter"
        for values, number in self.cells.items():
            yield f"{self.name}{{{_shown(self.labels, values)}}} {number}"


class Gauge(Counter):
    """A number that is set."""

    def lines(self) -> Iterator[str]:
        """Yield the lines of this metric."""
        yield f"# TYPE {self.name} gauge"
        for values, number in self.cells.items():
            yield f"{self.name}{{{_shown(self.labels, values)}}} {number}"


class Histogram:
    """How many values fell between which limits, for each set of label values."""

    def __init__(self, name: str, limits: tuple[float, ...], labels: Sequence[str] = ()) -> None:
        self.name, self.limits, self.labels = name, limits, tuple(labels)
        self.cells: dict[Labels, list[float]] = {}

    def add(self, value: float, *labels: str) -> None:
        """Count ``value`` under ``labels``."""
        cell = self.cells.get(labels)
        if cell is None:
            cell = self.cells[labels] = [0] * (len(self.limits) + 1) + [0.0]
        cell[bisect_right(self.limits, value)] += 1
        cell[-1] += value

    def lines(self) -> Iterator[str]:
        """Yield the lines of this metric; a bucket's number counts all smaller ones, too."""
        yield f"# TYPE {self.name} histogram"
        for values, cell in self.cells.items():
            labels = _shown(self.labels, values)
            prefix, so_far = f"{self.name}_bucket{{{labels}{',' if labels else ''}", 0
            for at, number in enumerate(cell[:-1]):
                so_far += int(number)
                limit = f"{self.limits[at]:.6g}" if at < len(self.limits) else "+Inf"
                yield f'{prefix}le="{limit}"}} {so_far}'
            yield f"{self.name}_sum{{{labels}}} {cell[-1]:.6g}"
            yield f"{self.name}_count{{{labels}}} {so_far}"


def _shown(names: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        serving = ":tensorflow:serving:"
        batching = serving + "batching_session:"
        self.load_attempts = Counter(":tensorflow:cc:saved_model:load_attempt_count", ("model_path", "status"))
        self.load_latency = Counter(":tensorflow:cc:saved_model:load_latency", ("model_path",))
        self.input_batch_size = Histogram(batching + "input_batch_size", BATCH_ROWS)
        self.padding_size = Histogram(batching + "padding_size", BATCH_ROWS, ("execution_batch_size",))
        self.processed_batch_size = Histogram(batching + "processed_batch_size", BATCH_ROWS)
        self.queuing_latency = Histogram(batching + "queuing_latency", QUEUE_US, ("thread_pool_name",))
        self.wrapped_runs = Counter(batching + "wrapped_run_count")
        self.mlmd = Gauge(serving + "mlmd_map", ("model_name", "version"))
        self.warmup_latency = Histogram(serving + "model_warmup_latency", LATENCY_US, ("model_path", "status"))
        self.requests = Counter(serving + "request_count", ("model_name", "status"))
        self.example_count = Counter(serving + "request_example_count_total", ("model",))
        self.example_counts = Histogram(serving + "request_example_counts", EXAMPLES, ("model",))
        self.request_latency = Histogram(serving + "request_latency", LATENCY_US, ("model_name", "API", "entrypoint"))
        self.log_count = Counter(serving + "request_log_count", ("model_name", "status_code"))
        self.runtime_latency = Histogram(serving + "runtime_latency", LATENCY_US, ("model_name", "API", "runtime"))
        self.stand_in = Gauge(":servewright:stand_in")
        self.stand_in.add()

    def page(self) -> str:
        """Return the page in Prometheus' text format."""
        every: list[Counter | Histogram] = [
            metric for metric in vars(self).values() if isinstance(metric, Counter | Histogram)
        ]
        # The real server registers what belongs to batching with its first use.
        shown = [metric for metric in every if metric.cells or metric not in self._late]
        return "\n".join(line for metric in shown for line in metric.lines()) + "\n"

    @property
    def _late(self) -> tuple[Counter | Histogram, ...]:
        return (self.input_batch_size, self.padding_size, self.processed_batch_size)

    def value(self, name: str) -> int:
        """Return the first number of the counter that TensorFlow calls ``name``, or 0."""
        wanted = "".join(letter if letter.isalnum() or letter == "_" else ":" for letter in name)
        for metric in vars(self).values():
            if isinstance(metric, Counter) and metric.name == wanted and metric.cells:
                return next(iter(metric.cells.values()))
        return 0
