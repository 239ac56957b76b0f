"""Real trainings by transformers' Trainer: their records are what `wk.forces` gives by hand in that loop."""

import importlib
import subprocess
import sys

import pytest
import torch
from loops import Kept, assert_same_forces
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import weibull_kernels as wk
from weibull_kernels.adapters.transformers import ForcesCallback

TOKENS = torch.randint(0, 32, (12, 8), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": tokens, "labels": tokens} for tokens in TOKENS]
STEPS = list(range(1, 10))  # three epochs of three batches


def new_model():
    """Dropout draws from the random state in every step."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, attention_dropout=0.1, **sizes))


def new_trainer(folder, callbacks=(), optimizer=None, **settings):
    """Three epochs; the rate is another one in every step."""
    given = {
        **{"num_train_epochs": 3, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": []},
        **{"learning_rate": 1e-2, "weight_decay": 0.1, "warmup_steps": 2, "disable_tqdm": True},
        **{"save_strategy": "no", "logging_strategy": "no", "dataloader_pin_memory": False},
    }
    model = new_model()
    return Trainer(
        model,
        TrainingArguments(output_dir=str(folder), **(given | settings)),
        train_dataset=DATA,
        callbacks=list(callbacks),
        optimizers=(None if optimizer is None else optimizer(model), None),
    )


def wk_adamw(model):
    return wk.AdamW(model.named_parameters(), lr=1e-2, weight_decay=0.1)


class ByHand(TrainerCallback):
    """Measures where a user would: between the optimizer's step and the scheduler's."""

    def __init__(self):
        self.budgets, self.rates = [], []

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        inner = optimizer.optimizer
        ledger = isinstance(inner, wk.AdamW)
        self.budgets.append(inner.ledger.drain() if ledger else wk.forces(inner, model))
        self.rates.append([group["lr"] for group in inner.param_groups])


class Weights(TrainerCallback):
    """The weights in float64 around every step."""

    def __init__(self):
        self.before, self.after = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.before.append({name: p.detach().double().clone() for name, p in model.named_parameters()})

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.after.append({name: p.detach().double().clone() for name, p in model.named_parameters()})


class Failing(TrainerCallback):
    """Ends the training with an error in its fifth step, once."""

    armed = True

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 4 and self.armed:
            self.armed = False
            raise RuntimeError("out of luck")


@pytest.fixture
def kept():
    return Kept()


def assert_same_weights(trainer, other):
    pairs = zip(trainer.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(weight, same) for weight, same in pairs)


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "adamw_torch"},
        {"optim": "adamw_torch_fused"},
        {"optim": "adamw_torch", "bf16": True},
        {"optim": "adamw_torch_fused", "gradient_accumulation_steps": 2},
        {"optimizer": wk_adamw},
        {"optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=1e-2, amsgrad=True)},
    ],
    ids=["adamw", "fused", "bf16", "accumulated", "wk", "own"],
)
def test_records_are_what_forces_gives_by_hand_and_training_is_the_same(settings, kept, tmp_path):
    metered = new_trainer(tmp_path, [ForcesCallback(statistics="weibull", sinks=[kept])], **settings)
    metered.train()
    by_hand = ByHand()
    plain = new_trainer(tmp_path, [by_hand], **settings)
    plain.train()
    assert_same_weights(metered, plain)
    assert kept.steps == (STEPS if "gradient_accumulation_steps" not in settings else STEPS[:6])
    for (_, budget, scalars), expected, rates in zip(
        kept.records, by_hand.budgets, by_hand.rates, strict=True
    ):
        assert_same_forces(budget, expected)
        assert set(scalars["lr"].tolist()) == set(rates)
        assert set(scalars) == {"lr", "weight_decay", "k", "scale"}
    assert set(kept.budgets[0].names) == {name for name, _ in metered.model.named_parameters()}
    assert set(kept.budgets[0].roles) >= {"attention_output", "ffn", "qkv", "embedding", "head", "norm"}


@pytest.mark.parametrize("optim", ["sgd", "adafactor"])
def test_other_optimizers_are_measured_by_what_they_did(optim, kept, tmp_path):
    weights, callback = Weights(), ForcesCallback(sinks=[kept], decoupled=optim == "adafactor")
    new_trainer(tmp_path, [weights, callback], optim=optim, warmup_steps=0).train()
    assert kept.steps == STEPS
    for (_, budget, scalars), before, after in zip(kept.records, weights.before, weights.after, strict=True):
        lost = scalars["lr"] * scalars["weight_decay"] * (optim == "adafactor")
        for row, name in enumerate(budget.names):
            w, update = before[name], (1 - lost[row]) * before[name] - after[name]
            expected = {
                "alignment": -2 * (w * update).sum(),
                "injection": update.square().sum(),
                "norm_sq": w.square().sum(),
            }
            for column, value in expected.items():
                torch.testing.assert_close(getattr(budget, column)[row], value, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("settings", [{"optim": "adamw_torch"}, {"optim": "sgd"}, {"optimizer": wk_adamw}])
def test_a_resumed_run_goes_on_without_a_gap(settings, kept, tmp_path):
    """From the checkpoint of step 4, in the middle of an interval that the ledger keeps."""
    whole = Kept()
    settings = {"save_strategy": "steps", "save_steps": 4, **settings}
    trainer = new_trainer(tmp_path, [ForcesCallback(every=3, sinks=[whole])], **settings)
    trainer.train()
    resumed = new_trainer(tmp_path, [ForcesCallback(every=3, sinks=[kept])], **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same_weights(trainer, resumed)
    assert whole.steps == [3, 6, 9]
    assert kept.steps == [6, 9]
    for found, expected in zip(kept.budgets, whole.budgets[1:], strict=True):
        assert_same_forces(found, expected)


def test_a_record_file_that_goes_on_has_every_step_once(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4}
    path = tmp_path / "run.parquet"
    for checkpoint in (None, str(tmp_path / "checkpoint-4")):
        with wk.ParquetSink(path, append=True) as sink:
            new_trainer(tmp_path, [ForcesCallback(sinks=[sink])], **settings).train(checkpoint)
    records = wk.read_records(path)
    rows = len(set(records["name"].to_pylist()))
    assert records["step"].to_pylist() == [step for step in STEPS for _ in range(rows)]
    assert records["optimizer_step"].to_pylist() == records["step"].to_pylist()


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_a_step_that_the_scaler_skips_is_not_booked(optim, kept, tmp_path):
    class Overflow(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                next(model.parameters()).grad[0, 0] = torch.inf

    by_hand = ByHand()
    settings = {"optim": optim, "max_grad_norm": 0.0, "warmup_steps": 0}
    trainer = new_trainer(tmp_path, [ForcesCallback(sinks=[kept]), by_hand, Overflow()], **settings)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer.train()
    del by_hand.budgets[2]  # those of the step before once more
    assert len(kept.records) == 8
    assert all((budget.steps == 1).all() for budget in kept.budgets)
    for found, expected in zip(kept.budgets, by_hand.budgets, strict=True):
        assert_same_forces(found, expected)


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_the_trainer_logs_the_totals_by_role_beside_its_own_numbers(strategy, kept, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    settings = {"logging_strategy": strategy, "logging_steps": 2, "report_to": ["tensorboard"]}
    histories = []
    for metered in (False, True):
        trainer = new_trainer(tmp_path, **settings)
        if metered:
            trainer.add_callback(ForcesCallback(every=3, log=trainer.log, sinks=[kept]))
        trainer.train()
        histories.append(trainer.state.log_history)
    plain, history = histories
    forces = [entry for entry in history if "forces/step" in entry]
    assert [entry["forces/step"] for entry in forces] == [entry["step"] for entry in forces] == [3, 6, 9]
    own = [entry for entry in history if entry not in forces]
    assert [(e["step"], e.get("loss")) for e in own] == [(e["step"], e.get("loss")) for e in plain]
    expected = [budget.total(role="ffn").alignment.item() for budget in kept.budgets]
    assert [entry["forces/ffn/alignment"] for entry in forces] == pytest.approx(expected, rel=1e-12)
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    shown = board.Scalars("train/forces/ffn/alignment")
    assert [event.step for event in shown] == [3, 6, 9]
    assert [event.value for event in shown] == pytest.approx(expected, rel=1e-6)


def test_what_was_measured_before_an_error_is_kept_and_the_callback_can_be_used_again(kept, tmp_path):
    callback = ForcesCallback(every=3, sinks=[kept])
    trainer = new_trainer(tmp_path, [callback, Failing()], wk_adamw)
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.train()
    assert kept.steps == [3]
    trainer.train()
    # The ledger's rest, step 4, is recorded when the meter is taken off; the optimizer goes on from there.
    assert kept.steps == [3, 4, 6, 9, 12, 13]
    assert [int(budget.steps[0]) for budget in kept.budgets] == [3, 1, 2, 3, 3, 1]
    assert "__deepcopy__" not in vars(trainer.optimizer.optimizer)


def test_the_meter_can_be_taken_off_after_an_error(kept, tmp_path):
    callback = ForcesCallback(every=3, sinks=[kept])
    trainer = new_trainer(tmp_path, [callback, Failing()], wk_adamw)
    try:
        trainer.train()
    except RuntimeError:
        callback.meter.detach()
    assert kept.steps == [3, 4]


def test_names_rows_and_roles_can_be_chosen(kept, tmp_path):
    callback = ForcesCallback(only="*.mlp.*", roles={"*.up_proj.*": "up"}, every=9, sinks=[kept])
    trainer = new_trainer(tmp_path, [callback])
    callback.on_train_end(None, None, None)  # before any training there is nothing to take off
    trainer.train()
    (budget,) = kept.budgets
    assert len(budget.names) == 3
    assert all(".mlp." in name for name in budget.names)
    assert set(budget.roles) == {"up", "ffn"}


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match=r"takes the arguments of wk.attach: got an unexpected .*'evry'"):
        ForcesCallback(evry=3)
    with pytest.raises(TypeError, match=r"sinks must be several, in a list, got .*; write \["):
        ForcesCallback(sinks=Kept())
    with pytest.raises(TypeError, match="a path is no sink"):
        ForcesCallback(sinks=["run.parquet"])


def test_what_attach_refuses_is_refused_before_the_first_step(tmp_path):
    trainer = new_trainer(tmp_path, [ForcesCallback(every=0)])
    with pytest.raises(ValueError, match="every must be a whole number"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_without_transformers_the_remedy_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "weibull_kernels.adapters.transformers")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'weibull-kernels\[transformers\]'"):
        importlib.import_module("weibull_kernels.adapters.transformers")


def test_the_library_does_not_import_the_frameworks():
    frameworks = "{'transformers', 'lightning', 'pytorch_lightning', 'accelerate'}"
    code = f"import sys, weibull_kernels, weibull_kernels.adapters; print({frameworks} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
