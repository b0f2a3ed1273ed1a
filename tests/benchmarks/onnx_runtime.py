"""ONNX Runtime: `nanogpt` as a graph of ONNX operators, with the cache of keys and values as inputs and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .nanogpt import NanoGPT
from .peers import Write
from .sizes import Size

OPSET = 20  # has Gelu and LayerNormalization


class Graph:
    """Nodes and weights of a graph that is being written."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node; gives the name of its output, or of its outputs."""
        from onnx import helper

        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, value: Any) -> str:
        """A constant."""
        name = f"weight_{len(self.weights)}"
        self.weights[name] = np.ascontiguousarray(value.detach()) if isinstance(value, Tensor) else np.array(value)
        return name

    def linear(self, x: str, layer: torch.nn.Linear) -> str:
        y = self.add("MatMul", x, self.weight(layer.weight.T))
        return y if layer.bias is None else self.add("Add", y, self.weight(layer.bias))

    def norm(self, x: str, layer: torch.nn.LayerNorm) -> str:
        return self.add("LayerNormalization", x, self.weight(layer.weight), self.weight(layer.bias), epsilon=layer.eps, axis=-1)


def model_of(source: NanoGPT) -> bytes:
    """The graph of a decoder: ids `[B, T]`, positions `[T]`, mask to add `[T, S]`, caches `[B, H, P, E]`; logits, caches."""
    from onnx import TensorProto, helper, numpy_helper

    graph, dtype = Graph(), TensorProto.FLOAT
    heads = source.blocks[0].attention.n_heads
    width = source.tokens.weight.shape[1] // heads
    whole, inputs, outputs = graph.weight(np.array([0, 0, heads, width])), [], []
    table = graph.weight(source.tokens.weight)
    where = graph.weight(source.positions.weight)
    x = graph.add("Add", graph.add("Gather", table, "ids"), graph.add("Gather", where, "positions"))
    for i, block in enumerate(source.blocks):
        parts = graph.add("Split", graph.linear(graph.norm(x, block.attention_norm), block.attention.qkv), outputs=3, axis=-1,
                          num_outputs=3)
        q, k, v = (graph.add("Transpose", graph.add("Reshape", part, whole), perm=[0, 2, 1, 3]) for part in parts)
        for name, new in (("keys", k), ("values", v)):
            graph.nodes.append(helper.make_node("Concat", [f"past_{name}_{i}", new], [f"{name}_{i}"], axis=2))
            inputs.append(helper.make_tensor_value_info(f"past_{name}_{i}", dtype, ["B", heads, "P", width]))
            outputs.append(helper.make_tensor_value_info(f"{name}_{i}", dtype, ["B", heads, "S", width]))
        scores = graph.add("Mul", graph.add("MatMul", q, graph.add("Transpose", f"keys_{i}", perm=[0, 1, 3, 2])),
                           graph.weight(np.float32(width ** -0.5)))
        weights = graph.add("Softmax", graph.add("Add", scores, "mask"), axis=-1)
        mixed = graph.add("Transpose", graph.add("MatMul", weights, f"values_{i}"), perm=[0, 2, 1, 3])
        mixed = graph.add("Reshape", mixed, graph.weight(np.array([0, 0, heads * width])))
        x = graph.add("Add", x, graph.linear(mixed, block.attention.out))
        inner = graph.add("Gelu", graph.linear(graph.norm(x, block.ffn_norm), block.ffn.up))
        x = graph.add("Add", x, graph.linear(inner, block.ffn.down))
    last = graph.add("Gather", x, graph.weight(np.array(-1)), axis=1)
    logits = graph.linear(graph.norm(last, source.norm), source.head)
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    made = helper.make_graph(
        graph.nodes, "decoder",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["B", "T"]),
         helper.make_tensor_value_info("positions", TensorProto.INT64, ["T"]),
         helper.make_tensor_value_info("mask", dtype, ["T", "S"]), *inputs],
        [helper.make_tensor_value_info("logits", dtype, ["B", "V"]), *outputs],
        [numpy_helper.from_array(value, name) for name, value in graph.weights.items()])
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()


def decode(size: Size, length: int, threads: int) -> Write:
    """Greedy decoding of a new decoder; see `peers`."""
    return writer(NanoGPT(size, length), threads)


def writer(source: NanoGPT, threads: int) -> Write:
    """Greedy decoding of a decoder."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model_of(source), options, providers=["CPUExecutionProvider"])
    pasts = [one.name for one in session.get_inputs() if one.name.startswith("past_")]
    heads = source.blocks[0].attention.n_heads
    width = source.tokens.weight.shape[1] // heads

    def write(ids: Tensor, count: int) -> Tensor:
        written, new = [ids.numpy()], ids.numpy()
        caches = [np.zeros((len(ids), heads, 0, width), np.float32)] * len(pasts)
        seen = 0
        for _ in range(count):
            T = new.shape[1]
            mask = np.triu(np.full((T, seen + T), -np.inf, np.float32), k=seen + 1)
            logits, *caches = session.run(None, {"ids": new, "positions": np.arange(seen, seen + T), "mask": mask,
                                                 **dict(zip(pasts, caches, strict=True))})
            seen, new = seen + T, logits.argmax(axis=-1)[:, None]
            written.append(new)
        return torch.from_numpy(np.concatenate(written, axis=1))

    return write
