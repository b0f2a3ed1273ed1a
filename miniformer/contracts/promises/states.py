"""The promise that a state keeps whatever is done to it: operations in any order, drawn by a state machine of hypothesis."""

from __future__ import annotations

from typing import Any, cast

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, invariant, precondition, rule

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.attention_harness import AttentionHarness
from miniformer.contracts.kit.case import Case, picture, require
from miniformer.contracts.kit.fed_state import FedState, keeps_no_state
from miniformer.contracts.kit.properties import contract

MACHINE = settings(stateful_step_count=7)
"""How many operations an example has, besides those at its end."""
MOST_ROWS = 4


@contract("attention", skip=keeps_no_state, examples=2)
def any_operations_go_on(case: Case) -> None:
    """After any operations on a state, in any order, the next outputs are those of one pass over the same tokens: after columns
    were fed, rows picked and reordered, columns cut, rows of another state joined, room made, and columns refused for which
    there is no room. Its `length` and `nbytes` are true all the time.

    In training: nothing shows; in use a text goes wrong when a batch is reordered twice between two tokens, or is filled to
    the end after it was reordered.

    Seen: fairseq2#307, on a state that is reordered only where the number of rows changes.
    """
    machines = list[Operations]()

    def machine() -> Operations:
        machines.append(Operations(case))
        return machines[0]

    with torch.no_grad():
        # what hypothesis would run as a test of its own draws from this example, so that seeds and shrinking are the kit's
        test: Any = get_state_machine_test(cast(type[Operations], machine), settings=MACHINE)
        test.hypothesis.inner_test(case.data)
        machines[0].finish()


class Operations(RuleBasedStateMachine):
    """Operations on a state that has read a prompt, and beside it other states of the same module, whose rows may join it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case, self.done = case, list[str]()
        self.harness = AttentionHarness.drawn(case, causal=True, training=False)
        self.numbers = torch.Generator().manual_seed(case.draw("numbers", drawing.seeds))
        self.text = self._text(case.data.draw(drawing.lengths(st.integers(1, 6), 120)))
        case.story |= {"rows": self.text.rows, "capacity": self.text.capacity}

    @invariant()
    def tells_the_truth(self) -> None:
        self.text.check()

    @rule()
    def feed(self) -> None:
        room = max(0, self.text.room)
        columns = self.case.data.draw(st.sampled_from([1, 2, room or 1, room + 1]))
        if columns > room and self.text.state.grows and self.case.data.draw(st.booleans()):
            self._tell(f"grow to {self.text.length + columns}")
            self.text.grow(self.text.length + columns)
        self._feed(self.text, columns)

    @precondition(lambda self: self.text.state.grows)
    @rule()
    def grow(self) -> None:
        capacity = self.text.capacity + self.case.data.draw(st.integers(1, 4))
        self._tell(f"grow to {capacity}")
        self.text.grow(capacity)

    @precondition(lambda self: self.text.length > 0)
    @rule()
    def reorder(self) -> None:
        rows = self.text.rows
        in_turn = st.permutations(range(rows)).map(list)
        index = self.case.data.draw(in_turn | st.lists(st.integers(0, rows - 1), min_size=1, max_size=MOST_ROWS))
        self._tell(f"reorder {index}")
        self.text.reorder(index)

    @precondition(lambda self: self.text.length > 0)
    @rule()
    def cut(self) -> None:
        state, length = self.text.state, self.text.length
        if state.truncates:
            promised = 0 if state.rewind_limit is None else max(0, self.text.longest - state.rewind_limit)
            require(state.min_length <= promised, f"after {self.text.longest} columns it says that it goes back to "
                                                  f"{state.min_length} at least, and its rewind_limit promises {promised}")
        keep = self.case.data.draw(st.sampled_from([length - 1, max(0, length - 2), length // 2, 0]))
        self._tell(f"cut to {keep}")
        if self.text.cut(keep) and keep == 0:
            self._go_on_beside_a_new_state()

    @precondition(lambda self: self.text.state.joins and 0 < self.text.rows < MOST_ROWS and self.text.length > 0)
    @rule()
    def join(self) -> None:
        """As `Feed.join` of the decoding loop does: columns that are padding in every row are dropped."""
        text = self.text
        other = self._text(self.case.data.draw(st.sampled_from([text.length, text.length, 1, 3])), "another")
        assert text.layout is not None and other.layout is not None
        columns = max(layout.shape[1] - int(layout.first().min()) for layout in (text.layout, other.layout))
        capacity = columns + self.case.data.draw(st.integers(1, 4))
        self._tell(f"join another, with room for {capacity}")
        text.join(other, columns, capacity)
        if self.case.data.draw(st.sampled_from([True, True, False])):
            self._feed(text, 1)
        self._feed(other, 1, "another")  # what it holds is still its own

    @precondition(lambda self: self.text.length > 0 and self.text.room > 0 and self.case.under_test.static)
    @rule()
    def static_steps(self) -> None:
        steps = self.case.data.draw(st.integers(1, min(3, self.text.room)))
        columns = self.case.data.draw(st.integers(self.text.length + steps, self.text.capacity))
        self._tell(f"{steps} static steps of {columns} columns")
        self.text.static_steps(steps, columns)
        if self.text.length < columns and self.case.data.draw(st.booleans()):  # other rows in tensors of the same size
            self.reorder()
            self._tell(f"1 static step of {columns} columns")
            self.text.static_steps(1, columns)

    def finish(self) -> None:
        """Reorder rows and feed what there is room for, so that what was done last is seen too, and one column more."""
        if self.text.length > 0:
            self.reorder()
        if self.text.room > 0:
            self._feed(self.text, self.text.room)
        self._feed(self.text, 1)
        if self.text.state.truncates and self.text.state.min_length < self.text.length:
            self._tell(f"cut to {self.text.length - 1}")
            self.text.cut(self.text.length - 1)
            self._feed(self.text, 1)
        self.text.check()

    def _text(self, columns: int, name: str = "") -> FedState:
        """A new state that has read a prompt."""
        rows, room = self.case.data.draw(st.sampled_from([2, 3, 1])), self.case.data.draw(st.integers(1, 8))
        text = FedState(self.harness, rows, columns + room, self.numbers)
        self._feed(text, columns, name)
        return text

    def _go_on_beside_a_new_state(self) -> None:
        """Feed this state, which is empty, and a new one of its sizes in turn: they share no memory."""
        other = FedState(self.harness, self.text.rows, self.text.capacity, self.numbers)
        for text, name in [(self.text, ""), (other, "another")] * 2:
            self._feed(text, 1, name)

    def _feed(self, text: FedState, columns: int, name: str = "") -> bool:
        draw = self.case.data.draw
        if text.layout is None:
            kind = draw(st.sampled_from([drawing.FULL, drawing.LEFT, drawing.RIGHT, drawing.HOLES, drawing.PACKED]))
            new = drawing.many_columns(kind, text.rows, columns, draw(drawing.seeds))
            what = f"feed {columns} ({picture(new)})"
        else:
            new = text.later_columns(columns, *draw(st.sampled_from([(), (), (True,), (False, True)])))
            what = f"feed {columns}{' with padding' * (not bool(new.real.all()))}{' of a new document' * new.packed}"
        self._tell(f"{what} to {name}" if name else what)
        return text.feed(new)

    def _tell(self, operation: str) -> None:
        self.done.append(operation)
        self.case.story["operations"] = ", ".join(self.done)
