"""Keras files as Keras lays them out, written without it: ``.keras`` archives and ``.h5`` files.

``test_keras.py`` compares the layout with that of files which Keras itself wrote.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np

V = 7
VOCABULARY = ["", "[UNK]", "a", "b", "\n", "c", " "]
GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}
FOLDERS = {"Embedding": "embedding", "LSTM": "lstm", "GRU": "gru", "SimpleRNN": "simple_rnn", "Dense": "dense"}

Weights = dict[str, dict[str, np.ndarray]]


def embedding(**changes: Any) -> dict[str, Any]:
    return layer("Embedding", "emb", {"input_dim": V, "output_dim": 4, "mask_zero": False} | changes)


def recurrent(kind: str, name: str, units: int = 5, **changes: Any) -> dict[str, Any]:
    config = {"units": units, "activation": "tanh", "use_bias": True, "return_sequences": True, "dropout": 0.1}
    config |= {} if kind == "SimpleRNN" else {"recurrent_activation": "sigmoid"}
    config |= {"reset_after": True} if kind == "GRU" else {}
    return layer(kind, name, config | {"go_backwards": False, "return_state": False, "stateful": False} | changes)


def dense(**changes: Any) -> dict[str, Any]:
    return layer("Dense", "out", {"units": V, "activation": "softmax", "use_bias": True} | changes)


def distributed(inner: dict[str, Any]) -> dict[str, Any]:
    return layer("TimeDistributed", "each", {"layer": inner})


def layer(kind: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": kind, "config": {"name": name} | config, "registered_name": None}


def sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"class_name": "Sequential", "config": {"name": "model", "layers": list(layers)}}


def random_weights(model: dict[str, Any]) -> Weights:
    """Arrays of each layer by its name, in Keras's order."""
    random, found, below = np.random.default_rng(5), {}, 0

    def draw(*shape: int) -> np.ndarray:
        return random.normal(0, 0.5, shape).astype(np.float32)

    for entry in model["config"]["layers"]:
        kind, config = entry["class_name"], entry["config"]
        if kind == "TimeDistributed":
            kind, config = "Dense", {**config["layer"]["config"], "name": config["name"]}
        name, units = config["name"], config.get("units", 0)
        if kind == "Embedding":
            below = config["output_dim"]
            found[name] = {"embeddings": draw(config["input_dim"], below)}
        elif kind == "Dense":
            found[name] = {"kernel": draw(below, units)} | ({"bias": draw(units)} if config["use_bias"] else {})
        elif kind in GATES:
            width = GATES[kind] * units
            found[name] = {"kernel": draw(below, width), "recurrent_kernel": draw(units, width)}
            if config["use_bias"]:
                found[name]["bias"] = draw(2, width) if config.get("reset_after") else draw(width)
            below = units
    return found


def write_archive(path: Path, model: dict[str, Any], weights: Weights, version: str = "3.15.1") -> Path:
    """A ``.keras`` file."""
    buffer, used = io.BytesIO(), Counter[str]()
    with h5py.File(buffer, "w") as file:
        for entry in model["config"]["layers"]:
            kind, name = entry["class_name"], entry["config"]["name"]
            folder = {"TimeDistributed": "time_distributed"}.get(kind) or FOLDERS.get(kind, kind.lower())
            place = f"layers/{folder}_{used[folder]}" if used[folder] else f"layers/{folder}"
            used[folder] += 1
            place += {"TimeDistributed": "/layer"}.get(kind, "/cell" if kind in GATES else "")
            for index, array in enumerate(weights.get(name, {}).values()):
                file[f"{place}/vars/{index}"] = array
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("config.json", json.dumps({"module": "keras"} | model))
        archive.writestr("model.weights.h5", buffer.getvalue())
    return path


def write_legacy(path: Path, model: dict[str, Any], weights: Weights, version: str = "2.15.0") -> Path:
    """An ``.h5`` file; versions before 3 add ``:0`` to names."""
    mark = "" if version[0] == "3" else ":0"
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version
        file.attrs["model_config"] = json.dumps(model)
        for name, arrays in weights.items():
            group = file.create_group(f"model_weights/{name}")
            names = [f"{name}/cell/{item}{mark}" for item in arrays]
            group.attrs["weight_names"] = [item.encode() for item in names]
            for item, array in zip(names, arrays.values(), strict=True):
                group[item] = array
    return path
