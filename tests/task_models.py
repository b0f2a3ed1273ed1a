"""A small model for a task, as the contract kit makes it, so that a task's answers can be compared with computation by hand."""

import torch

from miniformer.contracts.kit.task_harness import loss_of, model_for, predictions_of
from miniformer.contracts.kit.task_harness import metrics_of as measured
from miniformer.kernel import Context

__all__ = ["loss_of", "measured", "model_for", "outputs_of", "predictions_of"]


def outputs_of(model, tokens):
    """The head's outputs `[O]` for one sequence by itself, pooled."""
    inputs = torch.as_tensor(tokens)[None]
    inputs = inputs if inputs.ndim == 2 else inputs.double()
    layout = Context.plain(inputs).layout
    with torch.no_grad():
        return model(inputs, readout=lambda hidden, head: head.summary(hidden, layout))[0]
