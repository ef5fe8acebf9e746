"""Replays recorded answers of a real TensorFlow Serving against a server, and counts what is equal.

The recordings' own README says what they hold and what counts as equal. Three servers can be asked: the embedded
one (the default), a ``tensorflow_model_server`` binary, or a server that runs already.
"""
