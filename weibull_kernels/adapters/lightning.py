"""The forces of a training by Lightning's `Trainer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..meter import Meter
from .deferred import DeferredAttach

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

try:
    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError:  # under its older name it is the same library
        from pytorch_lightning import Callback  # type: ignore[assignment]
except ImportError as error:
    raise ImportError(
        "weibull_kernels.adapters.lightning needs lightning: "
        f"pip install 'weibull-kernels[lightning]' ({error})"
    ) from error


class ForcesCallback(Callback):
    """Measures the steps of a `Trainer`'s optimizers and writes their force budgets to sinks, by `wk.attach`.

        trainer = Trainer(callbacks=[ForcesCallback(every=50, sinks=[wk.ParquetSink("run.parquet")])])

    It serves a Trainer of `lightning` and of `pytorch_lightning`. The meter is attached when `fit` begins, to
    all optimizers of the module together, and named as the module's parameters are; one step is one of
    the optimizers', however many batches the gradients are accumulated over. It is detached when `fit` ends
    or fails. Sinks stay open then, since the next `fit` writes to them as well: close a record file, or
    read it as it is.

    Checkpoints hold the count of steps: with `fit(ckpt_path=…)` it goes on where it was; give file sinks
    `append=True`.

    Args:
        log: whether the Trainer's loggers get the totals by role of each record, under "forces/…", at
            the step of the record.
        sinks: as in `wk.attach`, in a list.
        options: the other arguments of `wk.attach`: `every`, `only`, `statistics`, `roles`, ….

    Attributes:
        meter: the `wk.Meter` while there is one, else None.

    Raises:
        TypeError: `wk.attach` has no such argument, or one of the sinks is none. What else it raises comes
            when `fit` begins.
    """

    def __init__(self, *, log: bool = True, sinks: Sequence[Any] = (), **options: Any) -> None:
        self.meter: Meter | None = None
        self._attach, self._log = DeferredAttach(sinks, options), log
        self._counted: dict[str, Any] = {}
        self._resumed: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches a meter; the states of a checkpoint are in the optimizers by now."""
        self.meter = self._attach(trainer.optimizers, pl_module, trainer.loggers if self._log else [])
        resumed, self._resumed = self._resumed, {}
        if resumed:
            self.meter.load_state_dict(resumed)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the meter off again."""
        self._detach(None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes it off where `fit` fails, without waiting for other processes."""
        self._detach(exception)

    def state_dict(self) -> dict[str, Any]:
        """How many steps there were; a checkpoint may be saved after `fit` as well."""
        if self.meter is None or not self.meter.attached:  # it counts no more
            return self._counted
        return self.meter.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Has the `fit` that begins go on counting from there."""
        self._counted = self._resumed = state_dict

    def _detach(self, error: BaseException | None) -> None:
        self._counted = self.state_dict()
        meter, self.meter = self.meter, None  # without it the callback can be copied and pickled
        if meter is not None:
            meter.__exit__(None if error is None else type(error), error, None)
