"""The loop that trains networks: steps, records, checkpoints, interruptions; and who is held out."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rcp.training import RECORDS, TrainingOptions, drawn_from, held_out, train

IMAGES = torch.randint(0, 256, (10, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
OPTIONS = TrainingOptions(steps=30, batch_size=4, learning_rate=0.01)


class Run:
    """A line through the images' means, with a buffer that counts steps; it remembers which images a step saw."""

    def __init__(self, seed: int = 0, optimizer=torch.optim.Adam):
        self.generator = torch.Generator().manual_seed(seed)
        with drawn_from(self.generator):
            self.model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.optimizer = optimizer(self.model.parameters(), lr=OPTIONS.learning_rate)
        self.seen: list[list[int]] = []
        self.stop_at: int | None = None

    def step(self, indices, number):
        if number == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(indices.tolist())
        output = self.model(IMAGES[indices].float().mean((2, 3)) / 255)
        return {"loss": (output - 1).square().mean(), "size": output.abs().mean()}

    def train(self, options=OPTIONS, **more):
        return train(self.step, self.model, self.optimizer, images=IMAGES, options=options, generator=self.generator,
                     identity={"seed": 0}, **more)  # fmt: skip

    def weights(self):
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_every_step_is_taken_and_every_record_tells_its_own_steps():
    run, told = Run(), []
    history = run.train(callbacks=[told.append])
    assert len(run.seen) == 30 and history == told and len(history) == RECORDS and history[-1].step == 30
    assert [record.step for record in history] == sorted({math.ceil(30 * (i + 1) / RECORDS) for i in range(RECORDS)})
    assert history[-1].losses["loss"] < history[0].losses["loss"] and set(history[0].losses) == {"loss", "size"}
    assert not run.model.training


def test_a_record_is_the_mean_of_its_steps():
    losses = iter(range(100))
    run = Run()
    run.step = lambda indices, number: {"loss": run.model[0].weight.sum() * 0 + next(losses)}
    history = run.train(replace(OPTIONS, steps=40))
    assert [record.losses["loss"] for record in history] == [2 * i + 0.5 for i in range(RECORDS)]


def test_batches_are_different_images_drawn_anew_and_no_more_than_there_are():
    run = Run()
    run.train()
    assert all(len(batch) == len(set(batch)) == 4 for batch in run.seen)
    assert len({tuple(batch) for batch in run.seen}) > 20 and {i for batch in run.seen for i in batch} == set(range(10))
    few = Run()
    few.train(replace(OPTIONS, batch_size=64, steps=2))
    assert sorted(few.seen[0]) == list(range(10))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    runs = [Run(seed) for seed in (0, 0, 1)]
    for run in runs:
        run.train()
    assert same(runs[0].weights(), runs[1].weights()) and not same(runs[0].weights(), runs[2].weights())


def test_rates_are_multiplied_step_by_step():
    run, rates = Run(), []
    real = run.step
    run.step = lambda indices, number: rates.append(run.optimizer.param_groups[0]["lr"]) or real(indices, number)
    history = run.train(replace(OPTIONS, steps=4), factor=lambda number: 1 - number / 4)
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025]) and history[-1].learning_rate == pytest.approx(0.0025)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_a_killed_training_goes_on_to_the_same_weights(optimizer, tmp_path):
    whole, file = Run(optimizer=optimizer), tmp_path / "training.safetensors"
    expected = whole.train()
    killed = Run(optimizer=optimizer)

    def die(record):
        if record.step == 15:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        killed.train(callbacks=[die], checkpoint=file)
    rest = Run(optimizer=optimizer)
    history = rest.train(checkpoint=file)
    assert len(rest.seen) == 15 and rest.seen == whole.seen[15:] and same(rest.weights(), whole.weights())
    assert [(r.step, r.losses) for r in history] == [(r.step, r.losses) for r in expected]
    again = Run(optimizer=optimizer)
    assert again.train(checkpoint=file) == history and not again.seen  # there is nothing left to do


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    file = tmp_path / "training.safetensors"
    Run().train(checkpoint=file)
    run = Run()
    with pytest.raises(ValueError, match="belongs to a training with other settings"):
        train(run.step, run.model, run.optimizer, images=IMAGES, options=OPTIONS, generator=run.generator,
              identity={"seed": 1}, checkpoint=file)  # fmt: skip
    with pytest.raises(ValueError, match="belongs to a training with other settings"):
        train(run.step, run.model, run.optimizer, images=IMAGES.flip(0), options=OPTIONS, generator=run.generator,
              identity={"seed": 0}, checkpoint=file)  # fmt: skip


def test_an_interrupted_training_keeps_what_its_last_record_tells():
    whole, cut = Run(), Run()
    kept = []
    whole.train(callbacks=[lambda record: kept.append(whole.weights()) if record.step == 15 else None])
    cut.stop_at = 16
    with pytest.warns(UserWarning, match="interrupted: what is kept is that of step 15"):
        history = cut.train()
    assert history[-1].step == 15 and same(cut.weights(), kept[0]) and not cut.model.training


def test_a_loss_that_is_no_number_ends_the_training_with_a_word():
    run = Run()
    run.step = lambda indices, number: {"loss": run.model[0].weight.sum() * math.nan}
    with pytest.raises(ValueError, match="no number at step 1: take a smaller learning_rate than 0.01"):
        run.train()


def test_no_steps_train_nothing():
    run = Run()
    before = run.weights()
    assert run.train(replace(OPTIONS, steps=0)) == [] and same(run.weights(), before)


def test_layers_are_drawn_from_the_generator_and_the_global_one_is_left_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    a, b, c = Run(0).weights(), Run(0).weights(), Run(1).weights()
    assert same(a, b) and not same(a, c) and torch.equal(torch.get_rng_state(), state)


@given(n=st.integers(1, 60), share=st.floats(0, 0.95), seed=st.integers(0, 99))
def test_every_image_is_trained_on_or_held_out(n, share, seed):
    trained, held = held_out(n, share, torch.Generator().manual_seed(seed))
    assert sorted(trained.tolist() + held.tolist()) == list(range(n)) and len(trained) >= 1
    assert trained.tolist() == sorted(trained.tolist()) and held.tolist() == sorted(held.tolist())
    if share == 0 or n == 1:
        assert len(held) == 0
    else:
        assert len(held) == min(n - 1, max(1, round(n * share)))


def test_who_is_held_out_is_drawn():
    draws = {tuple(held_out(40, 0.1, torch.Generator().manual_seed(seed))[1].tolist()) for seed in range(5)}
    assert len(draws) == 5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"steps": -1}, "steps"), ({"batch_size": 0}, "batch_size"), ({"learning_rate": 0}, "learning_rate"),
     ({"held_out": 1.0}, "held_out"), ({"smoothing": -1}, "smoothing")],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        TrainingOptions(**wrong)
