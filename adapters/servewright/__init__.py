"""Render, package, launch, prove and tune models on TensorFlow Serving and TorchServe, from one spec."""

__version__ = "0.1.0"
