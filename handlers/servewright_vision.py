"""A TorchServe handler for image classifiers: JPEG or PNG in, the likeliest classes out.

It needs Pillow, and ``servewright_tensor.py`` beside it in the archive: batching, errors and models are one and the
same for every handler, and a copy would drift. Tensors are taken as well, and given to who asks for them by Accept.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageOps

import servewright_tensor as tensor

RESIZE = ("crop", "pad", "stretch")
MAX_PIXELS = 64 * 2**20  # 8192 x 8192; Pillow itself warns a little later


class VisionHandler(tensor.TensorHandler):
    """Serve one model whose input is a batch of pictures, [rows, channels, height, width]."""

    def initialize(self, context: Any) -> None:
        """Load the model, and settle how a picture becomes its input."""
        super().initialize(context)
        shape = self.inputs[0]["shape"]
        if len(self.inputs) != 1 or shape is None or len(shape) != 4:
            raise ValueError("the vision handler needs one input of shape [null, channels, height, width]")
        vision = self.options.get("vision") or {}
        self.mode = vision.get("mode") or ("L" if shape[1] == 1 else "RGB")
        channels = {"L": 1, "RGB": 3}.get(self.mode)
        if shape[1] not in (None, channels):
            raise ValueError(f"mode {self.mode} gives {channels} channels, but the model takes {shape[1]}")
        self.size = tuple(vision.get("size") or shape[2:])  # height, width
        if not tensor.fits(self.size, shape[2:]):
            raise ValueError(f"size {list(self.size)} is not the model's {shape[2:]}")
        self.resize = vision.get("resize", "crop")
        if self.resize not in RESIZE:
            raise ValueError(f"resize {self.resize!r} is not one of {', '.join(RESIZE)}")
        self.mean, self.std = (per_channel(vision.get(key), default) for key, default in (("mean", 0.0), ("std", 1.0)))
        if {self.mean.size, self.std.size} - {1, channels}:
            raise ValueError(f"mean and std need {channels} values for mode {self.mode}")
        self.limit = MAX_PIXELS if context.system_properties.get("limit_max_image_pixels", True) else None
        classified = len(self.outputs[0]["shape"] or ()) == 2
        self.default_top_k = self.options.get("top_k", 5) if classified else 0

    def decode(self, payload: Any, about: Mapping[str, str]) -> tensor.Tensors:
        """Return the model's input for one picture, for a JSON list of them, or for tensors that came ready."""
        pictures = pictures_of(payload, about)
        if pictures is None:
            return super().decode(payload, about)
        arrays = [self.prepared(picture) for picture in pictures]
        if len({array.shape for array in arrays}) > 1:
            raise tensor.bad_request(
                "the pictures of one request differ in size, and the model takes any: send them apart"
            )
        return {self.inputs[0]["name"]: np.stack(arrays)}

    def prepared(self, picture: bytes | bytearray) -> np.ndarray:
        """Return one picture as [channels, height, width]: bytes as they are, or floats, scaled and normalised."""
        image = opened(picture, self.mode, self.limit)
        height, width = (wanted or real for wanted, real in zip(self.size, (image.height, image.width)))
        if image.size != (width, height):
            image = resized(image, (width, height), self.resize)
        pixels = np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)
        if self.inputs[0]["dtype"] == "uint8":
            return pixels
        scaled: np.ndarray = (pixels.astype("float32") / np.float32(255) - self.mean) / self.std
        return scaled


def resized(image: Image.Image, size: tuple[int, int], how: str) -> Image.Image:
    """Return the image at (width, height): cut at its longer sides, letterboxed in black, or out of proportion."""
    if how == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    if how == "pad":
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR)
    return image.resize(size, Image.Resampling.BILINEAR)


def per_channel(values: Any, default: float) -> np.ndarray:
    """Return one float32 for each channel (or one for all), to be broadcast over [channels, height, width]."""
    return np.asarray(values or [default], dtype="float32").reshape(-1, 1, 1)


def pictures_of(payload: Any, about: Mapping[str, str]) -> list[bytes | bytearray] | None:
    """Return the files in a payload: a body that is one, or JSON ``{"instances": [{"b64": "..."}]}``; else None."""
    form = about["content_type"]
    if isinstance(payload, (bytes, bytearray)):
        return [payload] if form.startswith("image/") or (form in ("", tensor.RAW) and "dtype" not in about) else None
    rows = payload.get("instances") if isinstance(payload, dict) and payload.keys() == {"instances"} else None
    if (
        not isinstance(rows, list)
        or not rows
        or not all(isinstance(row, dict) and row.keys() == {"b64"} for row in rows)
    ):
        return None
    try:
        return [base64.b64decode(row["b64"], validate=True) for row in rows]
    except (binascii.Error, ValueError, TypeError) as error:
        raise tensor.bad_request(f"an instance is not base64: {error}") from error


def opened(picture: bytes | bytearray, mode: str, limit: int | None) -> Image.Image:
    """Return a picture read to its end; its size is checked before its pixels are unpacked."""
    try:
        image = Image.open(BytesIO(picture), formats=("JPEG", "PNG"))
        if limit and image.width * image.height > limit:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {limit}")
        return image.convert(mode)
    except Exception as error:  # Pillow's readers raise SyntaxError, OSError, struct.error and more
        raise tensor.bad_request(f"the picture cannot be read as JPEG or PNG: {error}") from error
