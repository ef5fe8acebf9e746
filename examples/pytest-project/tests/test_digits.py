from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from servewright.errors import ServerAnswerError

both = pytest.mark.parametrize("backend", ["torchserve", "tfserving"])


def test_a_picture_has_ten_scores(serving, pictures):
    server = serving("digits.yaml", backend="torchserve")
    scores = server.predict({"image": pictures[:1]})["scores"]
    assert scores.shape == (1, 10)
    assert scores.sum() == pytest.approx(1)


@both
@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_what_is_served_is_what_was_trained(serving, classifier, pictures, backend, transport):
    server = serving("digits.yaml", backend=backend)
    scores = server.predict({"image": pictures[:16]}, transport=transport)["scores"]
    np.testing.assert_allclose(scores, classifier.predict_proba(pictures[:16]), rtol=1e-3, atol=1e-5)


@both
def test_it_is_good_enough_to_ship(serving, pictures, labels, backend):
    server = serving("digits.yaml", backend=backend)
    # digits.yaml allows 16 pictures in a batch, and TensorFlow Serving turns a larger request away.
    parts = [server.predict({"image": part})["scores"] for part in np.array_split(pictures, len(pictures) // 15)]
    assert (np.concatenate(parts).argmax(axis=1) == labels).mean() > 0.85


@both
def test_many_at_once_each_get_their_own_answer(serving, classifier, pictures, backend):
    server = serving("digits.yaml", backend=backend)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda picture: server.predict({"image": picture[None]})["scores"], pictures[:64]))
    np.testing.assert_allclose(np.concatenate(answers), classifier.predict_proba(pictures[:64]), rtol=1e-3, atol=1e-5)


@pytest.mark.serving("digits.yaml", backend="tfserving", scope="function")
def test_a_wrong_shape_is_refused_and_hurts_nobody(serving, pictures):
    server = serving()
    with pytest.raises(ServerAnswerError):
        server.predict({"image": pictures[:1, :32]})
    assert server.predict({"image": pictures[:1]})["scores"].shape == (1, 10)
