"""A small model for a task, in float64, so that a task's answers can be compared with computation by hand."""

import torch

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import Context
from miniformer.model.assemblies import assembly_for


def model_for(task, vocab_size, **fields):
    """A model with random weights, its head's matrix included, whatever that starts with."""
    torch.manual_seed(0)
    tokens = task.input_dim is None and task.n_outputs(vocab_size) == vocab_size
    outputs = {} if tokens else {"output_dim": task.n_outputs(vocab_size)}
    config = TransformerConfig(**{"vocab_size": vocab_size, "d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 16,
                                  "max_seq_len": 64, "causal": task.causal, "head": task.head, "input_dim": task.input_dim,
                                  **outputs, **fields})
    model = assembly_for(task.has_source)(config).double().eval()
    torch.nn.init.normal_(model.head.out.weight, std=0.5)
    return model


def run(model, batch, read):
    """What `read` makes of hidden states and head."""
    with torch.no_grad():
        return model.read(batch, readout=read)


def loss_of(model, task, batch):
    return run(model, batch, lambda hidden, head: task.loss(hidden, head, batch))


def predictions_of(model, task, batch):
    return run(model, batch, lambda hidden, head: task.predict(hidden, head, batch))


def measured(model, task, tokenizer, batches):
    """The task's metrics over some batches."""
    metrics = task.metrics(tokenizer)
    for batch in batches:
        run(model, batch, lambda hidden, head, batch=batch: task.update(
            metrics, hidden, head, batch, task.loss(hidden, head, batch)))
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def outputs_of(model, tokens):
    """The head's outputs `[O]` for one sequence by itself, pooled."""
    inputs = torch.as_tensor(tokens)[None]
    inputs = inputs if inputs.ndim == 2 else inputs.double()
    layout = Context.plain(inputs).layout
    with torch.no_grad():
        return model(inputs, readout=lambda hidden, head: head.summary(hidden, layout))[0]
