"""The order of batches: a pure function of seed and epoch, shared out over processes."""

import itertools
import math
import random

import depth
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from miniformer.data.sampler import Drawn, DrawnBatches, EpochBatches
from miniformer.kernel.task import Example

counts, sizes, seeds, worlds = st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(1, 5)
maybe_lengths = st.booleans()


def some_lengths(count):
    return [random.Random(i).randint(1, 500) for i in range(count)]


def flat(batches):
    return [index for batch in batches for index in batch]


@settings(max_examples=depth.examples(50), deadline=None)
@given(counts, sizes, seeds | st.none(), maybe_lengths)
def test_every_index_is_there_once(count, size, seed, bucketed):
    batches = list(EpochBatches(count, size, seed, lengths=some_lengths(count) if bucketed else None))
    assert sorted(flat(batches)) == list(range(count))
    assert all(1 <= len(batch) <= size for batch in batches)
    assert sum(len(batch) < size for batch in batches) <= 1


@settings(max_examples=depth.examples(30), deadline=None)
@given(counts, sizes, seeds, st.integers(0, 1000), maybe_lengths)
def test_the_order_is_a_function_of_seed_and_epoch(count, size, seed, epoch, bucketed):
    lengths = some_lengths(count) if bucketed else None
    one, other = (EpochBatches(count, size, seed, lengths=lengths) for _ in range(2))
    one.set_epoch(3)
    list(one)
    torch.rand(1)  # no global generator has a say
    one.set_epoch(epoch)
    other.set_epoch(epoch)
    assert list(one) == list(other)


@pytest.mark.parametrize("lengths", [None, some_lengths(50)])
def test_epochs_and_seeds_differ(lengths):
    orders = [EpochBatches(50, 4, seed, lengths=lengths).batches(epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_set_epoch_changes_the_order():
    sampler = EpochBatches(50, 4, 1)
    before = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != before


def test_without_a_seed_the_order_is_fixed():
    sampler = EpochBatches(10, 4, None)
    sampler.set_epoch(7)
    assert list(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_without_a_seed_examples_go_by_length():
    assert list(EpochBatches(4, 2, None, lengths=[9, 1, 5, 3])) == [[1, 3], [2, 0]]


@pytest.mark.parametrize("seed", [0, None])
def test_batches_by_length_waste_less_padding(seed):
    lengths = some_lengths(2000)

    def padding(batches):
        return sum(max(lengths[i] for i in batch) - lengths[j] for batch in batches for j in batch)

    bucketed = padding(EpochBatches(2000, 8, seed, lengths=lengths))
    assert bucketed < padding(EpochBatches(2000, 8, 0)) / 10


@pytest.mark.parametrize("longest", [None, 512])
@pytest.mark.parametrize("size", [8, 16])
def test_of_texts_as_long_as_they_are_in_practice_under_5_percent_is_padding(size, longest):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(8000).log_normal_(math.log(224) - 0.9**2 / 2, 0.9, generator=generator).long().clamp(1, longest)
    assert 210 < lengths.float().mean() < 240 or longest
    batches = EpochBatches(8000, size, 0, lengths=lengths.tolist()).batches(0)
    columns = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    assert 0.005 < 1 - int(lengths.sum()) / columns < 0.05


def test_examples_of_like_lengths_meet_others_in_each_epoch():
    lengths = torch.randint(50, 400, (4000,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = EpochBatches(4000, 8, 0, lengths=lengths)
    pairs = [{frozenset(pair) for batch in batches.batches(epoch) for pair in itertools.combinations(batch, 2)}
             for epoch in (0, 1)]
    assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])


def test_batches_by_length_do_not_come_in_order_of_length():
    """Short ones first would be a curriculum that nobody asked for."""
    lengths = some_lengths(400)
    means = torch.tensor([sum(lengths[i] for i in batch) / len(batch) for batch in
                          EpochBatches(400, 8, 0, lengths=lengths)])
    steps = torch.arange(len(means), dtype=means.dtype)
    assert abs(torch.corrcoef(torch.stack([means, steps]))[0, 1]) < 0.4


@settings(max_examples=depth.examples(60), deadline=None)
@given(counts, sizes, seeds, worlds, maybe_lengths)
def test_in_training_every_process_takes_equally_many_batches(count, size, seed, world, bucketed):
    lengths = some_lengths(count) if bucketed else None
    shares = [EpochBatches(count, size, seed, lengths=lengths, rank=rank, world_size=world) for rank in range(world)]
    assert {len(list(share)) for share in shares} == {-(-len(shares[0].batches(0)) // world)}
    assert set(flat(flat(shares))) == set(range(count))


@settings(max_examples=depth.examples(60), deadline=None)
@given(counts, sizes, seeds, worlds)
def test_in_training_fewer_batches_are_repeated_than_there_are_processes(count, size, seed, world):
    shares = [EpochBatches(count, size, seed, rank=rank, world_size=world) for rank in range(world)]
    assert sum(map(len, map(list, shares))) - len(shares[0].batches(0)) < world


@settings(max_examples=depth.examples(60), deadline=None)
@given(counts, sizes, worlds)
def test_in_validation_processes_share_the_examples_out(count, size, world):
    shares = [EpochBatches(count, size, None, rank=rank, world_size=world) for rank in range(world)]
    assert sorted(flat(flat(shares))) == list(range(count))


@settings(max_examples=depth.examples(60), deadline=None)
@given(counts, sizes, seeds | st.none(), worlds)
def test_the_length_is_the_number_of_batches(count, size, seed, world):
    for rank in range(world):
        sampler = EpochBatches(count, size, seed, rank=rank, world_size=world)
        assert len(sampler) == len(list(sampler))


class Noting(pl.LightningModule):
    """Notes the batches that it is given."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append((self.current_epoch, batch.tolist()))

    def configure_optimizers(self):
        return None


def test_lightning_tells_the_epoch(tmp_path):
    sampler, module = EpochBatches(20, 3, 5), Noting()
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=3, logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
                         default_root_dir=tmp_path)
    trainer.fit(module, DataLoader(list(range(20)), batch_sampler=sampler))
    assert module.seen == [(epoch, batch) for epoch in range(3) for batch in sampler.batches(epoch)]


def draws(seed, epoch, count=12, workers=0):
    """The draw of each example in an epoch, by what it holds."""
    sampler = DrawnBatches(count, 5, seed)
    sampler.set_epoch(epoch)
    loader = DataLoader(Drawn([Example([i]) for i in range(count)], seed), batch_sampler=sampler, num_workers=workers,
                        collate_fn=lambda examples: [(example.tokens[0], example.draw) for example in examples])
    return dict(pair for batch in loader for pair in batch)


def test_draws_are_a_function_of_seed_epoch_and_place():
    one = draws(1, 0)
    torch.rand(3)
    assert draws(1, 0) == one
    others = [one, draws(1, 1), draws(2, 0)]
    assert len({draw for drawn in others for draw in drawn.values()}) == 36, "no two alike"


def test_processes_that_make_batches_draw_alike():
    assert draws(1, 3, workers=2) == draws(1, 3)


def test_drawn_batches_are_the_same_batches():
    plain, drawn = EpochBatches(12, 5, 1), DrawnBatches(12, 5, 1)
    for sampler in (plain, drawn):
        sampler.set_epoch(2)
    assert [[(2, i) for i in batch] for batch in plain] == list(drawn)
    assert len(plain) == len(drawn)


def test_an_iterator_takes_the_epoch_that_is_set_before_its_first_batch():
    """A trainer that resumes makes the iterator first, and then reads from its checkpoint which epoch it is."""
    for sampler in (EpochBatches(20, 3, 5), DrawnBatches(20, 3, 5)):
        batches = iter(sampler)
        sampler.set_epoch(2)
        other = type(sampler)(20, 3, 5)
        other.set_epoch(2)
        assert list(batches) == list(other)
