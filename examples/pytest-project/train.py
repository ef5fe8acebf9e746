"""Train a classifier of handwritten digits, and export it for both servers: ``python train.py``."""

import functools
import os
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression


@functools.cache
def trained():
    """Return the classifier, and pictures that it has not seen with their labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    return LogisticRegression(max_iter=500).fit(images[:1500], labels[:1500]), images[1500:], labels[1500:]


def export(classifier, folder):
    """Write ``model.pt`` and ``saved_model/``."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    import torch

    weights, bias = classifier.coef_.astype(np.float32), classifier.intercept_.astype(np.float32)

    linear = torch.nn.Linear(64, 10)
    linear.weight.data, linear.bias.data = torch.from_numpy(weights), torch.from_numpy(bias)
    network = torch.nn.Sequential(linear, torch.nn.Softmax(dim=1)).eval()
    torch.jit.trace(network, torch.zeros(1, 64)).save(str(folder / "model.pt"))

    module = tf.Module()
    module.weights, module.bias = tf.Variable(weights), tf.Variable(bias)

    @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32, name="image")])
    def serve(image):
        return {"scores": tf.nn.softmax(image @ tf.transpose(module.weights) + module.bias)}

    tf.saved_model.save(module, str(folder / "saved_model"), signatures={"serving_default": serve})


if __name__ == "__main__":
    export(trained()[0], Path(__file__).parent)
