"""Promises of an attention with a state: a text that is fed in pieces, reordered or cut has the outputs of one whole pass."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.attention_harness import AttentionHarness
from miniformer.contracts.kit.case import Case, require, require_equal
from miniformer.contracts.kit.fed_state import FedState, empty_state, keeps_no_state
from miniformer.contracts.kit.properties import Broken, contract
from miniformer.contracts.kit.state_contents import bytes_held, require_true_size
from miniformer.kernel.errors import StateError
from miniformer.kernel.layout import Layout, latest
from miniformer.kernel.state import State


def _decoder(case: Case, **layout: object) -> tuple[AttentionHarness, Layout, Tensor]:
    """A causal attention in eval mode, a drawn layout, and tokens for it."""
    harness = AttentionHarness.drawn(case, causal=True, training=False)
    drawn = case.layout(**layout)
    return harness, drawn, case.tensor(*drawn.shape, harness.module.d_model)


@contract("attention", proves=["state"], skip=keeps_no_state)
def steps_give_the_whole(case: Case) -> None:
    """A text that is fed in pieces, of any lengths, has the outputs of one whole pass.

    In training: nothing shows; in use the model writes other texts than it was trained to write.

    Seen: nanoGPT#613, where outputs with a cache of keys and values differed.
    """
    harness, layout, x = _decoder(case)
    ends = case.draw("pieces", drawing.cuts(layout.shape[1]))
    with torch.no_grad():
        state = harness.module.init_state(*layout.shape)
        if state is None:  # this claims that no output depends on earlier tokens
            whole = harness(x, layout)
            for t in range(layout.shape[1]):
                piece = Layout(layout.positions[:, t:t + 1], layout.documents[:, t:t + 1])
                alone = harness.module(x[:, t:t + 1], harness.context(piece))
                require_equal(alone[piece.real], whole[:, t:t + 1][piece.real],
                              "init_state gives None; a token alone and after others")
            return
        pieces, whole = harness.steps(x, layout, ends, state), harness(x, layout)
        require_equal(pieces[layout.real], whole[layout.real], f"fed in pieces that end at {ends} and at once")
        require(state.length == layout.shape[1], f"the state says it has seen {state.length} columns of {layout.shape[1]}")


@contract("attention", skip=keeps_no_state, examples=0.5)
def reordered_rows_go_on(case: Case) -> None:
    """After rows of a state are picked and reordered, the next outputs are those of these rows.

    In training: nothing shows; beam search continues each text from the state of another.

    Seen: transformers#46612, where reordering was silently skipped for models with other states than keys and values.
    """
    harness, layout, x = _decoder(case, kinds=[drawing.FULL, drawing.LEFT, drawing.HOLES, drawing.PACKED])
    B, T = layout.shape
    index = torch.tensor(case.draw("rows kept", st.lists(st.integers(0, B - 1), min_size=1, max_size=4)))
    with torch.no_grad():
        state = empty_state(harness, B, T + 1)
        harness.steps(x, layout, [T], state)
        state.reorder(index)
        longer = layout.append_columns(layout.next_position()).rows(index)
        x = torch.cat([x[index], case.tensor(len(index), 1, x.shape[2])], dim=1)
        next_token = harness.steps(x, longer, [T + 1], state, start=T)
        require_equal(next_token, harness(x, longer)[:, T:], f"after keeping rows {index.tolist()}")


@contract("attention", skip=keeps_no_state)
def cut_states_go_on(case: Case) -> None:
    """A state that declares `truncates` can be cut to an earlier length and continued from there. Any other state refuses to be
    cut, and is unchanged after that.

    In training: nothing shows; speculative decoding continues from tokens that it had taken back.

    Seen: transformers#46937, where models with other states silently diverged in assisted generation.
    """
    harness, layout, x = _decoder(case, kinds=[drawing.FULL, drawing.LEFT])
    T = layout.shape[1]
    with torch.no_grad():
        state, whole = empty_state(harness, layout.shape[0], T), harness(x, layout)
        keep = case.draw("kept columns", st.integers(_earliest_length(state, T), T))
        if not state.truncates:
            fed = max(1, T - 1)
            harness.steps(x, layout, [fed], state)
            if keep < fed:
                try:
                    state.truncate(keep)
                except StateError:
                    pass
                else:
                    raise Broken("its state does not declare `truncates`, and does not refuse to be cut")
            require(state.length == fed, f"after {fed} columns and a refused cut, the state says {state.length}")
            if fed < T:
                rest = harness.steps(x, layout, [T], state, start=fed)
                require_equal(rest[layout.real[:, fed:]], whole[:, fed:][layout.real[:, fed:]], "after a refused cut")
            return
        # other tokens first: a state that is cut to nothing must forget them
        harness.steps(case.tensor(*x.shape), layout, [T], state)
        if state.min_length == 0:
            state.truncate(0)
        else:
            state = empty_state(harness, layout.shape[0], T)
        harness.steps(x, layout, [T], state)
        state.truncate(keep)
        require(state.length == keep, f"cut to {keep} columns, the state says {state.length}")
        if keep < T:
            rest = harness.steps(x, layout, [T], state, start=keep)
            require_equal(rest[layout.real[:, keep:]], whole[:, keep:][layout.real[:, keep:]],
                          f"after being cut to {keep} columns")


@contract("attention", skip=keeps_no_state, examples=0.2)
def long_texts_go_on(case: Case) -> None:
    """A text of hundreds of columns that is fed in pieces, with cuts in between, has the outputs of one whole pass. So it has
    if a state that declares `grows` is made for fewer columns and grows as they come.

    In training: nothing shows; in use a text goes wrong once it is longer than a buffer, a window or a chunk.

    Seen: transformers#37574, keys and values that went wrong when a text reached the size of a sliding window.
    """
    harness = AttentionHarness.drawn(case, causal=True, training=False)
    prompt, more = case.draw("prompt", st.integers(150, 300)), case.draw("tokens after it", st.integers(1, 100))
    shorter = case.draw("the shorter prompt", st.integers(1, 20) | st.just(prompt))
    layout = Layout.from_lengths([prompt, shorter], prompt, case.choose("padding", ["left", "right"]))
    following = layout.next_position()
    layout = layout.append_columns(replace(following, positions=following.positions + torch.arange(more),
                                           documents=following.documents.expand(-1, more)))
    T = prompt + more
    x, ends = case.tensor(2, T, harness.module.d_model), case.draw("pieces", drawing.cuts(T))
    with torch.no_grad():
        state, start, outputs = empty_state(harness, 2, T), 0, []
        if state.grows:
            state = empty_state(harness, 2, ends[0])
        for end in ends:
            if state.grows and end > ends[0]:
                state.grow(end)
            outputs.append(harness.steps(x, layout, [end], state, start=start))
            if state.truncates:
                keep = max(start, end - 8 if state.rewind_limit is None else _earliest_length(state, end))
                state.truncate(keep)
                outputs[-1] = outputs[-1][:, :keep - start]
                outputs.append(harness.steps(x, layout, [end], state, start=keep))
            start = end
        real = layout.real
        in_pieces, whole = torch.cat(outputs, dim=1), harness(x, layout)
        require_equal(in_pieces[real], whole[real], f"fed in pieces that end at {ends} and at once")


def _earliest_length(state: State, length: int) -> int:
    """The smallest length to which a state that has seen `length` columns promises to go back."""
    return 0 if state.rewind_limit is None else max(0, length - state.rewind_limit)


@contract("attention", proves=["joins"], examples=0.7,
          skip=lambda s: keeps_no_state(s) or ("" if s.joins else "its state takes in no rows"))
def joined_rows_go_on(case: Case) -> None:
    """After the rows of one state join another state, all rows have the outputs that they have alone, although the two states
    may have seen different numbers of columns.

    In training: nothing shows; with continuous batching, a text that joins a batch is continued from the wrong columns.
    """
    harness = AttentionHarness.drawn(case, causal=True, training=False)
    row_lengths = st.lists(st.integers(1, 4), min_size=1, max_size=2)
    lengths = [case.draw(name, row_lengths) for name in ("tokens", "tokens of the joining rows")]
    case.story["padding"] = "left"
    layouts = [Layout.from_lengths(rows, max(rows), "left") for rows in lengths]
    columns, D = max(map(max, lengths)), harness.module.d_model
    texts = [case.tensor(*layout.shape, D) for layout in layouts]
    with torch.no_grad():
        states = [empty_state(harness, *layout.shape) for layout in layouts]
        for state, layout, x in zip(states, layouts, texts, strict=True):
            harness.steps(x, layout, [layout.shape[1]], state)
        states[0].join(states[1], columns, columns + 1)
        require(states[0].length == columns, f"joined in {columns} columns, the state says {states[0].length}")
        both = layouts[0].stack_rows(layouts[1], columns)
        x = torch.cat([latest(text, 1, columns) for text in texts])
        longer, x = both.append_columns(both.next_position()), torch.cat([x, case.tensor(len(x), 1, D)], dim=1)
        next_token = harness.steps(x, longer, [columns + 1], states[0], start=columns)
        require_equal(next_token, harness(x, longer)[:, columns:], "after the rows of another state joined")


@contract("attention", proves=["static"], examples=0.7,
          skip=lambda s: keeps_no_state(s) or ("" if s.static else "its state is not made for compiled steps"))
def static_steps_go_on(case: Case) -> None:
    """Static steps, of one token each, have the outputs of usual steps, and usual steps can follow them. In a static step,
    which can be part of a compiled graph, a state writes into its existing tensors and makes none anew.

    In training: nothing shows; with `generate --compile` a text goes wrong after its first token.
    """
    harness = AttentionHarness.drawn(case, causal=True, training=False)
    layout, steps = case.layout(kinds=[drawing.FULL, drawing.LEFT]), case.draw("static steps", st.integers(1, 3))
    (B, T), empty = layout.shape, case.draw("columns that stay empty", st.integers(0, 2))
    numbers = torch.Generator().manual_seed(case.draw("numbers", drawing.seeds))
    with torch.no_grad():
        text = FedState(harness, B, T + steps + empty + 1, numbers)
        text.feed(layout)
        if text.static_steps(steps, T + steps + empty):
            text.check()
            text.feed(text.later_columns(1))


@contract("attention", skip=keeps_no_state)
def states_are_separate(case: Case) -> None:
    """Two states of one module do not change each other, and decoding with a state does not change a pass without one.

    In training: validation in the middle of a run changes the run; in use, two users read each other's text.

    Seen: executorch#18864, where caches shared by methods that should have their own gave garbage.
    """
    harness, layout, x = _decoder(case, kinds=[drawing.FULL], max_rows=2)
    B, T = layout.shape
    texts = (x, case.tensor(*x.shape))
    outputs: tuple[list[Tensor], list[Tensor]] = ([], [])
    keys = None
    with torch.no_grad():
        whole = [harness(text, layout) for text in texts]
        states = [empty_state(harness, B, T) for _ in texts]
        for t in range(T):
            piece = Layout(layout.positions[:, t:t + 1], layout.documents[:, t:t + 1], padded=False, packed=False)
            keys = piece if keys is None else keys.append_columns(piece)
            for text, state, steps in zip(texts, states, outputs, strict=True):
                steps.append(harness.module(text[:, t:t + 1], harness.context(piece, keys), state))
        for steps, expected in zip(outputs, whole, strict=True):
            require_equal(torch.cat(steps, dim=1), expected, "one text beside another that is decoded with the same module")
        require_equal(harness(x, layout), whole[0], "a whole pass after decoding")


@contract("attention", skip=keeps_no_state)
def a_state_tells_its_size(case: Case) -> None:
    """The `nbytes` of a state are the bytes that its tensors hold. It takes its memory when it is made, or as it is fed; fed
    column by column, it then holds at most twice what it would hold if fed at once. A column that does not fit is refused,
    which leaves the state unchanged.

    In training: nothing shows; in use memory runs out in the middle of a text.
    """
    harness, _, x = _decoder(case, kinds=[drawing.FULL], max_length=12)
    B, T, _ = x.shape
    layout = Layout.full(B, T)
    with torch.no_grad():
        state, fed_at_once = empty_state(harness, B, T), empty_state(harness, B, T)
        require(state.length == 0, f"an empty state says it has seen {state.length} columns")
        require_true_size(state)
        before = bytes_held(state)
        harness.steps(x, layout, [T], fed_at_once)
        harness.steps(x, layout, range(1, T + 1), state)
        for one in (state, fed_at_once):
            require_true_size(one)
        after, at_once = bytes_held(state), bytes_held(fed_at_once)
        require(after <= max(before, 2 * at_once), f"made with {before} bytes, it holds {after} for {T} columns that came one "
                                                   f"by one, and {at_once} for those that came at once")
        more = layout.append_columns(layout.next_position())
        longer = torch.cat([x, case.tensor(B, 1, x.shape[2])], dim=1)
        try:
            next_token = harness.steps(longer, more, [T + 1], state, start=T)
        except StateError:
            require(state.length == T, f"after it refused a column that did not fit, it says {state.length} columns of {T}")
        else:
            require_equal(next_token, harness(longer, more)[:, T:],
                          "one column more than it was made for, which it did not refuse")
