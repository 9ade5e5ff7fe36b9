"""What an analysis of group tables found, as frozen values with one JSON form."""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from fedprune.fairness.intervals import Interval
from fedprune.fairness.noise import TableNoise


@dataclass(frozen=True)
class AccuracyChange:
    """Accuracy over all rows, dense and pruned, and the paired change (pruned minus dense)."""

    rows: int
    dense: float
    pruned: float
    interval_dense: Interval
    interval_pruned: Interval
    change: float
    change_interval: Interval


@dataclass(frozen=True)
class GroupResult:
    """One group. Every figure is None where the group is too small to be shown.

    A small group is left out because figures of so few rows say nothing. That hides nobody: its
    number of rows is here, and what the others leave of the overall figures is its own. What
    protects records is noise.

    `excess_loss` is psi_g = (A_g dense - A_g pruned) - (A dense - A pruned): what pruning cost
    this group beyond what it cost everyone. `p_holm` tests psi_g = 0, adjusted over the groups.
    `mcnemar_p` tests that dense and pruned are equally often right in this group, exactly; it is
    None too where rows are not independent, because whole clients were resampled, and where counts
    are noisy. `excess_simultaneous` holds together with those of all other groups; where counts are
    noisy, `rows` and `clients` are estimates.
    """

    name: str
    rows: int
    clients: int
    too_small: bool
    accuracy_dense: float | None = None
    accuracy_pruned: float | None = None
    interval_dense: Interval | None = None
    interval_pruned: Interval | None = None
    excess_loss: float | None = None
    excess_interval: Interval | None = None
    p_holm: float | None = None
    mcnemar_p: float | None = None
    mcnemar_p_holm: float | None = None
    excess_simultaneous: Interval | None = None


@dataclass(frozen=True)
class PairChange:
    """The followed pair of groups: accuracy of `best` minus accuracy of `worst`, and its change.

    The names say which group was best and worst where the pair was chosen (`chosen_on`), so a
    difference may be negative here.
    """

    best: str
    worst: str
    chosen_on: str
    difference_dense: float
    difference_pruned: float
    change: float
    interval: Interval


@dataclass(frozen=True)
class WorstGroup:
    """The group with the lowest accuracy among those large enough."""

    name: str
    accuracy: float


@dataclass(frozen=True)
class Spread:
    """Accuracy over clients: variance (over clients with rows), worst tenth and worst client.

    `bottom_tenth` is the mean accuracy of the tenth of clients (at least one) that fare worst.
    All are None where counts are noisy: a client's own ratio then says more about its noise.
    """

    variance: float | None
    bottom_tenth: float | None
    worst: float | None


@dataclass(frozen=True)
class ClientSpread:
    """How accuracy differs between clients.

    `chance_variance_*` is the variance that the clients' few rows alone would bring if every
    client had the same accuracy: a variance near it says nothing against equality.
    `between_variance_*` is the variance of the clients' own accuracies with chance and noise taken
    out, a client counting by its pairs of rows; 0 where less differs than chance would make, None
    where no client has two rows or noise hides whether one has.
    """

    clients: int
    dense: Spread
    pruned: Spread
    chance_variance_dense: float | None
    chance_variance_pruned: float | None
    between_variance_dense: float | None = None
    between_variance_pruned: float | None = None


@dataclass(frozen=True)
class FairnessSummary:
    """Everything the count tables of one evaluation say about groups and clients.

    `gap_dense` and `gap_pruned` are best minus worst accuracy among groups of at least
    `min_group` rows, `gap_change` is their difference (pruned minus dense); None where fewer than
    two groups are large enough. They are biased upward, so the interval is that of `pair`, whose
    two groups were fixed beforehand. `gap_*_by_chance` is the mean gap that groups of equal
    accuracy would show by chance (and noise) alone; `gap_*_interval` covers the gap whichever
    groups are best and worst. `noise` describes what was added to the counts, if anything.
    `conditional_on` says for whom the intervals speak; it is empty where they speak for the
    population that the clients were drawn from.
    """

    group: str
    accuracy: AccuracyChange
    groups: tuple[GroupResult, ...]
    gap_dense: float | None
    gap_pruned: float | None
    gap_change: float | None
    pair: PairChange | None
    worst_group_dense: WorstGroup | None
    worst_group_pruned: WorstGroup | None
    clients: ClientSpread
    min_group: int
    confidence: float
    resamples: int
    resampled: str
    conditional_on: str
    method: str
    gap_dense_by_chance: float | None = None
    gap_pruned_by_chance: float | None = None
    gap_dense_interval: Interval | None = None
    gap_pruned_interval: Interval | None = None
    noise: TableNoise | None = None

    def to_json(self) -> dict[str, Any]:
        """Give plain lists, dicts, numbers and strings, as `summary.json` holds them."""
        whole = plain(self)
        dense, pruned = whole.pop("worst_group_dense"), whole.pop("worst_group_pruned")
        whole["worst_group"] = None if dense is None else {"dense": dense, "pruned": pruned}
        whole["gap_change_interval"] = None if self.pair is None else list(self.pair.interval)
        return dict(whole)


def plain(value: Any) -> Any:
    """Turn dataclasses, dicts and tuples into dicts and lists all the way down."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value
