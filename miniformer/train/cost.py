"""What training needs of memory, counted before there is a tensor. A run that cannot fit is refused with both numbers.

The count is one from below: what is refused could not have been trained. So the optimizer's state is what its recipe says at
least, and of the activations, which differ with kernels and precision, half is counted. What fits in principle and not into
what is free now gets a note.
"""

from __future__ import annotations

import torch

from miniformer.config.layer_pattern import LayerSpec
from miniformer.config.memory import Room, gib, gpu_room, machine_room
from miniformer.config.model_config import TransformerConfig
from miniformer.kernel.errors import SpecError
from miniformer.kernel.recipes import OptimizerRecipe
from miniformer.kernel.registry import current_registry
from miniformer.model.assembly import BlockAssembly

from .processes import launched
from .train_config import TrainConfig

SURE = 0.5
"""The part of the activations that any kernel keeps."""
WORTH = 2**28
"""Bytes of activations, roughly guessed, from which it is worth some milliseconds to count them."""


def room_for(config: TrainConfig) -> Room:
    """The memory in which each process of a run trains: of the GPUs, or its part of the machine's."""
    if config.gpus != 0 and torch.cuda.is_available():
        return gpu_room()
    processes = launched()
    return machine_room().shared_by(1 if processes is None else processes[0])


def check_room(config: TrainConfig, assembly: type[BlockAssembly], model: TransformerConfig, tokens: int) -> list[str]:
    """Refuse a run that cannot fit into memory.

    Args:
        config: the run.
        assembly, model: what it trains.
        tokens: in a batch, at least.

    Returns:
        A note, where memory that is in use now may be missing; otherwise none.

    Raises:
        SpecError: with what training needs and what there is.
    """
    needs = _of_weights(config, assembly, model)
    activations = tokens * activations_per_token(config, assembly, model, tokens)
    least = sum(needs.values()) + int(SURE * activations)
    if least < WORTH:
        return []
    room = room_for(config)
    if least > room.total:
        parts = [f"{gib(size)} for {name}" for name, size in needs.items() if size]
        if activations:
            parts.append(f"{gib(SURE * activations)} for activations of the {tokens:,} tokens of a batch")
        raise SpecError(f"training needs at least {gib(least)} ({', '.join(parts)}), and {room}; a smaller d_model, d_ff, "
                        "n_layers, vocab_size, max_seq_len or batch_size needs less")
    full = sum(needs.values()) + activations
    if full <= room.free:
        return []
    return [f"training needs about {gib(full)} of memory, and {gib(room.free)} is free now; a smaller batch_size or model, or "
            "activation_checkpointing, needs less"]


def _of_weights(config: TrainConfig, assembly: type[BlockAssembly], model: TransformerConfig) -> dict[str, int]:
    """Bytes of what training keeps for each weight, by name. Extensions may freeze weights, so these alone are sure then."""
    weights = assembly.least_numbers(model) * (8 if config.precision == 64 else 4)
    if config.extensions:
        return {"weights": weights}
    recipe = current_registry().load("optimizer", config.optimizer.name)
    states = recipe.state_numbers if issubclass(recipe, OptimizerRecipe) else 0
    return {"weights": weights, "gradients": weights, "the optimizer's state": states * weights}


def activations_per_token(config: TrainConfig, assembly: type[BlockAssembly], model: TransformerConfig, tokens: int) -> int:
    """Bytes of activations that each token of a batch adds; 0 where all of them together are small beside any memory."""
    if tokens * model.n_layers * (64 * model.d_model + 8 * model.d_ff) * 4 < WORTH:
        return 0
    outside, layers = 0, 0
    for entry in model.layers or (LayerSpec(),):
        pattern = entry.model_dump(exclude={"repeat"})
        one, two = (model.with_fields(layers=[{**pattern, "repeat": count}], n_layers=count).skeleton(assembly.assembly)
                    .activation_bytes_per_token() for count in (1, 2))
        layers += (two - one) * (entry.repeat if model.layers else model.n_layers)
        outside = max(outside, one - (two - one))
    size = outside + layers
    return size if config.precision in (32, 64) else size // 2
