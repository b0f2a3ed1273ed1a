"""Every registered attention with every registered position encoding, in both directions: it keeps what a model promises,
or it is refused with a sentence. A component that is added takes part by itself."""

from itertools import pairwise, product

import pytest
import torch
from depth import every, rarely

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import Context, Layout, Registry, SpecError, StateError, discover
from miniformer.model.transformer import Transformer

V, T = 11, 6
ENTRIES = Registry(discover(plugins="none")).entries()
ATTENTIONS, POSITIONS = ([entry.name for entry in ENTRIES if entry.kind == kind] for kind in ("attention", "position"))


def config(attention, position, causal):
    return TransformerConfig(vocab_size=V, d_model=16, n_heads=2, n_layers=2, max_seq_len=16, attention=attention,
                             position=position, causal=causal)


def outcome(*combination):
    """The sentence that refuses a combination; "" if it is allowed."""
    try:
        config(*combination)
    except SpecError as error:
        return str(error)
    return ""


OUTCOMES = {combination: outcome(*combination) for combination in product(ATTENTIONS, POSITIONS, (True, False))}
ALLOWED = [combination for combination, sentence in OUTCOMES.items() if not sentence]
combinations = pytest.mark.parametrize("combination", ALLOWED,
                                       ids=[f"{a}+{p}+{('encoder', 'decoder')[c]}" for a, p, c in ALLOWED])
decoders = pytest.mark.parametrize("combination", [one for one in ALLOWED if one[2]],
                                   ids=[f"{a}+{p}" for a, p, c in ALLOWED if c])


def build(combination):
    model = Transformer(config(*combination)).double().eval()
    for parameter in model.parameters():  # so that biases, norms and tables count
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def tokens(*shape):
    return torch.randint(V, shape)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_what_is_refused_is_refused_with_both_names_and_the_reason():
    assert {combination: sentence for combination, sentence in OUTCOMES.items() if sentence} == {
        ("linear", position, causal): f"position '{position}' needs bias, which attention 'linear' does not apply"
        for position in ("alibi", "t5-bias") for causal in (True, False)}


@combinations
@torch.no_grad()
def test_a_packed_row_gives_what_its_documents_give_alone(combination):
    model, texts = build(combination), [tokens(1, n) for n in (3, 1, 4)]
    documents = torch.tensor([[1] * 3 + [2] + [3] * 4 + [0] * 2])
    packed = model(torch.cat([*texts, tokens(1, 2)], dim=1), Context(Layout.from_documents(documents)))
    for number, text in enumerate(texts, 1):
        close(packed[documents == number], model(text)[0])


@pytest.mark.parametrize(("combination", "side"), [
    (combination, side) if (n + m) % 2 == 0 else rarely((combination, side))
    for n, combination in enumerate(ALLOWED) for m, side in enumerate(("left", "right"))])
@torch.no_grad()
def test_a_padded_row_gives_what_it_gives_alone(combination, side):
    model, texts, layout = build(combination), [tokens(1, n) for n in (3, 5)], Layout.from_lengths([3, 5], T, side)
    rows = tokens(2, T)
    for b, text in enumerate(texts):
        rows[b, layout.real[b]] = text[0]
    padded = model(rows, Context(layout))
    for b, text in enumerate(texts):
        close(padded[b, layout.real[b]], model(text)[0])


@combinations
@torch.no_grad()
def test_a_token_reaches_those_that_may_see_it_and_no_others(combination):
    model, row = build(combination), tokens(1, T)
    for column in range(T):
        changed = row.clone()
        changed[0, column] = (row[0, column] + 1) % V
        moved = (model(changed) - model(row))[0].abs().amax(dim=-1) > 1e-10
        assert moved.tolist() == [t >= column or not combination[2] for t in range(T)]


@combinations
def test_every_parameter_is_trained(combination):
    model = build(combination).train()
    model(tokens(2, T), Context(Layout.from_lengths([T, T - 1]))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


CUTS = [[], [1], [3, 4], [1, 2, 3, 4, 5]]
LAYOUTS = {"full": Layout.full(2, T), "left": Layout.from_lengths([2, 4], T, "left"), "right": Layout.from_lengths([2, 4], T),
           "packed": Layout.from_documents(torch.tensor([[1, 1, 2, 2, 2, 3], [1, 2, 2, 3, 3, 3]]))}
DECODERS = [combination for combination in ALLOWED if combination[2]]
FEEDINGS = list(product(LAYOUTS, CUTS))


@pytest.mark.parametrize(("combination", "name", "cuts"), [  # CI feeds each decoder in two ways, and in all ways some of them
    (combination, *way) if (n + m) % 8 == 0 else rarely((combination, *way))
    for n, combination in enumerate(DECODERS) for m, way in enumerate(FEEDINGS)])
@torch.no_grad()
def test_fed_in_pieces_it_gives_what_it_gives_at_once(combination, name, cuts):
    model, row, layout = build(combination), tokens(2, T + 2), LAYOUTS[name]
    whole, state = layout.append_columns(layout.next_position()), model.init_state(2, T + 2)
    whole = whole.append_columns(whole.next_position())
    out = [model(row[:, a:b], Context(Layout(layout.positions[:, a:b], layout.documents[:, a:b])), state)
           for a, b in pairwise([0, *cuts, T])]
    out += [model(row[:, t:t + 1], state=state) for t in (T, T + 1)]
    close(torch.cat(out, dim=1)[whole.real], model(row, Context(whole))[whole.real])
    assert state.length == T + 2


@decoders
@torch.no_grad()
def test_a_reordered_state_goes_on_with_the_rows_that_were_kept(combination):
    model, row, index = build(combination), tokens(2, 5), torch.tensor([1, 0, 1])
    layout, state = Layout.from_lengths([4, 2], side="left"), model.init_state(2, 5)
    model(row[:, :4], Context(layout), state)
    state.reorder(index)
    close(model(row[index, 4:], state=state), model(row, Context(layout.append_columns(layout.next_position())))[index, 4:])


@pytest.mark.parametrize(("combination", "lengths"), every(
    4, product(DECODERS, [([4, 2], [5]), ([2], [4, 3]), ([3, 3], [3])])))
@torch.no_grad()
def test_rows_that_join_a_state_go_on_as_they_do_alone(combination, lengths):
    """The padding that both have in common goes, so that neither is longer than its longest row."""
    model, states, texts = build(combination), [], []
    for counts in lengths:
        layout, rows = Layout.from_lengths(counts, max(counts) + 2, side="left"), tokens(len(counts), max(counts) + 2)
        states.append(model.init_state(*layout.shape))
        model(rows, Context(layout), states[-1])
        texts += [row[real] for row, real in zip(rows, layout.real)]
    columns, more = max(map(max, lengths)), tokens(len(texts), 2)
    states[0].join(states[1], columns, columns + 2)
    assert states[0].length == columns
    out = torch.cat([model(more[:, t:t + 1], state=states[0]) for t in range(2)], dim=1)
    for row, text in enumerate(texts):
        close(out[row], model(torch.cat([text, more[row]])[None])[0, -2:])


@decoders
@torch.no_grad()
def test_a_state_goes_on_from_where_it_was_cut_or_refuses_and_stays_as_it_was(combination):
    model, row = build(combination), tokens(2, T)
    state = model.init_state(2, T)
    model(row[:, :4], state=state)
    try:
        state.truncate(2)
    except StateError:
        assert state.length == 4
    at = state.length
    close(model(row[:, at:], state=state), model(row)[:, at:])


@combinations
def test_it_survives_saving(combination, tmp_path):
    model, row = build(combination).float(), tokens(2, T)
    model.save_pretrained(tmp_path / "model")
    again = Transformer.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert torch.equal(again(row), model(row))
