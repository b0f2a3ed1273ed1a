"""Faults in what `miniformer bench` measures and says."""

from ..fault import Fault

ROUNDS = "tests/bench/test_rounds.py"

FAULTS = (
    Fault("rounds-all-go-forwards", "miniformer/bench/rounds.py", " if number % 2 == 0 else reversed(order)", "", ROUNDS,
          "a machine that gets slower favours the first"),
    Fault("a-ratio-is-turned-over", "miniformer/bench/rounds.py", "sample.rate / reference.rate",
          "reference.rate / sample.rate", ROUNDS, "the slower model looks faster"),
    Fault("the-lowest-is-the-highest", "miniformer/bench/rounds.py", '"lowest": min(rates)', '"lowest": max(rates)', ROUNDS,
          "figures look surer than they are"),
    Fault("training-is-one-pass", "miniformer/bench/rounds.py", "return 3 * flops_per_token", "return flops_per_token",
          ROUNDS, "utilisation is a third of what it is"),
    Fault("tokens-of-a-source-do-not-count", "miniformer/bench/contestant.py",
          "0 if batch.source is None else int(batch.source.layout.real.sum())", "0", "tests/bench/test_contestant.py",
          "encoder-decoders look half as fast"),
    Fault("rows-have-any-length", "miniformer/bench/contestant.py", "(self.length if text else 0,)",
          "(self.length // 2 if text else 0,)",
          "tests/bench/test_contestant.py::test_every_text_has_the_wanted_length_unless_it_is_empty "
          "tests/bench/test_contestant.py::test_every_task_trains_on_rows_of_the_length_that_was_asked_for",
          "bench measures shorter rows than it says"),
    Fault("rows-may-be-longer-than-positions", "miniformer/bench/contestant.py",
          "setting.length > spec.max_seq_len and not model.endless", "False",
          "tests/bench/test_contestant.py::test_rows_longer_than_positions_are_refused_and_without_an_end_of_positions_they_are_not",
          "bench fails in the middle"),
    Fault("an-encoder-decodes", "miniformer/bench/contest.py", "if contestant.account.writes]", "]",
          "tests/bench/test_contest.py", "bench fails where a model does not write"),
    Fault("a-batch-decodes-as-one-row", "miniformer/bench/work.py", "return rows * count", "return count",
          "tests/bench/test_work.py", "decoding in batches looks slow"),
    Fault("memory-is-in-kilobytes", "miniformer/bench/work.py", 'int(lines["VmHWM"].split()[0]) * 1024',
          'int(lines["VmHWM"].split()[0])', "tests/bench/test_work.py", "models look a thousand times smaller"),
)
