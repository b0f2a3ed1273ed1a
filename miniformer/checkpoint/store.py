"""A saved model: a folder with `config.json`, `model.safetensors`, `manifest.json` and, after training, `tokenizer.json`.

The manifest holds the SHA-256 of each file, because weight formats do not check their own payload: so a flipped bit is found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniformer.kernel.errors import UserError
from miniformer.kernel.hooks import activate

from .atomic import reported, settled, write_folder, write_json
from .file_names import is_file, is_folder
from .missing import BEST as BEST
from .missing import CONFIG as CONFIG
from .missing import WEIGHTS as WEIGHTS
from .missing import why_no_model
from .provenance import provenance

if TYPE_CHECKING:
    from torch import Tensor, nn

TOKENIZER, MANIFEST = "tokenizer.json", "manifest.json"
KINDS: dict[str, tuple[type, ...]] = {"model": (dict,), "task": (str, dict), "assembly": (str,), "extensions": (dict,),
                                      "providers": (dict,)}
"""The fields of `config.json`, with the types that they may have. All but the model may be missing."""


@dataclass(frozen=True, slots=True)
class SavedModel:
    """The folder of a saved model, whose files have been checked, and the data of its `config.json`."""

    folder: Path
    config: dict[str, Any]


def write_model(folder: Path, weights: Mapping[str, Tensor], config: dict[str, Any], tokenizer: str | None = None) -> None:
    """Write a model to `folder`, whole or not at all.

    Args:
        folder: replaced if it exists.
        weights: a state dict; of several names for one tensor, the first is written.
        config: JSON data, to which the packages of the components are added.
        tokenizer: the text of `tokenizer.json`.

    Raises:
        WriteError: the folder cannot be written.
    """
    from safetensors.torch import save_file

    def write(target: Path) -> None:
        with reported(target / WEIGHTS):
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in unshared(weights).items()},
                      target / WEIGHTS, metadata={"format": "pt"})
        write_json(target / CONFIG, {**config, **provenance(config)})
        if tokenizer is not None:
            with reported(target / TOKENIZER):
                (target / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        write_json(target / MANIFEST, {file.name: digest(file) for file in sorted(target.iterdir())})

    write_folder(folder, write)


def read_model(path: Path) -> SavedModel:
    """Read and check the saved model in folder `path`, or the best model of run folder `path`.

    Raises:
        UserError: no saved model is there, or a file is missing or damaged.
    """
    best = path / BEST
    folder = settled(best if is_folder(best.parent) else path)
    if not is_file(folder / CONFIG):
        raise UserError(f"{path}: {why_no_model(path)}")
    if missing := [name for name in (MANIFEST, WEIGHTS) if not is_file(folder / name)]:
        raise UserError(f"{folder}: cannot be read as a saved model: there is no {' and no '.join(missing)} in it")
    manifest, config = read_object(folder / MANIFEST), read_object(folder / CONFIG)
    try:
        for name, expected in manifest.items():
            file = folder / Path(name).name
            if not is_file(file):
                raise UserError(f"{folder}: cannot be read as a saved model: there is no {name} in it, which {MANIFEST} names")
            if digest(file) != expected:
                raise UserError(f"{folder / name}: damaged: its SHA-256 is not the one in {MANIFEST}")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be read as a saved model: {error}") from error
    if WEIGHTS not in manifest or "model" not in config:
        raise UserError(f"{folder}: cannot be read as a saved model: {MANIFEST} names no {WEIGHTS}, or {CONFIG} no model")
    for name, kinds in KINDS.items():
        if not isinstance(config.get(name, kinds[0]()), kinds):
            expected = " or ".join("an object" if kind is dict else "a name" for kind in kinds)
            raise UserError(f"{folder / CONFIG}: field {name!r}: expected {expected}; found {json.dumps(config[name])[:80]}")
    return SavedModel(folder, config)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a saved model or of its run.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict):
            raise ValueError(f"expected a JSON object; found {json.dumps(data)[:80]}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else f"not JSON: {error}"
        raise UserError(f"{path}: cannot be read as a saved model: {reason}") from None
    return data


def restore(module: nn.Module, saved: SavedModel) -> None:
    """Turn a newly built `module` into the saved one: apply the extensions that shaped it, then load its weights.

    Raises:
        UserError: an extension is not installed, or the weights do not fit.
    """
    hooks = activate(saved.config.get("extensions", {})).hook
    hooks.model_assembled(model=module)
    load_weights(module, saved)
    hooks.checkpoint_loaded(folder=saved.folder, model=module)


def load_weights(module: nn.Module, saved: SavedModel) -> None:
    """Load the saved weights into `module`, which is first converted to the file's float type, if the file has only one.

    Raises:
        UserError: the file is damaged, or names, shapes or kinds of numbers differ; the text lists them in both directions.
    """
    weights = read_weights(saved.folder / WEIGHTS)
    expected = unshared(module.state_dict())
    problems = [f"missing in the file: {name}" for name in expected if name not in weights]
    problems += [f"unknown to the model: {name}" for name in weights if name not in expected]
    both = [(name, weights[name], tensor) for name, tensor in expected.items() if name in weights]
    problems += [f"{name}: {list(read.shape)} in the file, {list(tensor.shape)} in the model"
                 for name, read, tensor in both if read.shape != tensor.shape]
    problems += [f"{name}: {_dtype(read)} in the file, {_dtype(tensor)} in the model"
                 for name, read, tensor in both if not _holds(tensor, read)]
    if problems:
        more = [f"and {len(problems) - 8} more"] if len(problems) > 8 else []
        raise UserError("\n  ".join([f"{saved.folder / WEIGHTS} does not fit the model:", *problems[:8], *more]))
    dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        module.to(dtype=dtypes.pop())
    module.load_state_dict(weights, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors.

    Raises:
        UserError: the file cannot be read, or is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    try:
        if any("\ud800" <= character <= "\udfff" for character in str(path)):  # bytes that are not UTF-8, which it refuses
            return load(path.read_bytes())
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError, MemoryError) as error:
        # what is no such file, or says sizes and types that there cannot be, is refused by one library or another
        raise UserError(f"{path}: cannot be read as safetensors: {' '.join(str(error).split())[:200]}") from error


def _holds(tensor: Tensor, read: Tensor) -> bool:
    """Whether a tensor of the model can hold numbers of the file's type: each kind its own, but floats of any usual width."""
    wide = read.dtype.is_floating_point and read.element_size() > 1
    return read.dtype == tensor.dtype or (wide and tensor.dtype.is_floating_point and tensor.element_size() > 1)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def unshared(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop from a state dict the second and later names of a shared tensor, such as a tied head's."""
    first_names: dict[Any, str] = {}
    unique = {}
    for name, tensor in weights.items():
        # empty and meta tensors have no address of their own, so each counts by its name
        has_address = tensor.numel() and tensor.device.type != "meta"
        key = (tensor.data_ptr(), tensor.shape, tensor.stride()) if has_address else name
        if first_names.setdefault(key, name) == name:
            unique[name] = tensor
    return unique


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
