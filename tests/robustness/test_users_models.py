"""Networks as their authors write them: bounds, certificates and attacks speak of the same one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fedprune.errors import RobustnessError
from fedprune.robustness import (
    Certifier,
    attack_distances,
    certified_accuracy,
    direct_search,
    lipschitz,
    local_lipschitz,
    pgd,
)


class Normalising(nn.Module):
    """Normalises its inputs, over them or beside them."""

    def __init__(self, overwrites: bool) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.overwrites = overwrites

    def forward(self, x: Tensor) -> Tensor:
        if self.overwrites:
            x -= 0.5
            x /= 0.25
            return self.head(x)
        return self.head((x - 0.5) / 0.25)


@pytest.fixture
def both() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    one, other = Normalising(True).eval(), Normalising(False).eval()
    other.load_state_dict(one.state_dict())
    inputs = torch.rand(6, 4)
    return one, other, inputs, other(inputs).argmax(1)


def test_a_model_that_overwrites_its_input_is_attacked_as_one_that_does_not(both) -> None:
    one, other, inputs, labels = both
    certifier = Certifier.of(one, inputs[:1])
    radii = torch.from_numpy(certifier.certified_radii(certifier.margins(inputs, labels)))
    before = inputs.clone()
    for attack in (pgd, direct_search):
        assert not attack(one, inputs, labels, 0.99 * radii, steps=10).success.any()
        for share in (0.99, 1.5):
            found, wanted = (
                attack(model, inputs, labels, share * radii, steps=10) for model in (one, other)
            )
            assert torch.equal(found.success, wanted.success)
            assert torch.allclose(found.adversarial, wanted.adversarial)
    reached, wanted = (
        attack_distances(model, inputs, labels, radii=[0.1, 1.0], steps=10, restarts=1)
        for model in (one, other)
    )
    assert np.allclose(reached, wanted)
    assert torch.equal(inputs, before)


def test_a_model_that_overwrites_its_input_is_bounded_from_both_sides(both) -> None:
    one, other, inputs, _ = both
    found, wanted = (lipschitz(model, inputs[:1]) for model in (one, other))
    assert found.upper == pytest.approx(wanted.upper, rel=1e-12)
    assert found.lower == pytest.approx(wanted.lower, rel=1e-6)
    first = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)).eval()
    assert lipschitz(first, inputs[:1]).lower > 0


class Keeping(nn.Module):
    """Keeps the features of its last call, as is common for looking at them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.body(x)
        self.kept["features"] = self.features
        return self.head(torch.relu(self.features))


def test_a_model_that_keeps_its_features_is_bounded_and_attacked() -> None:
    torch.manual_seed(1)
    model, inputs = Keeping().eval(), torch.rand(3, 4)
    labels = model(inputs).argmax(1)
    assert model.features.grad_fn is not None
    bound = lipschitz(model, inputs[:1])
    assert 0 < bound.lower <= bound.upper
    pgd(model, inputs, labels, torch.full((3,), 0.01), steps=2)
    assert model.features.grad_fn is not None  # the user's own stays as it was


@pytest.mark.parametrize("share", [2.0, 0.9])
def test_a_local_slope_taken_on_a_kink_is_no_slope(share: float) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # (1 - share) x + share (x - relu(x) + relu(-x))
            return x - share * torch.relu(x) + share * torch.relu(-x)

    found = local_lipschitz(Odd().eval(), torch.zeros(1, 1), 1.0)
    assert found.lower[0] == pytest.approx(abs(1 - share), rel=1e-3)
    assert found.lower[0] <= abs(1 - share) * (1 + 1e-12)


def test_a_model_whose_examples_influence_each_other_is_refused() -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.shape[0]

    class Centring(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0, keepdim=True)

    for model in (Counting(), Centring()):
        with pytest.raises(RobustnessError):
            lipschitz(model.eval(), torch.rand(1, 4), samples=0)
    with pytest.raises(RobustnessError, match="what else is in its batch"):
        lipschitz(Counting().eval(), torch.rand(1, 4), samples=0)


def test_what_cannot_be_certified_is_said_and_never_not_a_number() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    certifier = Certifier.of(model, torch.zeros(1, 4))
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RobustnessError, match=r"too large|not finite"):
        certifier.margins(torch.full((2, 4), 1e300, dtype=torch.float64), labels)
    with pytest.raises(RobustnessError, match="complex"):
        certifier.margins(torch.zeros(2, 4, dtype=torch.complex64), labels)
    with pytest.raises(RobustnessError, match="complex"):
        lipschitz(model, torch.zeros(1, 4, dtype=torch.complex64))
    with pytest.raises(RobustnessError, match="complex"):
        pgd(model, torch.zeros(2, 4, dtype=torch.complex64), labels, torch.ones(2))
    with pytest.raises(RobustnessError, match="batch_size"):
        certifier.margins(torch.zeros(2, 4), labels, batch_size=0)
    with pytest.raises(RobustnessError, match="NaN"):
        certified_accuracy(np.array([0.1, np.nan]), 0.05)
    with pytest.raises(RobustnessError, match="too small"):
        lipschitz(model, torch.zeros(1, 4), input_std=[1e-320])


def test_refusals_say_what_to_do_or_what_is_wrong() -> None:
    pruned = nn.Linear(4, 3).eval()
    prune.l1_unstructured(pruned, "weight", 0.5)
    with pytest.raises(RobustnessError, match=r"prune\.remove"):
        lipschitz(pruned, torch.zeros(1, 4))

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(1, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias + 0 * x.ndim

    with pytest.raises(RobustnessError, match="got a constant"):
        lipschitz(Constant().eval(), torch.zeros(1, 4))


def test_the_absolute_value_is_known_by_all_its_names() -> None:
    class Absolute(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return abs(x)

    assert lipschitz(Absolute().eval(), torch.zeros(1, 4)).upper == pytest.approx(1.0, rel=1e-12)
