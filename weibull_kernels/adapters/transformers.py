"""The forces of a training by transformers' `Trainer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..meter import Meter
from .deferred import DeferredAttach

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "weibull_kernels.adapters.transformers needs transformers: "
        f"pip install 'weibull-kernels[transformers]' ({error})"
    ) from error


class ForcesCallback(TrainerCallback):
    """Measures the steps of a `Trainer`'s optimizer and writes their force budgets to sinks, by `wk.attach`.

        trainer = Trainer(model, args, train_dataset=data, callbacks=[
            ForcesCallback(every=50, sinks=[wk.ParquetSink("run.parquet")]),
        ])

    The meter is attached when the training begins, to the optimizer inside of accelerate's wrapper, whichever
    it is, with the names of the model. One step is one of the optimizer's, however many batches the
    gradients are accumulated over. A run that is resumed from a checkpoint goes on counting where it was;
    give its file sinks `append=True`.

    The meter is detached when the training ends. Sinks stay open then, since the next `train()` writes
    to them as well: close a record file, or read it as it is. Where the training raises an error no callback
    is told: what has been measured is at the sinks, or is handed on when the program ends, and
    `callback.meter.detach()`, or the next `train()`, takes the hooks off.

    The Trainer shows its logs to what it reports to (`report_to`) before it shows them to any callback of the
    user's, so a callback cannot add to them. It can log beside them, given the means, which only a Trainer
    that is there already has:

        trainer.add_callback(ForcesCallback(every=50, log=trainer.log))

    Args:
        log: `trainer.log`, or a function of a dict, that gets the totals by role of each record: they go to
            `trainer.state.log_history` and to TensorBoard, wandb and whatever else is reported to, there
            under "train/forces/…". From a GPU they come a step late; "forces/step" is the step they are of.
            What a ledger has booked after the last record goes to the sinks alone.
        sinks: as in `wk.attach`, in a list.
        options: the other arguments of `wk.attach`: `every`, `only`, `statistics`, `roles`, ….

    Attributes:
        meter: the `wk.Meter` while there is one, else None.

    Raises:
        TypeError: `wk.attach` has no such argument, or one of the sinks is none. What else it raises comes
            when the training begins.
    """

    def __init__(
        self,
        *,
        log: Callable[[dict[str, float]], object] | None = None,
        sinks: Sequence[Any] = (),
        **options: Any,
    ) -> None:
        self.meter: Meter | None = None
        self._attach, self._log = DeferredAttach(sinks, options), log
        self._to_log: list[dict[str, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attaches a meter; the state of a checkpoint is in the optimizer by now."""
        self._detach()  # of a training that an error has ended
        self._to_log.clear()
        more = [] if self._log is None else [self._note]
        self.meter = self._attach(kwargs["optimizer"], kwargs["model"], more)
        if self.meter.steps == (0,):  # it has no state, or one that does not count, as that of SGD
            self.meter.load_state_dict({"steps": [state.global_step]})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Logs the records that have arrived."""
        self._report(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Logs the last ones too, which may still be on their way from the device."""
        if self.meter is not None and self._log is not None:
            self.meter.flush()
        self._report(control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the meter off again."""
        self._detach()

    def _detach(self) -> None:
        meter, self.meter = self.meter, None  # without it the callback can be copied and pickled
        if meter is not None:
            meter.detach()

    def _note(self, metrics: dict[str, float], step: int) -> None:
        self._to_log.append(metrics)

    def _report(self, control: TrainerControl) -> None:
        if self._log is None:
            return
        should_log = control.should_log
        while self._to_log:
            self._log(self._to_log.pop(0))
        control.should_log = should_log  # logging clears it, and the Trainer's own numbers are still to come
