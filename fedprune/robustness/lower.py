"""Lower bounds on a network's Lipschitz constant: what a search for steep places finds.

Jacobian norms at sampled and given points, and from the steepest of them on ascent of the
difference quotient |f(a) - f(b)| / |a - b| over both ends of a pair. Where activations are
piecewise linear, Jacobians do not vary within a piece: only pairs lead from one to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedprune.directions import step_along
from fedprune.errors import RobustnessError
from fedprune.randomness import SimulationRandomness
from fedprune.robustness.arguments import check_inputs, check_whole
from fedprune.robustness.model_checks import private_copy
from fedprune.robustness.network import Network

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

DISTURBED_RUNS = 2
DISTURBANCES = 16.0
"""How many times the largest move of outputs under random rounding is taken off as well."""

MAX_PASS_BYTES = 600_000_000
"""What the graphs of one pass may hold, about: the points are divided accordingly."""


def lower_bound(
    model: nn.Module,
    network: Network,
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
    few are ends of pairs that climb on; of what they rise, the rounding is taken off.

    Args:
        model: in eval mode; examples of a batch must not influence each other.
        network: its lowered form.
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
    samples = check_whole(samples, "samples", 0)
    iterations = check_whole(iterations, "iterations", 1)
    seed = check_whole(seed, "seed", 0)
    if lower_inputs is not None:
        check_inputs(lower_inputs, "lower_inputs", tuple(example_input.shape[1:]))
    with differentiating():
        points = _points(example_input, lower_inputs, samples, seed)
        if len(points) == 0:
            return 0.0
        return _largest_slope(model, network, points, scale, iterations=iterations, seed=seed)


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
    model: nn.Module,
    network: Network,
    points: Tensor,
    scale: Tensor | None,
    *,
    iterations: int,
    seed: int,
) -> float:
    generator = torch.Generator().manual_seed(
        SimulationRandomness(seed, "robustness", "directions").torch_seed()
    )
    single = private_copy(model, torch.float32)
    factor = torch.ones(points.shape[1:]) if scale is None else scale
    size = _points_per_pass(single, points[:1].float())
    found = []
    for part in torch.split(points, size):
        start = torch.randn(part.shape, generator=generator)
        norms, along = jacobian_norms(
            single, part.float(), start, factor.float(), iterations=iterations
        )
        along = torch.where(torch.isfinite(along), along, start)  # too large for float32
        found.append((torch.nan_to_num(norms, nan=-1.0, posinf=-1.0), along.double()))
    norms, directions = (torch.cat(parts) for parts in zip(*found, strict=True))
    steepest = norms.argsort(descending=True, stable=True)[:ASCENT_PAIRS]
    starts, along = points[steepest], directions[steepest] * factor.double()
    pairs = _climbed(single, starts, along, factor, max(1, size // 2))
    double, factor = private_copy(model), factor.double()
    slopes, exact = jacobian_norms(
        double, starts[:1], directions[steepest[:1]], factor, iterations=iterations
    )
    slope = float(confirmed_slopes(double, starts[:1], exact * factor, slopes)[0])
    found_at = slope if math.isfinite(slope) else 0.0
    return max(found_at, QUOTIENT_SHARE * _surest_quotient(network, pairs, factor, generator))


def _surest_quotient(
    network: Network,
    pairs: Sequence[tuple[Tensor, Tensor]],
    factor: Tensor,
    generator: torch.Generator,
) -> float:
    """Give the largest difference quotient that is left when rounding is taken off."""
    lows, highs = (torch.cat(one) for one in zip(*pairs, strict=True))
    with torch.no_grad():
        raw = torch.nan_to_num(_quotients(network.run, lows, highs, factor), posinf=0.0)
        best = 0.0
        for place in raw.argsort(descending=True, stable=True).tolist():
            if float(raw[place]) <= best:
                break
            first, second = lows[place : place + 1], highs[place : place + 1]
            apart = float(((first - second) / factor).norm())
            doubt = sum(_doubt(network, end, generator) for end in (first, second))
            best = max(best, float(raw[place]) - doubt / apart)
    return best


def _doubt(network: Network, point: Tensor, generator: torch.Generator) -> float:
    """How far rounding may have moved the output at a point [1, ...], about.

    Every node's values are moved by a rounding unit at random and the output's move is measured
    (Monte Carlo arithmetic, Parker 1997): it shows where large values cancel.
    """

    def disturbed(values: Tensor) -> Tensor:
        signs = torch.rand(values.shape, generator=generator, dtype=values.dtype) - 0.5
        return values * (1 + 2 * torch.finfo(values.dtype).eps * signs)

    output = network.run(point)
    moved = max(
        float((network.run(disturbed(point), disturbed) - output).norm())
        for _ in range(DISTURBED_RUNS)
    )
    return DISTURBANCES * moved + ROUNDING * float(output.norm())


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
    model: Callable[[Tensor], Tensor], first: Tensor, second: Tensor, factor: Tensor
) -> Tensor:
    """|f(a) - f(b)| / |a - b| of pairs, a and b in units of the unnormalised input: [n]."""
    rise = (model(first) - model(second)).flatten(1).norm(dim=1)
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
        model(point.detach().clone().requires_grad_(True))
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
        (pulled,) = torch.autograd.grad(
            step_along(outputs, dual), inputs, create_graph=True, allow_unused=True
        )
        if pulled is None or not pulled.requires_grad:
            return torch.zeros(len(points), dtype=points.dtype), directions
        vectors = _unit(directions)
        for _ in range(max(1, iterations)):
            pushed = _pushed(model, points, pulled, dual, vectors * factor)
            norms, last = pushed.flatten(1).norm(dim=1), vectors
            (back,) = torch.autograd.grad(
                step_along(outputs, _unit(pushed)), inputs, retain_graph=True
            )
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
        return torch.autograd.grad(step_along(pulled, moves), dual, retain_graph=True)[0]
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
    step = torch.finfo(points.dtype).eps ** (1 / 3) * (1 + float(points.abs().max()))
    with torch.no_grad():
        ahead, behind = model(points + step * moves), model(points - step * moves)
    quotient: Tensor = (ahead - behind) / (2 * step)
    return quotient * QUOTIENT_SHARE


def confirmed_slopes(
    model: nn.Module, points: Tensor, directions: Tensor, slopes: Tensor
) -> Tensor:
    """Accept slopes [n] that a symmetric difference quotient confirms, else take the quotient.

    A derivative taken on a kink is no slope of the function.
    """
    step = 1e-6 * (1 + points.flatten(1).abs().amax(dim=1))
    moves = _over(step, points) * directions
    with torch.no_grad():
        rise = model(points + moves) - model(points - moves)
    quotients = rise.flatten(1).norm(dim=1) / (2 * step)
    return torch.where(quotients >= slopes * (1 - 1e-4), slopes, quotients * (1 - 1e-4))


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
    return torch.cat([drawn, given.detach().to(device="cpu", dtype=torch.float64)])
