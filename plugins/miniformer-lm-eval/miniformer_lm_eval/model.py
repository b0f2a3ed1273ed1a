"""`MiniformerLM`: a trained model for the LM Evaluation Harness. It scores texts by log-likelihood, and writes texts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from miniformer.decoding.beam_search import Beams
from miniformer.decoding.sampling import UNFILTERED, Sampling
from miniformer.inference.engine import Answer, Engine
from miniformer.inference.pipeline import Pipeline
from miniformer.kernel import Batch, Layout, Source
from miniformer.kernel.errors import UserError, did_you_mean

log = logging.getLogger(__name__)
HARNESS_DEVICE = "cuda:0"
Score = tuple[float, bool]
"""The log-probability of a continuation, in nats, and whether greedy decoding writes that continuation."""
Question = tuple[tuple[str, str] | None, list[int], list[int]]
"""A context and its continuation: both as texts where the score is to be cached, else None; and each as tokens."""


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """One row of a batch that is scored.

    Attributes:
        read: the tokens that the decoder reads. After each of the last `len(target)` of them comes a token of `target`.
        target: the tokens to score.
        source: of an encoder-decoder, the tokens that the encoder reads.
    """

    read: list[int]
    target: list[int]
    source: list[int] | None = None


@register_model("miniformer")
class MiniformerLM(TemplateLM):
    """A model that writes: a decoder, or an encoder-decoder, which is given a context as its source.

    Texts are encoded as the model's task encodes them: with the start token first, where its tokenizer has one.

    Args:
        run: a run folder, a folder with a saved model, or a pipeline.
        batch_size: rows that go through the model together.
        device: where it runs, as torch names it; None: where the pipeline is, or on a GPU if there is one.
        max_gen_toks: the most tokens of a text, for tasks that do not set it.

    Raises:
        UserError: there is no usable model, it does not write, or an argument is out of range.
    """

    def __init__(self, run: str | Path | Pipeline, *, batch_size: int | str = 16, device: str | None = None,
                 max_gen_toks: int = 256) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size: expected a number, at least 1; found {batch_size!r}")
        self.pipeline = run if isinstance(run, Pipeline) else Pipeline.load(run)
        self.model, self.batch_size, self.max_gen_toks = self.pipeline.model, int(batch_size), max_gen_toks
        if not self.model.generates:
            raise UserError("this model does not predict the next token, so texts have no likelihood; expected one that was "
                            "trained to write, as by language-modeling or seq2seq")
        if device is not None:
            try:
                self.model.to(torch.device(device))
            except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
                raise UserError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
        self._device = next(self.model.parameters()).device
        self.backend = "seq2seq" if self.model.has_source else "causal"  # how the harness cuts pairs into tokens
        self.engine = Engine(self.model, self.pipeline.tokenizer, batch_size=self.batch_size,
                             encode=self.pipeline.trained.prompt)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> MiniformerLM:
        """The model of `--model_args`, and of arguments that the harness adds; its device is cuda:0 unless one was named."""
        added = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if added.get("device") == HARNESS_DEVICE and not torch.cuda.is_available():
            log.warning("there is no %s; the model runs on the CPU", added.pop("device"))
        return cls(**arg_dict, **added)

    @property
    def max_length(self) -> int:
        """The most tokens that the model reads: as many as in training, even if its positions could reach further."""
        return self.model.config.max_seq_len

    @property
    def eot_token_id(self) -> int:
        """The end token, or the start token where there is no end token."""
        return self._marker(self.engine.eos_id, self.pipeline.tokenizer.bos_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context: the start token, or the end token where there is no start token."""
        return self._marker(self.pipeline.tokenizer.bos_id, self.engine.eos_id)

    @property
    def tokenizer_name(self) -> str:
        """A name made from the tokenizer's content, for the harness's caches of requests."""
        return "miniformer-" + hashlib.sha256(self.pipeline.tokenizer.to_json().encode()).hexdigest()[:16]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Refused: a model of miniformer has no chat template."""
        raise UserError("models of miniformer have no chat template; leave out apply_chat_template")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, as the model reads a prompt; with `add_special_tokens` False, of the text alone."""
        if add_special_tokens is False:
            ids: list[int] = self.pipeline.tokenizer.backend.encode(string, add_special_tokens=False).ids
            return ids
        return self.pipeline.trained.prompt(string)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text after `prefix_token_id`, in nats.

        Longer texts go through the model in windows of `max_length` tokens, and each token is scored once. The last window is
        as full as the others, and scores only the tokens that they have not scored.

        Raises:
            UserError: the model is an encoder-decoder, which scores answers.
        """
        if self.model.has_source:
            raise UserError("an encoder-decoder scores an answer to a source; it gives no likelihood of a text alone "
                            "(loglikelihood_rolling)")
        windows: list[Question] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm), strict=True):
            totals[i] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that the model writes after each context, up to a stop string; greedily unless the task draws.

        Contexts that are too long lose their start (see `Engine.encode`). Besides `until` and `max_gen_toks`, settings are
        `num_beams` and the fields of `Sampling`. A filter that a task does not set is off.

        Raises:
            UserError: a setting does not exist or is out of range.
        """
        places_by_settings: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            places_by_settings.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm or None, desc="texts") as bar:
            for settings, places in places_by_settings.items():
                answers = self._written([requests[i].args[0] for i in places], json.loads(settings))
                for i, answer in zip(places, answers, strict=True):
                    texts[i] = answer.text
                    self.cache_hook.add_partial("generate_until", requests[i].args, answer.text)
                    bar.update()
        return texts

    def _written(self, prompts: Sequence[str], settings: Mapping[str, Any]) -> Iterator[Answer]:
        left: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), self.max_gen_toks))
        limits = {"stop": left.pop("until"), "max_new_tokens": left.pop("max_gen_toks"), "truncate": True}
        beams, temperature = left.pop("num_beams", 1), left.pop("temperature", UNFILTERED.temperature)
        sampling = {"temperature": temperature if left.pop("do_sample") else 0.0, "top_k": UNFILTERED.top_k,
                    "top_p": UNFILTERED.top_p, **left}
        known = [name for name in Sampling.__dataclass_fields__ if name != "processors"]
        if unknown := [name for name in sampling if name not in known]:
            raise UserError(f"generation_kwargs: there is no {unknown[0]!r}{did_you_mean(unknown[0], known)}; there are until, "
                            f"max_gen_toks, do_sample, num_beams, {', '.join(known)}")
        if beams == 1:
            return self.engine.generate(prompts, Sampling(**sampling), **limits)
        return (answers[0] for answers in self.engine.search(prompts, Beams(beams), Sampling(**sampling), **limits))

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of context and continuation. Where one token would span both, the continuation is encoded by itself."""
        context_ids, ids = super()._encode_pair(context, continuation)
        return context_ids, ids or self.tok_encode(continuation, add_special_tokens=False)

    def _loglikelihood_tokens(self, requests: Sequence[Question], disable_tqdm: bool = False, **_: Any) -> list[Score]:
        rows = [self._row(context, target) for _, context, target in requests]
        if cut := sum(len(context) > self._room(target) for _, context, target in requests):
            log.warning("%d of %d contexts are longer than the %d tokens that the model reads, and lost their start",
                        cut, len(requests), self.max_length)
        scores: list[Score] = [(0.0, True)] * len(requests)  # of a continuation without tokens
        order = sorted((i for i, row in enumerate(rows) if row.target), key=lambda i: -len(rows[i].source or rows[i].read))
        with tqdm(total=len(order), disable=disable_tqdm or None, desc="log-likelihoods") as bar:
            for start in range(0, len(order), self.batch_size):
                places = order[start:start + self.batch_size]
                for i, score in zip(places, self._scores([rows[i] for i in places]), strict=True):
                    scores[i] = score
                    if (texts := requests[i][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, score)
                bar.update(len(places))
        return scores

    def _row(self, context: list[int], target: list[int]) -> ScoredRow:
        """The row that scores `target` after `context`; a context that is too long loses its start."""
        if len(target) > self.max_length:
            raise UserError(f"a continuation has {len(target)} tokens, and this model reads at most max_seq_len = "
                            f"{self.max_length}; such texts can be scored by loglikelihood_rolling")
        context = (context or [self.prefix_token_id])[-self._room(target):]
        if self.model.has_source:
            return ScoredRow([self.model.config.bos_id, *target[:-1]], target, source=context)
        return ScoredRow([*context, *target[:-1]], target)

    def _room(self, target: list[int]) -> int:
        """The most tokens of a context: the model also reads all of `target` but the last."""
        return self.max_length if self.model.has_source else self.max_length + 1 - len(target)

    @torch.inference_mode()
    def _scores(self, rows: Sequence[ScoredRow]) -> list[Score]:
        """The scores of rows, from one pass through the model. The head is used only where a target follows."""
        tokens_BT, layout = _padded([row.read for row in rows])
        columns_T = torch.arange(tokens_BT.shape[1])
        starts_B, ends_B = torch.tensor([(len(row.read) - len(row.target), len(row.read)) for row in rows]).unbind(dim=1)
        before_target_BT = ((columns_T >= starts_B[:, None]) & (columns_T < ends_B[:, None])).to(self.device)
        sources = [row.source for row in rows if row.source is not None]
        batch = Batch(tokens_BT, layout, {}, Source(*_padded(sources)) if sources else None).to(self.device)
        logits_NV: Tensor = self.model.read(batch, readout=lambda hidden, head: head(hidden, before_target_BT))
        targets_N = torch.tensor([token for row in rows for token in row.target], device=self.device)
        wide_NV = logits_NV.log_softmax(dim=-1, dtype=torch.promote_types(logits_NV.dtype, torch.float32))
        logprobs_N = wide_NV.gather(1, targets_N[:, None])[:, 0].cpu()
        greedy_N = (logits_NV.argmax(dim=-1) == targets_N).cpu()
        sizes = [len(row.target) for row in rows]
        return [(float(logprobs.sum()), bool(greedy.all()))
                for logprobs, greedy in zip(torch.split(logprobs_N, sizes), torch.split(greedy_N, sizes), strict=True)]

    @staticmethod
    def _marker(*ids: int | None) -> int:
        for i in ids:
            if i is not None:
                return i
        raise UserError("this model's tokenizer has neither a start nor an end token, so a text without context has no "
                        "likelihood")


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Layout]:
    """Rows of tokens as `[B, T]`, padded on the right, and their layout."""
    return (pad_sequence([torch.tensor(row) for row in rows], batch_first=True),
            Layout.from_lengths([len(row) for row in rows]))
