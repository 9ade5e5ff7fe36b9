"""Secure sums among simulated clients: the sum is exact, and what must stay hidden does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.errors import PrivacyError, ReportError
from fedprune.privacy.ledgers.keys import SigningKey
from fedprune.privacy.secure import secure_sum, secure_unmask
from fedprune.privacy.secure.secure_keys import (
    ADVERT_BYTES,
    SEALED_BYTES,
    Advert,
    ClientSecrets,
    pair_mask,
    secret_of,
    self_mask,
)
from fedprune.privacy.secure.secure_terms import SumTerms, join_slots
from fedprune.privacy.secure.shamir import SHARE_BYTES, combine
from fedprune.randomness import SimulationRandomness

RUN, NAME, ENTRIES = "run", "votes-1", 17


@dataclass
class Round:
    """A sum among clients that are lost where a test says so; it keeps all that a server sees."""

    clients: tuple[int, ...]
    min_survivors: int
    colluding: int = 0
    bits: int = 32
    keys: Mapping[int, SigningKey] = field(default_factory=dict)
    name: str = NAME

    def __post_init__(self) -> None:
        """Collect the announced keys."""
        self.adverts = {
            client: secure_sum.advertise(
                self.secrets(client),
                RUN,
                self.name,
                self.keys[client].sign if client in self.keys else None,
            )
            for client in self.clients
        }
        self.terms = SumTerms(
            RUN, self.name, self.clients, self.min_survivors, self.colluding, ENTRIES, self.bits
        )
        self.masked: dict[int, bytes] = {}

    @property
    def roster(self) -> dict[int, str] | None:
        """Public keys, if there are any."""
        return {client: key.public for client, key in self.keys.items()} or None

    def secrets(self, client: int) -> ClientSecrets:
        """Made anew at every call, as a fresh process would."""
        secret = SimulationRandomness(11, "secret", client).words(4).tobytes()
        return ClientSecrets(secret, RUN, self.name, client)

    def vector(self, client: int) -> np.ndarray:
        """What the client adds."""
        words = SimulationRandomness(11, "vector", client).words(ENTRIES)
        return words.astype(self.terms.dtype)

    def others(self, client: int) -> dict[int, Advert]:
        """What the client knows of its neighbours."""
        row = secure_unmask.adverts_for(self.terms, client, self.adverts)
        return secure_sum.neighbours(self.terms, client, row, self.roster)

    def share(self, clients: Iterable[int]) -> None:
        """Stage 2."""
        self.bundles = {
            client: secure_sum.share_secrets(self.terms, self.secrets(client), self.others(client))
            for client in clients
        }
        self.sharers = frozenset(self.bundles)

    def mask(self, clients: Iterable[int]) -> None:
        """Stage 3."""
        for client in clients:
            mask = secure_sum.mask_of(
                self.terms, self.secrets(client), self.others(client), self.sharers
            )
            self.masked[client] = secure_sum.mask_input(self.terms, mask, self.vector(client))
        self.survivors = frozenset(self.masked)

    def reveal(self, client: int, survivors: Set[int] | None = None) -> bytes:
        """Stage 5 of one client."""
        return secure_sum.reveal(
            self.terms,
            self.secrets(client),
            self.others(client),
            secure_unmask.sealed_for(self.terms, client, self.bundles),
            self.sharers,
            self.survivors if survivors is None else survivors,
        )

    def total(self) -> np.ndarray:
        """Sum of what survivors sent."""
        rows = [secure_unmask.read_masked(self.terms, self.masked[c]) for c in self.survivors]
        return np.sum(rows, axis=0, dtype=self.terms.dtype)

    def unmask(self, revealed: Mapping[int, bytes]) -> np.ndarray:
        """The server's last step."""
        return secure_unmask.unmask(
            self.terms, self.adverts, self.total(), self.sharers, self.survivors, revealed
        )

    def finish(self, clients: Iterable[int]) -> np.ndarray:
        """Reveal and unmask."""
        return self.unmask({client: self.reveal(client) for client in clients})

    def plain(self) -> np.ndarray:
        """The sum that ought to come out."""
        rows = [self.vector(client) for client in self.survivors]
        return np.sum(rows, axis=0, dtype=self.terms.dtype)


def full_round(n: int, min_survivors: int, **more: object) -> Round:
    """A round in which everybody has sent its masked input."""
    made = Round(tuple(range(n)), min_survivors, **more)  # type: ignore[arg-type]
    made.share(made.clients)
    made.mask(made.clients)
    return made


@settings(max_examples=40)
@given(
    n=st.integers(2, 12),
    colluding=st.integers(0, 2),
    bits=st.sampled_from([32, 64]),
    data=st.data(),
)
def test_the_sum_is_exact_whoever_is_lost_at_whatever_stage(
    n: int, colluding: int, bits: int, data: st.DataObject
) -> None:
    least = max(2, (n + colluding) // 2 + 1)
    if colluding >= least or least > n:
        return
    order = data.draw(st.permutations(range(n)))
    cuts = sorted(data.draw(st.lists(st.integers(least, n), min_size=3, max_size=3)), reverse=True)
    made = Round(tuple(sorted(10 * c for c in order)), least, colluding, bits)
    made.share(10 * c for c in order[: cuts[0]])
    made.mask(10 * c for c in order[: cuts[1]])
    assert np.array_equal(made.finish(10 * c for c in order[: cuts[2]]), made.plain())


def test_two_hundred_clients_on_a_sparse_graph_sum_exactly_with_losses_at_every_stage() -> None:
    made = Round(tuple(range(200)), 180)
    assert made.terms.plan.degree < 60
    order = np.random.default_rng(4).permutation(200).tolist()
    made.share(order[:194])
    made.mask(order[:188])
    assert np.array_equal(made.finish(order[:181]), made.plain())


def test_a_client_whose_input_came_too_late_can_still_help_to_reveal() -> None:
    made = full_round(6, 4)
    made.survivors = frozenset(range(5))
    assert np.array_equal(made.finish(range(1, 6)), made.plain())


def test_every_message_has_one_size_and_is_the_same_when_asked_again() -> None:
    made = full_round(5, 3)
    again = full_round(5, 3)
    assert {len(row) for row in made.adverts.values()} == {ADVERT_BYTES}
    assert {len(row) for row in made.bundles.values()} == {5 * SEALED_BYTES}
    assert {len(made.reveal(client)) for client in made.clients} == {5 * SHARE_BYTES}
    assert (made.adverts, made.bundles, made.masked) == (again.adverts, again.bundles, again.masked)


def test_another_name_changes_every_key_and_mask() -> None:
    made, other = full_round(3, 2), full_round(3, 2, name="votes-2")
    for client in made.clients:
        first, second = (Advert.from_bytes(r.adverts[client]) for r in (made, other))
        assert not {first.channel, first.mask, first.commitment} & {
            second.channel,
            second.mask,
            second.commitment,
        }
        assert made.masked[client] != other.masked[client]


# What a server that asks for too much does not get.


def known_masks(made: Round, client: int) -> list[np.ndarray]:
    """Every mask on one input that the server can compute after an honest round."""
    seed = _secret(made, client, {c: made.reveal(c) for c in made.survivors})
    lost = made.sharers - made.survivors
    public = {c: Advert.from_bytes(made.adverts[c]).mask for c in made.clients}
    pairs = [
        -pair_mask(made.secrets(gone).mask, gone, client, public[client], made.terms)
        for gone in lost
        if client in made.terms.holders(gone)
    ]
    return [self_mask(seed, made.terms), *pairs]


def _secret(made: Round, owner: int, revealed: Mapping[int, bytes]) -> bytes:
    shares = {}
    for slot, holder in enumerate(made.terms.holders(owner)):
        if holder in revealed:
            start = made.terms.slot(holder, owner) * SHARE_BYTES
            shares[slot + 1] = revealed[holder][start : start + SHARE_BYTES]
    return combine(shares, made.terms.plan.threshold)


def test_a_survivors_input_stays_masked_when_all_that_a_server_can_remove_is_removed() -> None:
    made = Round(tuple(range(8)), 5)
    made.share(range(8))
    made.mask(range(6))
    for client in made.survivors:
        left = secure_unmask.read_masked(made.terms, made.masked[client]).copy()
        assert not np.array_equal(left, made.vector(client))
        for mask in known_masks(made, client):
            left = left - mask
            assert not np.array_equal(left, made.vector(client))


def test_a_late_input_stays_under_its_own_mask_when_the_pairwise_ones_are_revealed() -> None:
    made = full_round(6, 4)
    late = made.masked.pop(5)
    made.survivors = frozenset(range(5))
    key = _secret(made, 5, {c: made.reveal(c) for c in range(5)})
    assert key == made.secrets(5).mask_key
    left = secure_unmask.read_masked(made.terms, late).copy()
    for other in range(5):
        public = Advert.from_bytes(made.adverts[other]).mask
        left -= pair_mask(made.secrets(5).mask, 5, other, public, made.terms)
    assert np.array_equal(left, made.vector(5) + self_mask(made.secrets(5).seed, made.terms))
    assert not np.array_equal(left, made.vector(5))


@pytest.mark.parametrize(("n", "colluding"), [(5, 0), (6, 1), (7, 2)])
def test_a_server_that_tells_clients_different_survivors_gets_one_secret_at_most(
    n: int, colluding: int
) -> None:
    made = full_round(n, (n + colluding) // 2 + 1, colluding=colluding)
    victim, everybody = n - 1, frozenset(range(n))
    without = everybody - {victim}
    corrupt = set(range(colluding))
    for told in range(colluding, n):
        seeds = {c: made.reveal(c, everybody) for c in everybody if c in corrupt or c >= told}
        keys = {c: made.reveal(c, without) for c in without if c in corrupt or c < told}
        secrets = {made.secrets(victim).seed: seeds, made.secrets(victim).mask_key: keys}
        got = [secret for secret, shares in secrets.items() if _opens(made, victim, shares, secret)]
        assert len(got) <= 1


def _opens(made: Round, owner: int, revealed: Mapping[int, bytes], secret: bytes) -> bool:
    try:
        return _secret(made, owner, revealed) == secret
    except ReportError:
        return False


def test_fewer_holders_than_the_threshold_open_nothing() -> None:
    made = full_round(7, 4)
    revealed = {client: made.reveal(client) for client in range(3)}
    with pytest.raises(ReportError, match=r"3 clients revealed shares of client 0.*4 are needed"):
        made.unmask(revealed)


def test_masked_inputs_look_uniform() -> None:
    made = full_round(40, 30)
    rows = [secure_unmask.read_masked(made.terms, made.masked[c]) for c in made.clients]
    bits = np.unpackbits(np.stack(rows).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 4 * 0.5 / bits.size**0.5


# Refusals.


def swapped(row: bytes, size: int) -> bytes:
    """Exchange the last two slots."""
    return row[: -2 * size] + row[-size:] + row[-2 * size : -size]


def flipped(row: bytes, place: int) -> bytes:
    """Change one bit."""
    return row[:place] + bytes([row[place] ^ 1]) + row[place + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        lambda row: flipped(row, 3),
        lambda row: flipped(row, SEALED_BYTES - 1),
        lambda row: swapped(row, SEALED_BYTES),
        lambda row: bytes(len(row)),
    ],
)
def test_changed_or_misdirected_shares_are_refused(change: Callable[[bytes], bytes]) -> None:
    made = full_round(4, 3)
    client = 1
    assert client not in made.terms.holders(client)[-2:]
    row = secure_unmask.sealed_for(made.terms, client, made.bundles)
    with pytest.raises(ReportError, match="changed on its way"):
        secure_sum.reveal(
            made.terms,
            made.secrets(client),
            made.others(client),
            change(row),
            made.sharers,
            made.survivors,
        )


def test_shares_of_another_sum_are_refused() -> None:
    made, other = full_round(4, 3), full_round(4, 3, name="votes-2")
    made.bundles = other.bundles
    with pytest.raises(ReportError, match="made for another sum"):
        made.reveal(1)


def test_shares_made_for_other_participants_are_refused() -> None:
    made, more = full_round(4, 3), full_round(5, 4)
    made.bundles = {
        c: join_slots(
            [
                more.bundles[c][more.terms.slot(c, h) * SEALED_BYTES :][:SEALED_BYTES]
                for h in made.terms.holders(c)
            ],
            SEALED_BYTES,
        )
        for c in made.clients
    }
    with pytest.raises(ReportError, match="made for another sum"):
        made.reveal(1)


@pytest.mark.parametrize(
    ("survivors", "message"),
    [
        ({0, 1, 2}, "3 clients, fewer than min_reports = 4"),
        (set(), "fewer than min_reports"),
        ({0, 1, 2, 3, 99}, "client 99, which has no part"),
        ({0, 1, 2, 3, 5}, "client 5 is a survivor .* shared no secrets"),
    ],
)
def test_survivors_that_cannot_be_are_refused(survivors: set[int], message: str) -> None:
    made = Round(tuple(range(6)), 4)
    made.share(range(5))
    made.mask(range(5))
    with pytest.raises(ReportError, match=message):
        made.reveal(0, survivors)


def test_who_shared_nothing_reveals_nothing() -> None:
    made = Round(tuple(range(6)), 4)
    made.share(range(5))
    made.mask(range(5))
    with pytest.raises(ReportError, match="client 5 shared no secrets"):
        made.reveal(5)


def test_a_client_masks_nothing_among_too_few() -> None:
    made = Round(tuple(range(6)), 4)
    made.share(range(5))
    for sharers, message in (
        ({0, 1, 2}, "fewer than min_reports"),
        ({1, 2, 3, 4}, "client 0 is not among"),
        ({0, 1, 2, 77}, "client 77"),
    ):
        with pytest.raises(ReportError, match=message):
            secure_sum.mask_of(made.terms, made.secrets(0), made.others(0), sharers)


def test_too_few_holders_of_a_client_on_a_sparse_graph_are_refused() -> None:
    made = Round(tuple(range(200)), 180)
    victim = 0
    near = [c for c in made.terms.holders(victim) if c != victim]
    left = frozenset(made.clients) - frozenset(near[:20])
    assert len(left) == 180
    with pytest.raises(ReportError, match="holders that survived"):
        secure_sum.check_survivors(made.terms, victim, frozenset(made.clients), left)


def test_a_client_outside_the_sum_is_refused() -> None:
    made = full_round(3, 2)
    with pytest.raises(ReportError, match="client 9 does not take part"):
        secure_sum.share_secrets(made.terms, made.secrets(9), {})


def test_wrong_lengths_are_refused() -> None:
    made = full_round(3, 2)
    row = secure_unmask.adverts_for(made.terms, 0, made.adverts)
    mask = np.zeros(ENTRIES, dtype=made.terms.dtype)
    with pytest.raises(ReportError, match="the neighbours' keys must have 480 bytes, got 479"):
        secure_sum.neighbours(made.terms, 0, row[:-1])
    with pytest.raises(ReportError, match="an input must be"):
        secure_sum.mask_input(made.terms, mask, np.zeros(ENTRIES, dtype=np.int64))
    with pytest.raises(ReportError, match="an input must be"):
        secure_sum.mask_input(made.terms, mask, mask[:-1])
    for read in (
        secure_unmask.read_bundle,
        secure_unmask.read_revealed,
        secure_unmask.read_masked,
    ):
        with pytest.raises(ReportError, match="must have"):
            read(made.terms, b"x")
    with pytest.raises(PrivacyError, match="32 bytes"):
        ClientSecrets(b"short", RUN, NAME, 0)


def test_duplicate_and_unusable_keys_are_refused() -> None:
    made = full_round(3, 2)
    made.adverts[1] = made.adverts[0]
    with pytest.raises(ReportError, match="the same key"):
        made.others(2)
    usable = Advert.from_bytes(Round((0, 1, 2), 2).adverts[1])
    made.adverts[1] = Advert(bytes(32), usable.mask, usable.commitment).to_bytes()
    with pytest.raises(ReportError, match="client 1 is no usable one"):
        secure_sum.share_secrets(made.terms, made.secrets(0), made.others(0))


def test_wrong_shares_are_noticed_whichever_secret_they_are_of() -> None:
    made = full_round(4, 3)
    revealed = {client: made.reveal(client) for client in made.clients}
    with pytest.raises(ReportError, match=r"client 0's seed|one secret|the field"):
        made.unmask({**revealed, 0: flipped(revealed[0], SHARE_BYTES * 4 - 1), 1: bytes(132)})
    made = Round(tuple(range(4)), 3)
    made.share(range(4))
    made.mask(range(3))
    revealed = {client: made.reveal(client) for client in range(3)}
    slot = made.terms.slot(0, 3)
    wrong = flipped(revealed[0], SHARE_BYTES * (slot + 1) - 1)
    with pytest.raises(ReportError, match="client 3's mask key"):
        made.unmask({**revealed, 0: wrong})


# Rosters and consent.


@pytest.fixture(scope="module")
def signing_keys(tmp_path_factory: pytest.TempPathFactory) -> dict[int, SigningKey]:
    """Five clients' keys."""
    folder = tmp_path_factory.mktemp("keys")
    return {client: SigningKey.open(folder / f"{client}.key") for client in range(5)}


def test_signed_keys_of_a_roster_sum_as_unsigned_ones_do(
    signing_keys: dict[int, SigningKey],
) -> None:
    made = full_round(5, 4, keys=signing_keys)
    assert np.array_equal(made.finish(range(4)), made.plain())


def test_forged_keys_are_refused_where_there_is_a_roster(
    signing_keys: dict[int, SigningKey],
) -> None:
    made = full_round(5, 4, keys=signing_keys)
    forged = secure_sum.advertise(made.secrets(77), RUN, NAME, signing_keys[0].sign)
    made.adverts[3] = forged
    with pytest.raises(ReportError, match=r"client 3 .* not signed by the key"):
        made.others(1)


def test_keys_of_another_sum_are_refused_where_there_is_a_roster(
    signing_keys: dict[int, SigningKey],
) -> None:
    made = full_round(5, 4, keys=signing_keys)
    made.adverts = full_round(5, 4, keys=signing_keys, name="votes-2").adverts
    with pytest.raises(ReportError, match="not signed"):
        made.others(1)


def test_invented_clients_are_refused_where_there_is_a_roster(
    signing_keys: dict[int, SigningKey],
) -> None:
    made = Round(tuple(range(6)), 4, keys=signing_keys)
    with pytest.raises(ReportError, match=r"client 5 .* not in this node's roster"):
        made.others(1)


def test_consent_counts_only_for_the_very_same_survivors(
    signing_keys: dict[int, SigningKey],
) -> None:
    made = full_round(5, 3, keys=signing_keys)
    everybody, fewer = frozenset(range(5)), frozenset(range(4))

    def consents(views: Mapping[int, frozenset[int]]) -> bytes:
        given = {
            c: secure_sum.consent(made.terms, c, made.sharers, view, signing_keys[c].sign)
            for c, view in views.items()
        }
        return secure_unmask.consents_for(made.terms, 0, given)

    def check(row: bytes) -> None:
        assert made.roster is not None
        secure_sum.check_consents(made.terms, 0, made.sharers, everybody, row, made.roster)

    check(consents(dict.fromkeys(range(5), everybody)))
    check(consents({1: everybody, 2: everybody, 3: fewer}))
    with pytest.raises(ReportError, match=r"2 of client 0's holders agreed .* 3 must"):
        check(consents({1: everybody, 2: fewer, 3: fewer, 4: fewer}))
    with pytest.raises(ReportError, match="1 of client 0's holders"):
        check(bytes(len(consents({}))))
    with pytest.raises(ReportError, match="fewer than min_reports"):
        secure_sum.consent(made.terms, 0, made.sharers, {0, 1}, signing_keys[0].sign)


def test_a_deployed_clients_secret_follows_from_its_key_alone(
    signing_keys: dict[int, SigningKey],
) -> None:
    secrets = [secret_of(key) for key in signing_keys.values()]
    assert secrets == [secret_of(key) for key in signing_keys.values()]
    assert len(set(secrets)) == 5
    assert {len(secret) for secret in secrets} == {32}
