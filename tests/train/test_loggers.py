"""Loggers whose errors name their file, and which cannot end a run that is over."""

import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from miniformer.kernel import WriteError
from miniformer.train.loggers import guarded


@pytest.fixture(params=[(CSVLogger, "run/metrics.csv"), (TensorBoardLogger, "run")], ids=["csv", "tensorboard"])
def failing(request, tmp_path, monkeypatch):
    """A logger that finds no room, and its file or folder."""
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    cls, place = request.param
    for method in ("log_metrics", "save", "finalize"):
        monkeypatch.setattr(cls, method, fail)
    return guarded([cls(tmp_path, name="run", version="")])[0], tmp_path / place


@pytest.mark.parametrize("method", ["log_metrics", "save"])
def test_a_logger_that_cannot_write_names_its_place(failing, method):
    logger, place = failing
    with pytest.raises(WriteError, match=rf"{place}/?: cannot be written: No space left on device; .* are free there"):
        getattr(logger, method)(*[{"loss": 1.0}] * (method == "log_metrics"))


def test_a_logger_that_fails_when_it_is_closed_is_a_warning(failing, caplog):
    logger, place = failing
    logger.finalize("success")
    assert f"the last figures may be missing from the logs: {place}" in caplog.text


def test_a_logger_that_can_write_does(tmp_path):
    [logger] = guarded([CSVLogger(tmp_path, name="run", version="")])
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines() == ["loss,step", "1.0,0"]
