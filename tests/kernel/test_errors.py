import signal

import pytest

from miniformer.kernel import errors
from miniformer.kernel.errors import did_you_mean


@pytest.mark.parametrize(("error", "code"), [
    (errors.UnknownComponent("x"), 2), (errors.AmbiguousComponent("x"), 2), (errors.UnavailableComponent("x"), 2),
    (errors.SpecError("x"), 2), (errors.DataError("x"), 2), (errors.RunError("x"), 1),
    (errors.Interrupted("x", signal.SIGINT), 130), (errors.Interrupted("x", signal.SIGTERM), 143),
])
def test_exit_codes_tell_the_users_mistakes_from_failed_and_stopped_runs(error, code):
    assert error.exit_code == code


def test_a_hint_offers_the_nearest_names_best_first():
    assert did_you_mean("swigl", ["gelu", "swiglu", "swish"]).startswith("; did you mean 'swiglu' or ")


def test_there_is_no_hint_when_nothing_is_near():
    assert did_you_mean("zzz", ["gelu", "swiglu"]) == ""
