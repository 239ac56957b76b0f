"""Real trainings by Lightning's Trainer: their records are what `wk.forces` gives by hand in that loop."""

import copy
import importlib
import sys

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from loops import Kept, Net, assert_same_forces, batch
from torch.utils.data import DataLoader

import weibull_kernels as wk
from weibull_kernels.adapters.lightning import ForcesCallback

STEPS = list(range(1, 10))  # three epochs of three batches

# What Lightning says of itself, of torch and of the size of the machine.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{said}")
    for said in (
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        "The 'train_dataloader' does not have many workers",
        "Checkpoint directory .* exists and is not empty",
    )
]


class Module(pl.LightningModule):
    """Optimizers by name; the rate is another one in every step."""

    def __init__(self, kind="adamw"):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.kind, self.dropout = Net(), kind, 0.1
        self.overflow = False
        self.optimizer_step_done = lambda optimizer: None

    def configure_optimizers(self):
        named = list(self.named_parameters())
        kinds = {
            "adamw": lambda: torch.optim.AdamW(named, lr=1e-2, weight_decay=0.1),
            "fused": lambda: torch.optim.AdamW(named, lr=1e-2, weight_decay=0.1, fused=True),
            "wk": lambda: wk.AdamW(named, lr=1e-2, weight_decay=0.1),
            "sgd": lambda: torch.optim.SGD(named, lr=1e-1, momentum=0.9),
        }
        optimizer = kinds[self.kind]()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def loss(self, tokens):
        return torch.nn.functional.dropout(self.net(tokens), self.dropout).square().mean()

    def training_step(self, tokens, index):
        return self.loss(tokens)

    def optimizer_step(self, epoch, index, optimizer, closure=None):
        super().optimizer_step(epoch, index, optimizer, closure)
        self.optimizer_step_done(optimizer.optimizer)

    def on_after_backward(self):
        if self.overflow and self.trainer.fit_loop.total_batch_idx == 2:
            self.net.mlp.weight.grad[0, 0] = torch.inf


class TwoOptimizers(Module):
    """Stepped by hand, the second one every other batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        named = dict(self.named_parameters())
        matrix = named.pop("net.mlp.weight")
        return [torch.optim.AdamW(named.values(), lr=1e-2), torch.optim.SGD([matrix], lr=1e-1)]

    def training_step(self, tokens, index):
        adamw, sgd = self.optimizers()
        self.manual_backward(self.loss(tokens))
        adamw.step()
        self.optimizer_step_done(adamw.optimizer)
        adamw.zero_grad()
        if index % 2 == 0:
            sgd.step()
            sgd.zero_grad()


class ByHand:
    """Measures where a user would: after the optimizer's step and before the scheduler's."""

    def __init__(self, module):
        self.module, self.budgets, self.rates = module, [], []
        module.optimizer_step_done = self.measure

    def measure(self, optimizer):
        ledger = isinstance(optimizer, wk.AdamW)
        budget = optimizer.ledger.drain() if ledger else wk.forces(optimizer, self.module)
        self.budgets.append(budget)
        self.rates.append(optimizer.param_groups[0]["lr"])


class Failing(pl.Callback):
    """Ends the training with an error after its fourth step."""

    def on_train_batch_start(self, trainer, module, tokens, index):
        if trainer.global_step == 4:
            raise RuntimeError("out of luck")


def new_trainer(folder, callbacks=(), library=pl, **settings):
    given = {
        **{"max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False, "log_every_n_steps": 1},
        **{"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False},
    }
    return library.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(given | settings))


def data():
    return DataLoader(torch.cat([batch(step) for step in range(3)]), batch_size=3)


def assert_same_weights(module, other):
    pairs = zip(module.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(weight, same) for weight, same in pairs)


def fit(trainer, module, **kwargs):
    torch.manual_seed(1)
    trainer.fit(module, data(), **kwargs)
    return module


@pytest.fixture
def kept():
    return Kept()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("adamw", {}),
        ("fused", {}),
        ("wk", {}),
        ("adamw", {"precision": "bf16-mixed"}),
        ("fused", {"accumulate_grad_batches": 2}),
        ("adamw", {"gradient_clip_val": 0.01}),
    ],
    ids=["adamw", "fused", "wk", "bf16", "accumulated", "clipped"],
)
def test_records_are_what_forces_gives_by_hand_and_training_is_the_same(kind, settings, kept, tmp_path):
    callback = ForcesCallback(statistics="weibull", sinks=[kept])
    metered = fit(new_trainer(tmp_path, [callback], **settings), Module(kind))
    plain = Module(kind)
    by_hand = ByHand(plain)
    fit(new_trainer(tmp_path, **settings), plain)
    assert_same_weights(metered, plain)
    assert kept.steps == (STEPS if "accumulate_grad_batches" not in settings else STEPS[:6])
    for (_, budget, scalars), expected, rate in zip(
        kept.records, by_hand.budgets, by_hand.rates, strict=True
    ):
        assert_same_forces(budget, expected)
        assert scalars["lr"].tolist() == [rate] * 6
        assert set(scalars) == {"lr", "weight_decay", "k", "scale"}
    assert budget.names == tuple(name for name, _ in metered.named_parameters())


def test_two_optimizers_stepped_by_hand_make_one_record(kept, tmp_path):
    module = TwoOptimizers()
    by_hand = ByHand(module)
    fit(new_trainer(tmp_path, [ForcesCallback(sinks=[kept])]), module)
    assert kept.steps == STEPS
    assert {name for name, _ in module.named_parameters()} == set(kept.budgets[0].names)
    for budget, expected in zip(kept.budgets, by_hand.budgets, strict=True):
        assert_same_forces(budget.select(list(range(5))), expected)
    with_sgd = [len(budget.names) == 6 for budget in kept.budgets]
    assert with_sgd == [True, False, True] * 3


@pytest.mark.parametrize("kind", ["adamw", "fused"])
def test_a_step_that_the_scaler_skips_is_not_booked(kind, kept, tmp_path):
    module = Module(kind)
    module.overflow = True
    by_hand = ByHand(module)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    fit(new_trainer(tmp_path, [ForcesCallback(sinks=[kept])], plugins=[precision]), module)
    del by_hand.budgets[2]  # those of the step before once more
    assert len(kept.records) == 8
    assert all((budget.steps == 1).all() for budget in kept.budgets)
    for found, expected in zip(kept.budgets, by_hand.budgets, strict=True):
        assert_same_forces(found, expected)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "wk"])
def test_a_resumed_run_goes_on_without_a_gap(kind, kept, tmp_path):
    """From the checkpoint of step 3, in the middle of an interval that the ledger keeps."""
    whole, modules = Kept(), []
    for sink, path in ((whole, None), (kept, tmp_path / "step=3.ckpt")):
        module = Module(kind)
        module.dropout = 0.0  # Lightning does not restore the random state
        saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
        callbacks = [ForcesCallback(every=2, sinks=[sink]), saving]
        trainer = new_trainer(tmp_path, callbacks, enable_checkpointing=True)
        modules.append(fit(trainer, module, ckpt_path=path))
    assert_same_weights(*modules)
    assert whole.steps == [2, 4, 6, 8] + [9] * (kind == "wk")
    assert kept.steps == whole.steps[1:]
    for found, expected in zip(kept.budgets, whole.budgets[1:], strict=True):
        assert_same_forces(found, expected)


def test_a_checkpoint_that_is_saved_after_fit_can_be_resumed(kept, tmp_path):
    """Of an optimizer that does not count its steps."""
    trainer = new_trainer(tmp_path, [ForcesCallback(every=5)])
    fit(trainer, Module("sgd"))
    trainer.save_checkpoint(tmp_path / "late.ckpt")
    resumed = new_trainer(tmp_path, [ForcesCallback(sinks=[kept])], max_epochs=4)
    fit(resumed, Module("sgd"), ckpt_path=tmp_path / "late.ckpt")
    assert kept.steps == [10, 11, 12]


@pytest.mark.parametrize("log", [True, False])
def test_the_loggers_get_the_totals_by_role(log, kept, tmp_path):
    callback = ForcesCallback(every=3, log=log, sinks=[kept])
    fit(new_trainer(tmp_path, [callback], logger=CSVLogger(tmp_path, "log")), Module())
    path = tmp_path / "log" / "version_0" / "metrics.csv"
    assert path.exists() == log
    if log:
        table = pd.read_csv(path)
        assert table["forces/step"].tolist() == table["step"].tolist() == [3, 6, 9]
        expected = [budget.total(role="head").alignment.item() for budget in kept.budgets]
        assert table["forces/head/alignment"].tolist() == pytest.approx(expected, rel=1e-12)


def test_an_error_takes_the_meter_off_and_what_was_measured_is_kept(kept, tmp_path):
    callback, module = ForcesCallback(every=3, sinks=[kept]), Module("wk")
    trainer = new_trainer(tmp_path, [callback, Failing()])
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(trainer, module)
    assert kept.steps == [3, 4]  # the ledger's rest as well
    assert callback.state_dict() == {"steps": [4]}
    assert "__deepcopy__" not in vars(trainer.optimizers[0])


def test_a_second_fit_is_measured_into_the_same_sinks(kept, tmp_path):
    trainer, module = new_trainer(tmp_path, [ForcesCallback(every=3, sinks=[kept])]), Module()
    fit(trainer, module)
    trainer.fit_loop.max_epochs = 4
    fit(trainer, module)
    assert kept.steps == [3, 6, 9, 3]  # Lightning makes a new optimizer


def test_a_trainer_of_the_older_name(kept, tmp_path):
    older = importlib.import_module("pytorch_lightning")

    class Older(older.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, tokens, index):
            return self.net(tokens).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    fit(new_trainer(tmp_path, [ForcesCallback(sinks=[kept])], library=older), Older())
    assert kept.steps == STEPS


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_a_script_makes_its_sink_before_the_processes_are_joined(name, tmp_path, monkeypatch):
    """Lightning runs the whole script once more for each process; only the first one's file is opened."""
    with wk.ParquetSink(tmp_path / "run.parquet"):
        for rank in ("1", "2"):
            monkeypatch.setenv(name, rank)
            wk.ParquetSink(tmp_path / "run.parquet").close()
        monkeypatch.setenv(name, "0")
        with pytest.raises(FileExistsError):
            wk.ParquetSink(tmp_path / "run.parquet")


def test_names_rows_and_roles_can_be_chosen(kept, tmp_path):
    module = Module()
    chosen = {"names": module.net, "only": "mlp.*", "roles": {"mlp.weight": "map"}, "every": 9}
    fit(new_trainer(tmp_path, [ForcesCallback(**chosen, sinks=[kept])]), module)
    assert kept.budgets[0].names == ("mlp.weight", "mlp.bias")
    assert kept.budgets[0].roles == ("map", "bias")


def test_a_meter_that_was_taken_off_leaves_a_checkpoint_that_can_be_resumed(kept, tmp_path):
    class Detaching(pl.Callback):
        def on_train_batch_start(self, trainer, module, tokens, index):
            forces.meter.detach()

    forces = ForcesCallback()
    trainer = new_trainer(tmp_path, [forces, Detaching()])
    fit(trainer, Module())
    trainer.save_checkpoint(tmp_path / "late.ckpt")
    resumed = new_trainer(tmp_path, [ForcesCallback(sinks=[kept])], max_epochs=4)
    fit(resumed, Module(), ckpt_path=tmp_path / "late.ckpt")
    assert kept.steps == [10, 11, 12]  # AdamW counts its steps itself


def test_the_callback_can_be_copied_with_its_module_after_fit(kept, tmp_path):
    callback = ForcesCallback(sinks=[kept])
    fit(new_trainer(tmp_path, [callback]), Module())
    assert copy.deepcopy(callback).state_dict() == {"steps": [9]}


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"takes the arguments of wk.attach: got an unexpected .*'evry'"):
        ForcesCallback(evry=3)
    with pytest.raises(TypeError, match="a path is no sink"):
        ForcesCallback(sinks=["run.parquet"])


def test_without_lightning_the_older_name_is_looked_for_and_then_the_remedy_named(monkeypatch):
    name = "weibull_kernels.adapters.lightning"
    for missing in ("lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, name)
    older = importlib.import_module(name).ForcesCallback
    assert issubclass(older, importlib.import_module("pytorch_lightning").Callback)
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(ImportError, match=r"pip install 'weibull-kernels\[lightning\]'"):
        importlib.import_module(name)
