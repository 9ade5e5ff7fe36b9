"""What was protected, under which assumptions, and what was not."""

from __future__ import annotations

from fedprune.audit import _wording as say
from fedprune.audit._deployed import Deployment, deployment_notes
from fedprune.audit._page import Note, Section, Table
from fedprune.audit._wording import Json
from fedprune.privacy.budgets.events import RELATIONS
from fedprune.privacy.budgets.guarantees import COVERS, TRUST


def guarantee(privacy: Json) -> str:
    """Say the guarantee in one sentence that can stand alone."""
    if privacy.get("trust") == "none":
        return (
            "Nothing protects the votes: masks were sent as they are, so the server and everybody "
            "who reads its messages must be trusted."
        )
    epsilon = say.number(privacy.get("epsilon"))
    if epsilon is None:
        return "No privacy guarantee was recorded for this run."
    delta = say.number(privacy.get("delta"))
    delta_words = "δ not known" if delta is None else f"δ = {say.plain(delta)}"
    unit = privacy.get("unit")
    per = f"per {unit}" if unit else "per unit of protection that is not known"
    relation = _relation(privacy)
    under = "a relation that is not known" if relation == say.UNKNOWN else relation
    covered = COVERS.get(str(privacy.get("trust")), "the mask reports alone")
    return (
        f"Differential privacy with ε = {epsilon:g} and {delta_words} {per}, under {under}, holds "
        f"for {covered}. Who has to be trusted: {_trust(privacy)}."
    )


def privacy_section(summary: Json, deployment: Deployment | None = None) -> Section:
    privacy = say.table_of(summary, "privacy")
    arrived = not say.table_of(summary, "availability")  # a simulation may lose some
    return Section(
        "privacy",
        "Privacy",
        lead=(guarantee(privacy),),
        notes=(*_notes(privacy), *deployment_notes(summary, deployment)),
        facts=() if privacy.get("trust") == "none" else tuple(_facts(privacy, arrived)),
        tables=_totals(privacy),
        bullets_title="What this ε does not cover",
        bullets=_not_covered(privacy),
        folded=_keys(deployment),
    )


def _totals(privacy: Json) -> tuple[Table, ...]:
    """What the worst client spent in all, a row for each neighbouring relation."""
    rows = [total for total in say.list_of(privacy, "totals") if isinstance(total, dict)]
    if not rows:
        return ()
    return (
        Table(
            ("One", "Relation", "ε", "δ", "ε of a fixed schedule", "Covers"),
            tuple(
                (
                    say.text(total.get("unit")),
                    _relation(total),
                    say.plain(total.get("epsilon"), 6),
                    say.plain(total.get("delta")),
                    say.plain(total.get("epsilon_of_schedule"), 6),
                    ", ".join(map(str, say.list_of(total, "covers"))) or "nothing",
                )
                for total in rows
            ),
            caption="What the client that spent most has spent in all, by its ledger's own count, "
            "which holds however the rounds were chosen; and the same events composed as a "
            "schedule that was fixed beforehand. A client-level report counts for records too; "
            "the rows are never added up.",
            words=frozenset({1, 5}),
        ),
    )


def _keys(deployment: Deployment | None) -> tuple[tuple[str, Table], ...]:
    if deployment is None or not deployment.keys:
        return ()
    return (("Clients and the keys that they signed with", deployment.table),)


def _facts(privacy: Json, arrived: bool) -> list[tuple[str, str]]:
    epsilon, delta = say.plain(privacy.get("epsilon"), 6), say.plain(privacy.get("delta"))
    return [
        ("ε and δ of the guarantee", f"ε = {epsilon}, δ = {delta}"),
        ("Largest ε that a client spent", say.plain(privacy.get("max_epsilon_spent"), 6)),
        ("Unit of protection", say.text(privacy.get("unit"))),
        ("Neighbouring relation", _relation(privacy)),
        ("Trusted", _trust(privacy)),
        ("Mechanism", say.text(privacy.get("mechanism"))),
        (
            "Reports received" if arrived else "Reports made, lost ones too",
            say.count(privacy.get("reports")),
        ),
        ("Variance of one unit's vote", say.plain(privacy.get("variance_per_vote"), 4)),
    ]


def _notes(privacy: Json) -> list[Note]:
    if "overall_client_epsilon" not in privacy or privacy.get("trust") == "none":
        return []
    overall = say.number(privacy.get("overall_client_epsilon"))
    if overall is not None:
        words = (
            f"Everything that a client sent in this run together costs it at most ε = {overall:g}."
        )
        return [Note("good", words)]
    words = (
        "The ε above is that of the answers about masks alone. Clients also sent messages that it "
        "does not cover, so no client-level ε holds for all that a client sent in this run."
    )
    return [Note("mind", words)]


def _not_covered(privacy: Json) -> tuple[str, ...]:
    stored = say.list_of(privacy, "not_covered")
    if stored:
        return tuple(say.sentence(gap) for gap in stored)
    if "not_covered" in privacy and privacy["not_covered"] is not None:
        return ("Nothing was recorded that this ε leaves out.",)
    return ("Not known: the run did not record it.",)


def _relation(privacy: Json) -> str:
    relation = say.text(privacy.get("relation"))
    meaning = RELATIONS.get(relation)
    return f"{relation} ({meaning})" if meaning else relation


def _trust(privacy: Json) -> str:
    trust = say.text(privacy.get("trust"))
    return TRUST.get(trust, trust)
