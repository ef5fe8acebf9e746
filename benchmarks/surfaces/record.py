"""Record surfaces: what users see of every batching setting of a model under four loads, on a real server.

    python benchmarks/surfaces/record.py                       # all six; goes on where it stopped
    python benchmarks/surfaces/record.py torchserve-cnn --passes 3
    python benchmarks/surfaces/record.py torchserve-cnn --passes 3 --deciding 10

A surface is a file of JSON lines in this folder, or in --folder: what is recorded, where and when; how long requests of
many rows take alone, for each number of threads; the loads; then a cell for each setting under each load, settings in
random order. Kill it, or press Ctrl-C, at any moment: it goes on with the cells that are missing, also days later, on
the same kind of machine with the same versions alone. Up to eight cells share a look at the reference before and after
them, and are on the disk together before the next is measured: so many are lost at most, and measured again. ``again``
counts the passes over all of them: what a cell shows is the mean of its passes, and how far they lie apart tells how
well measurements repeat. With --deciding the cells that a promise may hang on are measured so often anew, and known by
that alone: what chose them was luck, too.

What other programs take of the processors during a cell is in it, as a share (`foreign`), as is what the machine's
host takes (`stolen`). A cell that was disturbed is measured again, up to three times, and the calmest is kept. Let
nothing else run: even work at idle priority, which gives way at once, made settings two to five times slower here.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Behind all others: the folder above has a packaging.py, which must not stand in for a library that others import.
sys.path.append(str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    # Every process of a load imports this file anew: what they do not need is imported here alone.
    from recording import main

    sys.exit(main(__doc__))
