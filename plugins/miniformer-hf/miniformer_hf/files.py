"""Reads and writes a folder of transformers: `config.json`, one or several `*.safetensors`, and `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from miniformer.checkpoint.atomic import reported, write_folder, write_json
from miniformer.checkpoint.can_make import check_can_make
from miniformer.checkpoint.file_names import check_length
from miniformer.checkpoint.store import read_weights
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import UserError
from miniformer.kernel.text_file import read_json

CONFIG, WEIGHTS, INDEX, TOKENIZER = "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
MARKS = ("pad", "bos", "eos", "mask")
OTHER_MARKS = {"cls": "[CLS]", "sep": "[SEP]"}
"""Marks of transformers that a miniformer tokenizer has no attribute for, with their usual tokens."""


class Checkpoint(NamedTuple):
    """The contents of a folder."""

    config: dict[str, Any]
    weights: dict[str, Tensor]


def read(folder: Path) -> Checkpoint:
    """The config and the weights of a folder.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    config = _json(folder / CONFIG, "a folder that save_pretrained of transformers wrote has one")
    files = [WEIGHTS]
    index: dict[str, str] = {}
    if (folder / INDEX).is_file():
        try:
            index = dict(_json(folder / INDEX, "")["weight_map"])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{folder / INDEX}: expected a 'weight_map' of names to files") from None
        files = sorted(set(index.values()))
    weights: dict[str, Tensor] = {}
    for file in files:
        path = folder / Path(str(file)).name
        if not path.is_file():
            raise UserError(f"{path}: no such file; only safetensors are read (save_pretrained of transformers writes them)")
        weights.update(read_weights(path))
    if index and (odd := sorted(set(index) ^ set(weights))):
        raise UserError(f"{folder / INDEX}: its names are not those in its files: {', '.join(odd[:8])}")
    return Checkpoint(config, weights)


def write(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], tokenizer: Path | None) -> None:
    """Write a folder that transformers reads, whole or not at all.

    Raises:
        RunError: the folder cannot be written.
    """
    def put(target: Path) -> None:
        with reported(target / WEIGHTS):
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, target / WEIGHTS,
                      metadata={"format": "pt"})
        write_json(target / CONFIG, dict(config))
        if tokenizer is not None:
            (target / TOKENIZER).write_bytes(tokenizer.read_bytes())
            write_json(target / TOKENIZER_CONFIG, _tokenizer_config(Tokenizer.load(tokenizer), config))

    write_folder(folder, put)


def tokenizer_of(folder: Path) -> Path | None:
    """The tokenizer file of a folder; None if it has none."""
    path = folder / TOKENIZER
    return path if path.is_file() else None


def free(folder: Path) -> Path:
    """Return `folder` if it can be written, which is tried: it does not exist, or it is empty.

    Raises:
        UserError: it exists and is not an empty folder, its name is too long, or nothing can be written there.
    """
    check_length(folder, "the new folder")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: exists already; name a new folder")
    check_can_make(folder / CONFIG, "folder")
    return folder


def full_precision(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of the model for these weights: the widest of theirs, and at least float32."""
    dtype = torch.float32
    for tensor in weights.values():
        dtype = torch.promote_types(dtype, tensor.dtype) if tensor.is_floating_point() else dtype
    return dtype


def _tokenizer_config(tokenizer: Tokenizer, config: Mapping[str, Any]) -> dict[str, Any]:
    """The `tokenizer_config.json` that transformers needs beside a tokenizer.json: the tokens with a special meaning."""
    backend = tokenizer.backend
    ids = {mark: getattr(tokenizer, f"{mark}_id") for mark in MARKS}
    end, added = config.get("eos_token_id"), backend.get_added_tokens_decoder()
    if (end in added and added[end].special) or ids["eos"] is None:  # the model's own end token counts, whatever its name
        ids["eos"] = end
    marks = {f"{mark}_token": backend.id_to_token(i) for mark, i in ids.items() if i is not None}
    marks |= {f"{mark}_token": name for mark, name in OTHER_MARKS.items() if backend.token_to_id(name) is not None}
    length = config.get("max_position_embeddings") or config.get("n_positions")
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, **marks}


def _json(path: Path, missing: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; {missing}")
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected an object; found {type(data).__name__}")
    return data
