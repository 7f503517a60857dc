"""Learning rates by step, and optimizers whose state survives a restart."""

import pytest
import torch

from gda.config.sections import FinetuneConfig
from gda.errors import MissingError
from gda.generator.finetuning.optimizer import load_optimizer_state, make_optimizer, optimizer_state, rate_at


def _rates(**changes):
    config = FinetuneConfig(learning_rate=0.5, warmup_steps=10, **changes)
    return [rate_at(step, 100, config) for step in range(100)]


def test_every_course_warms_up_to_the_peak():
    """The learning rate rises linearly, reaches its peak after the warm-up, and then takes the course requested."""
    for course in ("cosine", "linear", "constant"):
        rates = _rates(lr_scheduler=course)
        assert rates[0] == pytest.approx(0.5 / 11)
        assert rates[0] < rates[5] < rates[9] < rates[10] == 0.5
    assert 0.01 <= _rates(lr_scheduler="cosine")[-1] < 0.011
    assert _rates(lr_scheduler="cosine")[55] == pytest.approx(0.5 * (0.02 + 0.98 / 2))
    assert _rates(lr_scheduler="linear")[-1] == pytest.approx(0.5 / 90)
    assert _rates(lr_scheduler="linear")[55] == pytest.approx(0.25)
    assert _rates(lr_scheduler="constant")[99] == 0.5


def _train(parameters, optimizer, steps):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        target = torch.randn(3, generator=generator)
        optimizer.zero_grad()
        (parameters["w"] @ torch.ones(4) + parameters["b"] - target).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_state_put_back_continues_alike(name):
    """A fresh optimizer with the saved state takes the same next steps; without it, others."""

    def make(values):
        parameters = {key: torch.nn.Parameter(value.clone()) for key, value in values.items()}
        return parameters, make_optimizer(list(parameters.values()), FinetuneConfig(optimizer=name, learning_rate=0.1))

    start = {"w": torch.ones(3, 4), "b": torch.zeros(3)}
    parameters, optimizer = make(start)
    _train(parameters, optimizer, 5)
    tensors, numbers = optimizer_state(optimizer, parameters)
    reached = {key: value.detach() for key, value in parameters.items()}
    resumed, fresh = make(reached), make(reached)
    load_optimizer_state(resumed[1], resumed[0], {k: v.clone() for k, v in tensors.items()}, numbers)
    for run in ((parameters, optimizer), resumed, fresh):
        _train(*run, 3)
    assert all(torch.equal(parameters[key], resumed[0][key]) for key in start)
    assert not torch.equal(parameters["w"], fresh[0]["w"])


def test_eight_bit_adam_says_what_it_needs():
    """Without its package, the optimizer is refused with what to install or choose."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(MissingError, match="needs the package bitsandbytes"):
            make_optimizer([torch.nn.Parameter(torch.ones(2))], FinetuneConfig(optimizer="adamw_8bit"))
    else:
        make_optimizer([torch.nn.Parameter(torch.ones(2))], FinetuneConfig(optimizer="adamw_8bit"))
