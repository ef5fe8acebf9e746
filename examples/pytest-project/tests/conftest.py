import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import train


@pytest.fixture(scope="session")
def classifier():
    return train.trained()[0]


@pytest.fixture(scope="session")
def pictures():
    return train.trained()[1]


@pytest.fixture(scope="session")
def labels():
    return train.trained()[2]
