"""Training the same network in Keras, for TensorFlow Serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from servewright.demo.digits import Digits


def train(digits: Digits, *, epochs: int = 12) -> Any:
    """Return the trained model."""
    keras.utils.set_random_seed(0)
    image = keras.Input((1, 8, 8), name="image")
    # TensorFlow convolves channels-last on CPUs; the signature stays that of the torch network.
    hidden = keras.layers.Permute((2, 3, 1))(image)
    hidden = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(hidden)
    hidden = keras.layers.Conv2D(32, 3, padding="same", strides=2, activation="relu")(hidden)
    hidden = keras.layers.Dropout(0.2)(keras.layers.Flatten()(hidden))
    model: Any = keras.Model(image, keras.layers.Dense(10, name="scores")(hidden), name="digits")
    model.compile(
        optimizer=keras.optimizers.Adam(3e-3), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(digits.train_images, digits.train_labels, batch_size=64, epochs=epochs, verbose=0)
    return model


def scores(model: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the model's scores for ``images``."""
    return np.asarray(model(images, training=False))


def write_saved_model(model: Any, folder: Path) -> Path:
    """Write the folder ``saved_model``, with one signature for batches of any size."""
    target = folder / "saved_model"

    archive: Any = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        lambda image: {"scores": model(image, training=False)},
        input_signature=[keras.InputSpec(shape=(None, 1, 8, 8), dtype="float32", name="image")],
    )
    archive.write_out(str(target), verbose=False)
    return target


def write_keras(model: Any, folder: Path) -> Path:
    """Write ``model.keras``."""
    target = folder / "model.keras"
    model.save(target)
    return target
