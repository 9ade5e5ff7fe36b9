"""Lower bounds on a network's Lipschitz constant: what a search for steep places finds.

Jacobian norms at sampled and given points, and from the steepest of them on ascent of the
difference quotient |f(a) - f(b)| / |a - b| over both ends of a pair. Where activations are
piecewise linear, Jacobians do not vary within a piece: only pairs lead from one to the next.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedprune.errors import RobustnessError
from fedprune.randomness import SimulationRandomness

SPREADS = (0.1, 1.0, 3.0)
"""Standard deviations around the example input at which random points are drawn, in turn."""

MAX_POINTS_PER_PASS = 64

QUOTIENT_SHARE = 1 - 1e-6
"""Of a difference quotient in place of a derivative, so that its rounding does not count."""

ASCENT_PAIRS = 3
ASCENT_STEPS = 25
HALF_LENGTHS = (0.01, 0.1, 1.0)
"""Of the pairs at the beginning, in turn, in units of the unnormalised input."""

ROUNDING = 1e-12
"""Of the outputs' norms, taken off a difference of outputs in float64."""

MAX_PASS_BYTES = 600_000_000
"""What the graphs of one pass may hold, about: the points are divided accordingly."""


def lower_bound(
    model: nn.Module,
    example_input: Tensor,
    lower_inputs: Tensor | None,
    scale: Tensor | None,
    *,
    samples: int,
    iterations: int,
    seed: int,
) -> float:
    """Find the largest Jacobian norm over sampled and given points.

    All points are searched at once in float32; the best is refined in float64 and confirmed by a
    difference quotient, so that a derivative taken on a kink cannot pass for a slope. The steepest
    few are ends of pairs that climb on.

    Args:
        model: in eval mode; examples of a batch must not influence each other.
        example_input: [1, ...], the centre of the samples.
        lower_inputs: [n, ...] further points, or None.
        scale: [...] entrywise factor from the unnormalised to the model's input, or None.
        samples: number of random points.
        iterations: power iterations at each point.
        seed: of points and starting directions.

    Raises:
        RobustnessError: if the further points have another shape or are not finite, the number of
            samples is negative, or torch cannot differentiate the model.
    """
    if samples < 0:
        raise RobustnessError(f"samples must be at least 0, got {samples}")
    with differentiating():
        points = _points(example_input, lower_inputs, samples, seed)
        if len(points) == 0:
            return 0.0
        return _largest_slope(model, points, scale, iterations=iterations, seed=seed)


@contextmanager
def differentiating() -> Iterator[None]:
    """Leave inference mode, and name what torch cannot differentiate.

    Raises:
        RobustnessError: for what autograd refuses, such as entries that were overwritten in place.
    """
    try:
        with torch.inference_mode(False):
            yield
    except RuntimeError as error:
        raise RobustnessError(
            f"no slope can be found from below, since torch cannot differentiate the model: {error}"
        ) from error


def _largest_slope(
    model: nn.Module, points: Tensor, scale: Tensor | None, *, iterations: int, seed: int
) -> float:
    generator = torch.Generator().manual_seed(
        SimulationRandomness(seed, "robustness", "directions").torch_seed()
    )
    single = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    factor = torch.ones(points.shape[1:]) if scale is None else scale
    size = _points_per_pass(single, points[:1].float())
    found = []
    for part in torch.split(points, size):
        start = torch.randn(part.shape, generator=generator)
        found.append(
            jacobian_norms(single, part.float(), start, factor.float(), iterations=iterations)
        )
    norms = torch.cat([torch.nan_to_num(part, nan=-1.0, posinf=-1.0) for part, _ in found])
    directions = torch.cat([part.double() for _, part in found])
    steepest = norms.argsort(descending=True, stable=True)[:ASCENT_PAIRS]
    starts, along = points[steepest], directions[steepest] * factor.double()
    pairs = _climbed(single, starts, along, factor, max(1, size // 2))
    double = single.to(torch.float64)
    slopes, exact = jacobian_norms(
        double, starts[:1], directions[steepest[:1]], factor.double(), iterations=iterations
    )
    slope = _confirmed(double, starts[:1], exact * factor.double(), float(slopes[0]))
    with torch.no_grad():
        quotients = torch.cat(
            [_quotients(double, *pair, factor.double(), ROUNDING) for pair in pairs]
        )
    climbed = float(torch.nan_to_num(quotients, posinf=0.0).max())
    return max(slope, climbed * QUOTIENT_SHARE)


def _climbed(
    model: nn.Module, points: Tensor, moves: Tensor, factor: Tensor, size: int
) -> list[tuple[Tensor, Tensor]]:
    """Climb from pairs around points [n, ...], so many at a time."""
    lengths = torch.tensor([HALF_LENGTHS[i % len(HALF_LENGTHS)] for i in range(len(points))])
    half = moves * _over(lengths.double(), moves)
    ends = zip(torch.split(points - half, size), torch.split(points + half, size), strict=True)
    return [_ascend(model, *pair, factor) for pair in ends]


def _ascend(
    model: nn.Module, first: Tensor, second: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Climb the difference quotient of pairs, both [n, ...] float64, and give the steepest."""
    ends = [first.float(), second.float()]
    best, steepest = [end.clone() for end in ends], torch.zeros(len(first))
    for step in range(ASCENT_STEPS):
        with torch.enable_grad():
            ends = [end.detach().requires_grad_(True) for end in ends]
            quotients = _quotients(model, ends[0], ends[1], factor.float())
            climbing = torch.log(quotients.clamp_min(1e-30)).sum()
            uphill = torch.autograd.grad(climbing, ends, allow_unused=True)
        better = quotients.detach() > steepest  # never where it is not a number
        steepest = torch.where(better, quotients.detach(), steepest)
        apart = (ends[0] - ends[1]).detach().flatten(1).norm(dim=1)
        stride = 0.2 * (1 - step / ASCENT_STEPS) * apart
        for place, (end, gradient) in enumerate(zip(ends, uphill, strict=True)):
            best[place] = torch.where(_over(better, end), end.detach(), best[place])
            if gradient is not None:
                gradient = torch.nan_to_num(_unit(gradient))
                ends[place] = end.detach() + _over(stride, end) * gradient
    return best[0].double(), best[1].double()


def _quotients(
    model: nn.Module, first: Tensor, second: Tensor, factor: Tensor, rounding: float = 0.0
) -> Tensor:
    """|f(a) - f(b)| / |a - b| of pairs, a and b in units of the unnormalised input: [n].

    `rounding`, a share of the outputs' norms, is taken off the rise.
    """
    low, high = model(first).flatten(1), model(second).flatten(1)
    rise = (low - high).norm(dim=1)
    if rounding:
        rise = (rise - rounding * (low.norm(dim=1) + high.norm(dim=1))).clamp_min(0.0)
    apart = ((first - second) / factor).flatten(1).norm(dim=1)
    return torch.where(apart > 0, rise / apart.clamp_min(torch.finfo(apart.dtype).tiny), 0.0)


def _over(values: Tensor, like: Tensor) -> Tensor:
    """[n] beside [n, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _points_per_pass(model: nn.Module, point: Tensor) -> int:
    """Say how many points fit into a pass, by what autograd keeps of one: three times over."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        model(point.clone().requires_grad_(True))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return max(1, min(MAX_POINTS_PER_PASS, MAX_PASS_BYTES // (3 * max(kept - weights, 1))))


def jacobian_norms(
    model: nn.Module, points: Tensor, directions: Tensor, factor: Tensor, *, iterations: int
) -> tuple[Tensor, Tensor]:
    """Run power iteration on J^T J at every point at once.

    Args:
        model: maps [n, ...] to [n, outputs...], example by example.
        points: [n, ...].
        directions: [n, ...], where to start.
        factor: [...] by which the input is scaled: J is the Jacobian times diag(factor).
        iterations: at least 1.

    Returns:
        ||J v|| [n] for the last unit vectors v [n, ...], each a lower bound on its Jacobian's norm
        (about one, where differences have to stand in for a derivative).
    """
    with torch.enable_grad():
        inputs = points.detach().clone().requires_grad_(True)
        outputs = model(inputs.clone())
        dual = torch.zeros_like(outputs, requires_grad=True)
        if not outputs.requires_grad:
            return torch.zeros(len(points), dtype=points.dtype), directions
        (pulled,) = torch.autograd.grad(outputs, inputs, dual, create_graph=True, allow_unused=True)
        if pulled is None or not pulled.requires_grad:
            return torch.zeros(len(points), dtype=points.dtype), directions
        vectors = _unit(directions)
        for _ in range(max(1, iterations)):
            pushed = _pushed(model, points, pulled, dual, vectors * factor)
            norms, last = pushed.flatten(1).norm(dim=1), vectors
            (back,) = torch.autograd.grad(outputs, inputs, _unit(pushed), retain_graph=True)
            vectors = _unit(back * factor)
    return norms.detach(), last.detach()


def _pushed(
    model: nn.Module, points: Tensor, pulled: Tensor, dual: Tensor, moves: Tensor
) -> Tensor:
    """The push-forward J v: the pull-back is linear in `dual`, and its own gradient is just that.

    Where torch has no second derivative of an operation (hardsigmoid), a difference quotient is
    taken: the direction that it leads to is all that matters, since what is found is confirmed.
    """
    try:
        return torch.autograd.grad(pulled, dual, moves, retain_graph=True)[0]
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
    step = torch.finfo(points.dtype).eps ** (1 / 3) * (1 + float(points.abs().max()))
    with torch.no_grad():
        ahead, behind = model(points + step * moves), model(points - step * moves)
    quotient: Tensor = (ahead - behind) / (2 * step)
    return quotient * QUOTIENT_SHARE


def _confirmed(model: nn.Module, point: Tensor, direction: Tensor, slope: float) -> float:
    """Accept a slope that a symmetric difference quotient confirms, else take the quotient."""
    step = 1e-6 * (1 + float(point.abs().max()))
    with torch.no_grad():
        ahead, behind = model(point + step * direction), model(point - step * direction)
    quotient = float((ahead - behind).norm()) / (2 * step)
    return slope if quotient >= slope * (1 - 1e-4) else quotient * (1 - 1e-4)


def _unit(vectors: Tensor) -> Tensor:
    norms = vectors.flatten(1).norm(dim=1).clamp_min(torch.finfo(vectors.dtype).tiny)
    unit: Tensor = vectors / norms.reshape(-1, *[1] * (vectors.ndim - 1))
    return unit


def _points(example: Tensor, given: Tensor | None, samples: int, seed: int) -> Tensor:
    centre = example.detach().to(device="cpu", dtype=torch.float64, copy=True)
    generator = SimulationRandomness(seed, "robustness", "points").generator
    noise = torch.from_numpy(generator.standard_normal((samples, *centre.shape[1:])))
    spreads = torch.tensor([SPREADS[i % len(SPREADS)] for i in range(samples)], dtype=noise.dtype)
    drawn = centre + noise * spreads.reshape(-1, *[1] * (centre.ndim - 1))
    if given is None:
        return drawn
    if given.shape[1:] != example.shape[1:]:
        raise RobustnessError(
            f"lower_inputs must have shape [n, {', '.join(map(str, example.shape[1:]))}], "
            f"got {list(given.shape)}"
        )
    if not bool(torch.isfinite(given).all()):
        raise RobustnessError("lower_inputs has values that are not finite")
    return torch.cat([drawn, given.detach().to(device="cpu", dtype=torch.float64)])
