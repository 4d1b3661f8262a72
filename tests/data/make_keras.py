"""Rewrite ``tests/data/keras``: tiny models that Keras itself saved, and what it computes with them.

Needs ``pip install keras torch h5py``; run as ``KERAS_BACKEND=torch python tests/data/make_keras.py``.
"""

import gzip
import json
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import layers

FOLDER = Path(__file__).parent / "keras"
SIZE = 7


def sequential() -> keras.Model:
    """Two LSTMs and what stands around layers."""
    return keras.Sequential(
        [
            keras.Input((None,)),
            layers.Embedding(SIZE, 4),
            layers.LSTM(5, return_sequences=True, dropout=0.1, name="below"),
            layers.Dropout(0.2),
            layers.LSTM(3, return_sequences=True, use_bias=False, recurrent_activation="hard_sigmoid"),
            layers.TimeDistributed(layers.Dense(SIZE, activation="softmax")),
        ]
    )


def functional() -> keras.Model:
    """GRUs of both kinds."""
    tokens = keras.Input((None,))
    x = layers.Embedding(SIZE, 4, mask_zero=True, name="words")(tokens)
    x = layers.GRU(5, return_sequences=True, reset_after=False)(x)
    x = layers.GRU(3, return_sequences=True)(x)
    return keras.Model(tokens, layers.Dense(SIZE, use_bias=False)(x))


def plain() -> keras.Model:
    """A ReLU network of one layer."""
    return keras.Sequential(
        [
            keras.Input((None,)),
            layers.Embedding(SIZE, 4),
            layers.SimpleRNN(5, return_sequences=True, activation="relu"),
            layers.Dense(SIZE),
            layers.Activation("softmax"),
        ]
    )


def main() -> None:
    """Write each model in both formats, with random biases too, and its answers to a text without padding."""
    keras.utils.set_random_seed(5)
    tokens = np.random.default_rng(5).integers(1, SIZE, 12)
    answers = {"tokens": tokens.tolist()}
    for make in (sequential, functional, plain):
        model = make()
        for weight in model.weights:
            if weight.dtype == "float32":
                weight.assign(np.random.default_rng(weight.shape).normal(0, 0.5, weight.shape))
        for suffix in ("keras", "h5"):
            name = f"{make.__name__}.{suffix}"
            with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
                warnings.simplefilter("ignore")
                model.save(Path(scratch) / name, include_optimizer=False)
                # Ten times smaller: HDF5 leaves room everywhere.
                (FOLDER / f"{name}.gz").write_bytes(gzip.compress((Path(scratch) / name).read_bytes(), mtime=0))
        answers[make.__name__] = np.asarray(model.predict(tokens[None], verbose=0)[0], float).round(7).tolist()
    (FOLDER / "answers.json").write_text(json.dumps(answers) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
