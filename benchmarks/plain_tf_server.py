"""A plain gRPC server around TensorFlow, to hold the embedded one against: 16 threads, one signature call a request.

``python benchmarks/plain_tf_server.py SAVED_MODEL PORT``. It is what one writes in an afternoon: ``make_ndarray`` for
each input, the signature's function, ``make_tensor_proto`` for each output.
"""

from __future__ import annotations

import sys
from concurrent import futures
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


class Predictor(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    """Answers Predict with one SavedModel."""

    def __init__(self, path: str) -> None:
        self._model = tf.saved_model.load(path)
        self._signature = self._model.signatures["serving_default"]

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002  (gRPC's name)
        """Run the signature once."""
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        response: Any = predict_pb2.PredictResponse()  # pyright: ignore[reportAttributeAccessIssue]
        for name, value in self._signature(**inputs).items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
        response.model_spec.name = request.model_spec.name
        return response


def main() -> None:
    """Serve until killed."""
    server = grpc.server(futures.ThreadPoolExecutor(16))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Predictor(sys.argv[1]), server)
    server.add_insecure_port(f"127.0.0.1:{sys.argv[2]}")
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
