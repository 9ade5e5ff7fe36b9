"""Integer noise whose distribution is a Gaussian's, rounded: no floating point can be attacked.

The outputs of a Gaussian mechanism in floating point betray its input through their low bits
(Mironov 2012; Jin, McMurtry, Rubinstein & Ohrimenko 2022), and summing several draws (Holohan &
Braghin 2021, Opacus' secure mode) makes such an attack hard, not impossible. Here a query is
first put on a grid of whole units, and the noise is floor(SIGMA * Z) for a real standard normal Z.
Since k + floor(x) = floor(k + x) for every whole k, the sum is a function of k + SIGMA * Z: the
guarantee is that of the Gaussian mechanism over the reals, at every order and with sampling.

Z is drawn by rejection (von Neumann 1951; the piecewise scheme of Ducas, Durmus, Lepoint &
Lyubashevsky 2013): |Z| = (x + y)/64 with x = 0, 1, ... of weight exp(-x^2/8192) and y uniform on
[0, 1), kept with probability exp(-(2xy + y^2)/8192). The weights are integers correctly rounded to
2^-192 and x ends where the tail has mass 2^-141; a decision that double precision leaves open is
taken with exact arithmetic and as many further bits as it needs. A draw is thus within 2^-140 of
floor(SIGMA * Z) in total variation. How long it takes is not protected.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fedprune.privacy.mechanisms.exact import ExactCategorical
from fedprune.randomness import Randomness, Words

Units = NDArray[np.int64]

SIGMA = 2**30  # standard deviation of the noise, in units
VARIANCE = SIGMA**2 + 1 / 12  # of floor(SIGMA * Z); Sheppard's correction is exact to exp(-10^18)
MEAN = -0.5  # of floor(SIGMA * Z)

_BINS_PER_SIGMA = 64
_BINS = 14 * _BINS_PER_SIGMA
_DENOMINATOR = 2 * _BINS_PER_SIGMA**2
_POSITION_BITS = (SIGMA // _BINS_PER_SIGMA).bit_length() - 1  # bits of y that the result shows
_WEIGHT_BITS = 192
_WORD, _Y_BITS = 64, 63
_DOUBT = 2.0**-40  # errors of double precision in a decision are far below it
_CHUNK = 1 << 15


def gaussian_units(count: int, rng: Randomness) -> Units:
    """Draw independent floor(SIGMA * Z), Z a standard normal: [count] int64."""
    parts: list[Units] = []
    missing = count
    while missing > 0:
        proposed = min(_CHUNK, missing + missing // 64 + 8)
        parts.append(_accepted(proposed, rng)[:missing])
        missing -= len(parts[-1])
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _accepted(proposed: int, rng: Randomness) -> Units:
    """Propose so many and give those that rejection leaves."""
    first, second, third = _wide_words(3 * proposed, rng).reshape(3, proposed)
    bins = _bins().draw(first, _WORD, lambda _: int(_wide_words(1, rng)[0]))
    places = second & np.uint64(2**_Y_BITS - 1)
    keep = _keep(bins, places, third, rng)
    shown = (places >> np.uint64(_Y_BITS - _POSITION_BITS)).astype(np.int64)
    size = (bins << _POSITION_BITS) | shown
    negative = (second >> np.uint64(_Y_BITS)).astype(np.int64)
    return (size ^ -negative)[keep]  # floor of a negative number is the complement of its size


def _keep(bins: Units, places: Words, coins: Words, rng: Randomness) -> NDArray[np.bool_]:
    """Decide with probability exp(-(2xy + y^2)/8192) each, y and the coin read as 0.bits..."""
    y = places * 2.0**-_Y_BITS
    probability = np.exp((2 * bins + y) * y / -_DENOMINATOR)
    coin = coins * 2.0**-_WORD
    keep = np.asarray(coin < probability, dtype=np.bool_)
    for index in np.flatnonzero(np.abs(coin - probability) <= _DOUBT):
        keep[index] = _decide(int(bins[index]), int(places[index]), int(coins[index]), rng)
    return keep


def _decide(bin_: int, place: int, coin: int, rng: Randomness) -> bool:
    """Decide one proposal exactly, reading on in y and in the coin until both agree on it."""
    place_bits, coin_bits = _Y_BITS, _WORD
    while True:
        with localcontext() as context:
            context.prec = 30 + coin_bits
            place_unit, coin_unit = Decimal(2) ** -place_bits, Decimal(2) ** -coin_bits
            error = Decimal(10) ** (8 - context.prec)
            if (coin + 1) * coin_unit < _probability(bin_, (place + 1) * place_unit) - error:
                return True
            if coin * coin_unit > _probability(bin_, place * place_unit) + error:
                return False
        further = _wide_words(2, rng)
        place, place_bits = (place << _WORD) | int(further[0]), place_bits + _WORD
        coin, coin_bits = (coin << _WORD) | int(further[1]), coin_bits + _WORD


def _probability(bin_: int, y: Decimal) -> Decimal:
    return (-(2 * bin_ + y) * y / _DENOMINATOR).exp()


@cache
def _bins() -> ExactCategorical:
    with localcontext() as context:
        context.prec = 100
        scale = Decimal(2) ** _WEIGHT_BITS
        weights = [
            int((scale * (Decimal(-x * x) / _DENOMINATOR).exp()).to_integral_value())
            for x in range(_BINS)
        ]
    return ExactCategorical(weights)


def _wide_words(count: int, rng: Randomness) -> Words:
    """Draw 64-bit words, put together from narrower ones where the source gives those."""
    if rng.word_bits == _WORD:
        return rng.words(count)
    pieces = -(-_WORD // rng.word_bits)
    wide = np.zeros(count, dtype=np.uint64)
    for words in rng.words(pieces * count).reshape(pieces, count):
        wide = (wide << np.uint64(rng.word_bits)) | words
    return wide
