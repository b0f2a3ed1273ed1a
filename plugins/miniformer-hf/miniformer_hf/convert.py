"""Import and export: a model of miniformer from a folder of transformers, and the reverse."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from miniformer.checkpoint.store import read_model, unshared, write_model
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import Task, UserError, build, current_registry, resolve
from miniformer.kernel.errors import did_you_mean
from miniformer.model.assemblies import assembly_of
from miniformer.model.assembly import BlockAssembly

from . import bert, files
from .architecture import REGRESSION, Architecture
from .bert_parts import PooledHead
from .gpt2 import GPT2
from .llama import LLAMA
from .pattern import MatchResult, Unsupported
from .t5 import T5
from .weights import PARTS, expand, to_ours, to_theirs

ARCHITECTURES = {architecture.name: architecture for architecture in (GPT2, LLAMA, bert.MASKED, bert.SEQUENCE, bert.TOKENS, T5)}
OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
MAX_LISTED = 3
"""How many misfits an error lists for each architecture."""

logger = logging.getLogger(__name__)


def import_model(folder: str | Path) -> BlockAssembly:
    """The model in a folder that `save_pretrained` of transformers wrote, in eval mode.

    Weights of less than 32 bits become float32; float64 stays.

    Raises:
        UserError: files are missing or damaged, miniformer cannot represent the config, or the weights do not fit the config.
    """
    checkpoint = files.read(Path(folder))
    return _import(_architecture(checkpoint.config, Path(folder)), checkpoint, Path(folder))


def import_folder(folder: str | Path, out: str | Path) -> BlockAssembly:
    """Make `out`, a folder that miniformer loads, generates with and inspects, from a folder of transformers.

    If there is no `tokenizer.json`, `from_pretrained` can read `out`, but commands that need a tokenizer cannot.

    Raises:
        UserError: as `import_model`; or `out` exists, or the tokenizer has more tokens than the model.
        RunError: `out` cannot be written.
    """
    folder, out = Path(folder), files.free(Path(out))
    checkpoint = files.read(folder)
    architecture = _architecture(checkpoint.config, folder)
    model = _import(architecture, checkpoint, folder)
    config: dict[str, Any] = {"assembly": model.assembly, "model": model.config.model_dump(mode="json")}
    text = None
    if (path := files.tokenizer_of(folder)) is None:
        logger.warning("%s: no %s (save the fast tokenizer there); the model is written without a tokenizer", folder,
                       files.TOKENIZER)
    else:
        text, tokenizer = path.read_text(encoding="utf-8-sig"), Tokenizer.load(path)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(f"{path}: counted up to its highest id, {tokenizer.vocab_size} tokens, and the model has "
                            f"{model.config.vocab_size}")
        spec = _task(architecture, checkpoint.config, folder / files.CONFIG)
        learnt = dict(build(Task, spec).fit_tokenizer(tokenizer))
        config["task"] = resolve("task", {**spec, **learnt}).model_dump(mode="json")
    write_model(out, model.state_dict(), config, text)
    return model


def export_model(model: BlockAssembly, folder: str | Path, *, tokenizer: str | Path | None = None,
                 labels: Sequence[Any] = (), problem: str | None = None) -> None:
    """Make a folder that `from_pretrained` of transformers reads.

    Args:
        model: a model whose parts are those of a GPT-2, Llama, BERT or T5.
        folder: must not exist, or be empty.
        tokenizer: its `tokenizer.json`.
        labels: names of the outputs of a classifier, in their order.
        problem: the `problem_type` of a classifier; None: one label of several, or of a single output a number.

    Raises:
        UserError: the model fits none of them, and the message lists the parts that do not; or the folder exists.
        RunError: the folder cannot be written.
    """
    folder = files.free(Path(folder))
    results = [(architecture, architecture.find(model)) for architecture in ARCHITECTURES.values()]
    fitting = [(architecture, result) for architecture, result in results if not result.problems]
    if not fitting:
        raise UserError(_misfit(results))
    architecture, result = fitting[0]
    ours = unshared(model.state_dict())
    table = expand(architecture.weights, ours, model.config.n_layers)
    if unknown := sorted(set(ours) - {name for row in table for name in row.ours}):
        raise UserError(f"the model has parameters that {architecture.family} has not: {', '.join(unknown[:8])}")
    theirs = to_theirs(table, ours)
    config: dict[str, Any] = {"architectures": [architecture.name], "model_type": architecture.model_type,
                              **{name: value[0] if isinstance(value, tuple) else value
                                 for name, value in architecture.fixed.items()}, **result.fields}
    config["dtype"] = str(next(iter(ours.values())).dtype).removeprefix("torch.")
    if config.get("tie_word_embeddings") is False:  # then a reader looks for the matrix, even where it is the embedding
        for name, original in architecture.copies.items():
            if name == "lm_head.weight" and name not in theirs:
                theirs[name] = theirs[original].clone()
    if architecture.labels:
        names = [str(label) for label in labels] or [f"LABEL_{i}" for i in range(config.pop("num_labels"))]
        config.pop("num_labels", None)
        if len(names) != model.config.n_outputs:
            raise UserError(f"labels: {len(names)}, and the model has {model.config.n_outputs} outputs")
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
        if problem is not None:
            config["problem_type"] = problem
    if tokenizer is not None:
        config["pad_token_id"] = Tokenizer.load(tokenizer).pad_id
    files.write(folder, config, theirs, None if tokenizer is None else Path(tokenizer))


def export_folder(run: str | Path, folder: str | Path) -> BlockAssembly:
    """Make a folder of transformers from a run folder, or from a folder with a saved model.

    Raises:
        UserError: as `export_model`; or no model is in `run`, or an extension changed it.
        RunError: the folder cannot be written.
    """
    files.free(Path(folder))  # before a large model is read
    saved = read_model(Path(run))
    for name in saved.config.get("extensions", {}):
        extension = current_registry().load("extension", name)
        if hasattr(extension, "model_assembled") or hasattr(extension, "checkpoint_loaded"):
            raise UserError(f"{saved.folder}: extension {name!r} changed this model, and transformers knows nothing of it")
    model = assembly_of(saved.config.get("assembly", "transformer")).from_saved(saved)
    task = saved.config.get("task", {})
    problem = next((problem for problem, name in bert.SEQUENCE.problems.items() if name == task.get("name")), None)
    if problem == REGRESSION and isinstance(model.head, PooledHead):
        model.head.rescale(task.get("std") or 1.0, task.get("mean") or 0.0)
    export_model(model, folder, tokenizer=files.tokenizer_of(saved.folder), labels=task.get("labels", ()), problem=problem)
    return model


def _import(architecture: Architecture, checkpoint: files.Checkpoint, folder: Path) -> BlockAssembly:
    where = folder / files.CONFIG
    weights = _known(architecture, _named(architecture, checkpoint.weights), folder)
    if unknown := architecture.unknown(checkpoint.config):
        logger.warning("%s: fields that %s does not read: %s", where, architecture.family, ", ".join(unknown))
    try:
        config = architecture.config(architecture.fields(checkpoint.config, weights))
    except Unsupported as error:
        raise UserError(f"{where}: {error}") from None
    except UserError as error:
        raise UserError(f"{where}: miniformer cannot build this model: {error}") from None
    model = architecture.assembly(config).to(files.full_precision(weights))
    like = unshared(model.state_dict())
    table = expand(architecture.weights, like, config.n_layers)
    weights = _without_copies(architecture, weights, {name for row in table for name in row.theirs}, folder)
    model.load_state_dict(to_ours(table, weights, like, str(folder)), strict=False)
    return model.eval()


def _architecture(config: Mapping[str, Any], folder: Path) -> Architecture:
    names = config.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    listed = ", ".join(map(str, names)) or f"nothing (model_type {config.get('model_type')!r})"
    raise UserError(f"{folder / files.CONFIG}: architectures says {listed}"
                    f"{did_you_mean(listed, ARCHITECTURES)}; supported: {', '.join(ARCHITECTURES)}")


def _named(architecture: Architecture, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by their current full names: older files name norms differently, or leave out the prefix of the base."""
    renamed = {}
    for name, tensor in weights.items():
        for old, new in OLD_NAMES.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        renamed[name] = tensor
    if any(name.startswith(architecture.base) for name in renamed):
        return renamed
    heads = {part for row in architecture.weights for name in row.theirs if not name.startswith(architecture.base)
             for part in (name.format(p=p) for p in PARTS)}
    return {name if name in heads or name in architecture.copies else architecture.base + name: tensor
            for name, tensor in renamed.items()}


def _known(architecture: Architecture, weights: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The weights without those that are left out; a warning names those of them that hold something learnt."""
    remaining, left_out = dict(weights), dict[str, list[str]]()
    for name in weights:
        for pattern, what in architecture.left_out.items():
            if re.fullmatch(pattern, name):
                del remaining[name]
                left_out.setdefault(what, []).append(name)
    for what, names in left_out.items():
        if what:
            logger.warning("%s: left out, %s: %s", folder, what, ", ".join(names))
    return remaining


def _without_copies(architecture: Architecture, weights: Mapping[str, Tensor], expected: set[str],
                    folder: Path) -> dict[str, Tensor]:
    """The weights without copies of tensors that they are tied to.

    Raises:
        UserError: such a copy differs from the tensor that it is tied to.
    """
    remaining = dict(weights)
    for name, original in architecture.copies.items():
        if name in remaining and name not in expected:
            copy = remaining.pop(name)
            tied = remaining.get(original)
            if tied is not None and not (copy.shape == tied.shape and bool((copy == tied).all())):
                raise UserError(f"{folder}: {name} differs from {original}, and config.json says that they are one "
                                "(tie_word_embeddings)")
    return remaining


def _task(architecture: Architecture, config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The spec of the task that the model was trained for."""
    problem = architecture.problem_of(config)
    name = architecture.task if problem is None else architecture.problems[problem]
    if problem == REGRESSION:  # its output is the number itself
        return {"name": name, "mean": 0.0, "std": 1.0}
    spec = {"name": name, "labels": _labels(config)} if architecture.labels else {"name": name}
    try:
        build(Task, spec)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return spec


def _labels(config: Mapping[str, Any]) -> list[str]:
    """The labels of a classifier, in the order of its outputs."""
    named = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(2)}
    try:
        return [str(named[key]) for key in sorted(named, key=int)]
    except (TypeError, ValueError):
        raise UserError(f"id2label: expected an object of numbers to labels; found {named!r:.80}") from None


def _misfit(results: Sequence[tuple[Architecture, MatchResult]]) -> str:
    """The parts of a model that do not fit, by architecture, the nearest first; of several heads only the nearest is listed."""
    def distance(pair: tuple[Architecture, MatchResult]) -> tuple[bool, int]:
        problems = pair[1].problems
        return problems[0].where == "assembly", len(problems)

    lines: dict[str, str] = {}
    for architecture, result in sorted(results, key=distance):
        parts = [str(problem) for problem in result.problems[:MAX_LISTED]]
        if len(result.problems) > MAX_LISTED:
            parts.append(f"and {len(result.problems) - MAX_LISTED} more")
        lines.setdefault(architecture.model_type, f"{architecture.family}: {'; '.join(parts)}")
    return "\n  ".join(["this model fits no architecture that can be exported:", *lines.values()])

