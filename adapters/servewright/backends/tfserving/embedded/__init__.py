"""A stand-in for ``tensorflow_model_server`` 2.17, for machines that have neither the binary nor Docker.

``python -m servewright.backends.tfserving.embedded`` takes the same flags and files, serves the same gRPC and REST,
and loads SavedModels with TensorFlow's own C library. It says what it is: in its log, in the ``Server`` header of
every HTTP answer, and in the initial metadata of every gRPC answer.
"""

from servewright import __version__

STAND_IN_HEADER = "Server"
"""The HTTP header that says ``servewright-embedded/<version>``."""

STAND_IN_METADATA = "servewright-stand-in"
"""The key of gRPC initial metadata whose value is the stand-in's own version."""

PRODUCT = f"servewright-embedded/{__version__}"
EMULATED_VERSION = "2.17"
RECEIVED = 1 << 18
"""How many bytes are taken from a socket at once, at most."""
