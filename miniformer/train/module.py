"""`MiniFormerLitModule`: what Lightning trains. The model, its task's loss, and one division per optimizer step.

A task returns the sum of its loss and a weight. Lightning adds up gradients over accumulated batches and means them over
processes. Where there are several, gradients are scaled just before clipping, so that they are those of sum / weight over
everything in the step. Ragged micro-batches, however they are cut, thus give the gradient of the one big batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from miniformer.config.model_config import TransformerConfig
from miniformer.data.prepare import PreparedData
from miniformer.kernel.context import Context
from miniformer.kernel.errors import MiniformerError, RunError, SpecError, UserError
from miniformer.kernel.hooks import activate
from miniformer.kernel.recipes import OptimizerRecipe, SchedulerRecipe, trainable
from miniformer.kernel.spec import build, resolve
from miniformer.kernel.task import Batch, LossTerm, Task, Tokenizer
from miniformer.model.assembly import BlockAssembly
from miniformer.model.block import compile_blocks
from miniformer.model.failures import names_component
from miniformer.tasks.metrics import LossRatio, placed, widest

from .datamodule import MiniFormerDataModule
from .specs import model_class, model_spec, task_spec, with_data_decisions
from .train_config import TrainConfig


class MiniFormerLitModule(pl.LightningModule):
    """The model that a config describes, with its task.

    With a `MiniFormerDataModule`, a trainer gives it what the data decide: the task as it was fitted to them, their tokenizer,
    and sizes of the model that the config leaves open. With other loaders,
    `with_data_decisions(config, data)` of `train/specs.py` makes a config that says all that.

    Args:
        config: the run, or the same as plain data, as `load_from_checkpoint` has it.
        tokenizer: for metrics, such as bits per byte; without it, and without a data module, only the loss is measured.
    """

    def __init__(self, config: TrainConfig | Mapping[str, Any], tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config, self.tokenizer = TrainConfig.model_validate(config), tokenizer
        self.save_hyperparameters({"config": self.config.to_data()}, logger=False)
        self.task = build(Task, task_spec(self.config))
        self.hooks = activate(self.config.extensions)
        self.model = self._assembled(model_spec(self.config, self.task))
        self.loss: Tensor | None = None
        """The latest batch's mean loss."""
        self._tokens: Tensor | int = 0
        self._recorded: dict[str, tuple[Tensor | float, int]] = {}
        self._recorded_until: int | None = None
        self.held_out: dict[str, Metric] = {}
        self.unit = 1 << (self.config.batch_size - 1).bit_length()
        """The summed loss is divided by this before backward, lest half precision overflow; by a power of two that is exact."""
        self._weight: Tensor | None = None
        self._data: PreparedData | None = None

    @classmethod
    def for_data(cls, config: TrainConfig, data: PreparedData) -> MiniFormerLitModule:
        """The module of a config that has what the data decide filled in (`with_data_decisions`), with the data's own task."""
        module = cls(config, data.tokenizer)
        module.task, module._data = data.task, data
        return module

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **options: Any) -> Any:
        """The module of a checkpoint, as Lightning loads it.

        Raises:
            UserError: the file is no checkpoint of a run, or damaged.
        """
        try:
            return super().load_from_checkpoint(checkpoint_path, *args, **options)
        except MiniformerError:
            raise
        except Exception as error:  # each way in which a file can be damaged has its own
            raise UserError(f"{checkpoint_path}: cannot be read as a checkpoint of a run: "
                            f"{' '.join(str(error).split())[:200] or type(error).__name__}") from error

    def setup(self, stage: str) -> None:
        """Take what the data decide from our data module, if the trainer has one and the module was not made for its data.

        Raises:
            SpecError: the module's config says something else than the data.
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, MiniFormerDataModule) and datamodule.data is not self._data:
            self._take(datamodule.data)
            self._data = datamodule.data

    def _take(self, data: PreparedData) -> None:
        """Adopt the task, the tokenizer and the sizes that these data decide; rebuild the model only if a size differs."""
        self._check_task(data)
        config, built = self.config, self.model.config
        if "vocab_size" not in config.architecture and data.task.input_dim is None and (
                built.vocab_size >= data.tokenizer.vocab_size):  # spare tokens do no harm, a rebuilt embedding would
            config = config.with_fields(model_config={**config.architecture, "vocab_size": built.vocab_size})
        # the precision is the trainer's own to choose
        self.config = with_data_decisions(config, data).with_fields(precision=config.precision)
        self.hparams["config"] = self.config.to_data()
        self.task, self.tokenizer = data.task, data.tokenizer
        spec = model_spec(self.config, self.task)
        if _sizes(spec) != _sizes(built):
            before, parameter = self.model.state_dict(), next(self.model.parameters())
            self.model = self._assembled(spec).to(parameter.device, parameter.dtype)
            fits = {name: tensor for name, tensor in self.model.state_dict().items()
                    if name in before and before[name].shape == tensor.shape}
            self.model.load_state_dict({name: before[name] for name in fits}, strict=False)

    def _check_task(self, data: PreparedData) -> None:
        """Refuse data that were encoded for another task than the one that this module was made, or trained, for."""
        spec, theirs = task_spec(self.config), data.task_spec
        hint = "give module and data module one config; with_data_decisions(config, data) makes one of a config and its data"
        if spec.name != theirs.name:
            raise SpecError(f"the module's task is {spec.name!r}, and the data module's {theirs.name!r}; {hint}")
        unfitted = resolve("task", spec.name).options
        for name, value in spec.options.items():
            if value not in (unfitted[name], theirs.options[name]):
                raise SpecError(f"task.{name} is {value!r:.80} in the module, and {theirs.options[name]!r:.80} in the data "
                                f"module; {hint}")

    def _assembled(self, spec: TransformerConfig) -> BlockAssembly:
        """A new model of the module's task."""
        model = model_class(self.task)(spec)
        self.hooks.hook.model_assembled(model=model)
        if self.config.compile:
            compile_blocks(model)
        return model

    def forward(self, batch: Batch, context: Context | None = None) -> Any:
        """Outputs at every position."""
        return self.model.read(batch, context)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        if self._recorded_until not in (None, self.trainer.global_step):  # what was recorded until then has been logged
            self._recorded, self._recorded_until = {}, None
        batch = self.hooks.hook.batch(batch=batch, training=True)
        term = self._loss(batch)
        mean = term.sum / term.weight.clamp(min=1)
        self.loss = mean.detach()
        for part in (batch, batch.source) if batch.source else (batch,):
            B, T = part.layout.shape
            self._tokens = self._tokens + (part.layout.real.sum() if part.layout.padded else B * T)
        trainer = self.trainer
        is_logged = (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if is_logged or self.device.type == "cpu":  # elsewhere reading the value would wait for the device
            self._check_loss()
        if is_logged:
            self.log("train_loss", self.loss, batch_size=1, sync_dist=trainer.world_size > 1)
            # of this process alone: others may have recorded nothing, and would not take part in a mean of all
            self.log_dict({f"recorded_{name}": value for name, value in self.recorded().items()}, batch_size=1)
            self._recorded_until = trainer.global_step
        if trainer.accumulate_grad_batches == trainer.world_size == 1:  # the batch is the step
            return mean
        self._weight = term.weight if self._weight is None else self._weight + term.weight
        return term.sum / self.unit

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        try:
            super().backward(loss, *args, **kwargs)
        except Exception as error:  # of a backward pass by hand, or of a block that runs again there
            names_component(error, self.model)
            raise

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._weight is None:
            return
        weight = self.trainer.strategy.reduce(self._weight.to(widest(self.device)), reduce_op="mean").clamp(min=1)
        scale = self.unit * self.trainer.accumulate_grad_batches / weight
        for parameter in trainable(self.model):
            if parameter.grad is not None:
                parameter.grad.mul_(scale.to(parameter.grad.dtype))
        self._weight = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.trainer.optimizers[0].zero_grad()  # Lightning would keep gradients through the next forward pass

    def on_train_epoch_end(self) -> None:
        self._check_loss()

    def on_validation_epoch_start(self) -> None:
        self._check_loss()
        self._start_measuring()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self._measure(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_measured("val")

    def on_test_epoch_start(self) -> None:
        self._start_measuring()

    def test_step(self, batch: Batch, batch_index: int) -> None:
        self._measure(batch)

    def on_test_epoch_end(self) -> None:
        self._log_measured("test")

    @property
    def tokens(self) -> int:
        """Tokens trained on so far. Reading it waits for the device."""
        return int(self._tokens)

    def recorded(self) -> dict[str, Tensor]:
        """What components recorded in training, by name: the mean over layers, and over the steps since it was last logged."""
        return {name: torch.as_tensor(total / count) for name, (total, count) in self._recorded.items()}

    def measures(self) -> dict[str, Metric]:
        """Fresh metrics for one pass over held-out data, the loss first.

        Raises:
            SpecError: the task has not learnt from data what they need, such as its labels.
        """
        try:
            return {"loss": LossRatio(), **({} if self.tokenizer is None else self.task.metrics(self.tokenizer))}
        except ValueError as error:
            raise SpecError(f"task {self.config.task.name!r} cannot be measured before it was fitted to data ({error}); train "
                            "with a MiniFormerDataModule, or make the module of with_data_decisions(config, data)") from None

    def _start_measuring(self) -> None:
        self.held_out = {name: placed(metric, self.device) for name, metric in self.measures().items()}

    def _measure(self, batch: Batch) -> None:
        batch = self.hooks.hook.batch(batch=batch, training=False)

        def measure(hidden: Tensor, head: Any) -> LossTerm:
            term = self.task.loss(hidden, head, batch)
            if metrics := {name: metric for name, metric in self.held_out.items() if name != "loss"}:
                self.task.update(metrics, hidden, head, batch, term)
            return term

        term = self.model.read(batch, readout=measure)
        self.held_out["loss"].update(term.sum, term.weight)

    def _log_measured(self, prefix: str) -> None:
        values = self.hooks.hook.metrics(values={name: metric.compute() for name, metric in self.held_out.items()})
        self.log_dict({f"{prefix}_{name}": value.float() for name, value in values.items()})

    def configure_optimizers(self) -> Any:
        recipe = build(OptimizerRecipe, self.config.optimizer, self.config.lr, self.config.weight_decay)
        groups = recipe.groups(self.model)
        self.hooks.hook.optimizer_groups(groups=groups, model=self.model)
        optimizer = recipe.build(groups)
        # gradients are unscaled before they are clipped, so a fused optimizer must not offer to do it later
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = steps // 20 if self.config.warmup_steps is None else self.config.warmup_steps
        scheduler = build(SchedulerRecipe, self.config.scheduler, steps, warmup).build(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _check_loss(self) -> None:
        """Raise if the latest loss is no number."""
        if self.loss is not None and not torch.isfinite(self.loss):
            raise RunError(f"the loss is {self.loss.item()} at step {self.global_step}; what was saved before is whole. A "
                           f"lower learning rate than {self.config.lr:g}, a longer warm-up or precision 32 usually helps")

    def _loss(self, batch: Batch) -> LossTerm:
        """The task's loss, plus losses that components recorded, times the batch's weight: they are means already."""
        context = Context(batch.layout)
        term: LossTerm = self.model.read(batch, context, lambda hidden, head: self.task.loss(hidden, head, batch))
        for record in context.records:
            total, count = self._recorded.get(record.name, (0.0, 0))
            value = torch.as_tensor(record.value, device=self.device).detach().float().mean()
            self._recorded[record.name] = total + value, count + 1
        extra = context.auxiliary_loss()
        if extra is not None:
            term = LossTerm(term.sum + extra * term.weight, term.weight)
        term = self.hooks.hook.loss(loss=term, batch=batch, model=self.model)
        return term


def _sizes(spec: TransformerConfig) -> tuple[int | None, ...]:
    """The sizes of a model that its data may decide."""
    return spec.vocab_size, spec.n_outputs, spec.input_dim
