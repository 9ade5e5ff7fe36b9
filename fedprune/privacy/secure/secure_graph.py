"""Who shares secrets with whom in a secure sum, and how many it takes to get one back.

J. H. Bell, K. Bonawitz, A. Gascon, T. Lepoint & M. Raykova 2020, "Secure single-server aggregation
with (poly)logarithmic overhead" (CCS): each client masks its input with k neighbours only. They
stand on a ring in an order that a public label draws, and everybody's neighbours are the k / 2 on
either side (a Harary graph on randomly placed nodes, their Section 3). With few clients k = n - 1:
everybody with everybody, as in Bonawitz et al. 2017.

The holders of a client's secrets are its neighbours and itself, k + 1 in all; a secret takes t of
their shares. With n clients, of whom c at most collude with the server and all but a may be lost,
the degree is the smallest even number for which, over the draw of the order,

1. no honest client has more than c' colluding neighbours, except with probability 2^-40: the number
   is hypergeometric, and the union bound is over n clients;
2. t = floor((k + 1 + c') / 2) + 1. If a server tells some holders that a client was lost and others
   that it was not, honest holders give one kind of share each, so both kinds together reach at
   most (k + 1 - c') + 2 c' < 2 t: never both of a client's secrets;
3. the clients that neither collude nor were lost are connected, except with probability 2^-40: a
   ring falls apart only where k / 2 clients in a row are gone, which has probability at most
   n * prod_{i < k/2} (gone - i) / (n - i);
4. everybody has t holders left, except with probability 2^-30: hypergeometric again. If it fails
   the sum cannot be revealed, which costs a round and no privacy.

Conditions 1 and 3 hold for colluding and lost clients that were fixed before the order was drawn,
and for an order that the server does not choose by trial: with an honest-but-curious server. A
degree is made for at least a twentieth of colluding and of lost clients, whatever is asked for.
For k = n - 1 nothing is left to chance: 1 holds with c' = c, 3 always, and 4 whenever a >= t; up
to a hundred clients it is always so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from scipy.stats import hypergeom

from fedprune.errors import PrivacyError

_SECURITY = 2.0**-40
_CORRECTNESS = 2.0**-30
_LEAST_SHARE = 20  # a twentieth
_SMALLEST_SPARSE = 101
_SMALLEST_DEGREE = 4


@dataclass(frozen=True)
class SharingPlan:
    """How a secure sum's secrets are shared.

    Attributes:
        num_clients: n, clients that take part from the start.
        min_survivors: a, the least number whose inputs may be summed.
        colluding: c, how many clients may help the server.
        degree: k, each client's neighbours.
        threshold: t, shares that reveal a secret.
        colluding_neighbours: c', of any one client.
    """

    num_clients: int
    min_survivors: int
    colluding: int
    degree: int
    threshold: int
    colluding_neighbours: int

    @property
    def complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self.degree == self.num_clients - 1

    @property
    def holders(self) -> int:
        """How many clients hold a share of one client's secrets."""
        return self.degree + 1

    @staticmethod
    def of(num_clients: int, min_survivors: int, colluding: int = 0) -> SharingPlan:
        """Choose degree and threshold.

        Raises:
            PrivacyError: if fewer than two survivors are asked for, more than there are clients,
                or so few that no threshold stops a server that tells clients different things.
        """
        return _plan(num_clients, min_survivors, colluding)


@lru_cache(maxsize=64)
def _plan(num_clients: int, min_survivors: int, colluding: int) -> SharingPlan:
    if not 2 <= min_survivors <= num_clients:
        raise PrivacyError(
            f"a secure sum of {num_clients} clients needs min_reports in [2, {num_clients}], got "
            f"{min_survivors}"
        )
    if not 0 <= colluding < min_survivors:
        raise PrivacyError(f"colluding must be in [0, {min_survivors - 1}], got {colluding}")
    complete = _threshold(num_clients - 1, colluding)
    if min_survivors < complete:
        raise PrivacyError(
            f"a secure sum of {num_clients} clients with {colluding} colluding needs min_reports "
            f"of at least {complete}, more than half of them, got {min_survivors}: with fewer, a "
            "server could have both of a client's secrets by telling clients different things"
        )
    if num_clients < _SMALLEST_SPARSE:
        return SharingPlan(
            num_clients, min_survivors, colluding, num_clients - 1, complete, colluding
        )
    least = num_clients // _LEAST_SHARE + 1
    corrupt = max(colluding, least)
    lost = max(num_clients - min_survivors, least)
    for degree in range(_SMALLEST_DEGREE, num_clients - 1, 2):
        bound = _colluding_neighbours(num_clients, corrupt, degree)
        threshold = _threshold(degree, bound)
        if _connected(num_clients, corrupt + lost, degree) and _recoverable(
            num_clients, lost, degree, threshold
        ):
            return SharingPlan(num_clients, min_survivors, colluding, degree, threshold, bound)
    return SharingPlan(num_clients, min_survivors, colluding, num_clients - 1, complete, colluding)


def _threshold(degree: int, colluding_neighbours: int) -> int:
    return (degree + 1 + colluding_neighbours) // 2 + 1


def _colluding_neighbours(num_clients: int, corrupt: int, degree: int) -> int:
    """The smallest c' that no honest client's neighbourhood exceeds, up to 2^-40."""
    most = min(corrupt, degree)
    for bound in range(most):
        if num_clients * hypergeom.sf(bound, num_clients - 1, corrupt, degree) <= _SECURITY:
            return bound
    return most


def _connected(num_clients: int, gone: int, degree: int) -> bool:
    probability = float(num_clients)
    for taken in range(degree // 2):
        probability *= max(0, gone - taken) / (num_clients - taken)
    return probability <= _SECURITY


def _recoverable(num_clients: int, lost: int, degree: int, threshold: int) -> bool:
    """Whether t of any client's neighbours are left, even without its own share."""
    failure = hypergeom.sf(degree - threshold, num_clients - 1, lost, degree)
    return bool(num_clients * failure <= _CORRECTNESS)
