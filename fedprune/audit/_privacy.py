"""What was protected, under which assumptions, and what was not."""

from __future__ import annotations

from fedprune.audit import _wording as say
from fedprune.audit._deployed import Deployment, deployment_notes
from fedprune.audit._page import Note, Section, Table
from fedprune.audit._wording import Json
from fedprune.privacy.accounting import RELATIONS, TRUST


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
    return (
        f"The mask reports are differentially private with ε = {epsilon:g} and {delta_words} "
        f"{per}, under {under}. Who has to be trusted: {_trust(privacy)}."
    )


def privacy_section(summary: Json, deployment: Deployment | None = None) -> Section:
    privacy = say.table_of(summary, "privacy")
    return Section(
        "privacy",
        "Privacy",
        lead=(guarantee(privacy),),
        notes=(*_notes(privacy), *deployment_notes(summary, deployment)),
        facts=() if privacy.get("trust") == "none" else tuple(_facts(privacy)),
        bullets_title="What this ε does not cover",
        bullets=_not_covered(privacy),
        folded=_keys(deployment),
    )


def _keys(deployment: Deployment | None) -> tuple[tuple[str, Table], ...]:
    if deployment is None or not deployment.keys:
        return ()
    return (("Clients and the keys that they signed with", deployment.table),)


def _facts(privacy: Json) -> list[tuple[str, str]]:
    epsilon, delta = say.plain(privacy.get("epsilon"), 6), say.plain(privacy.get("delta"))
    return [
        ("ε and δ of a mask report", f"ε = {epsilon}, δ = {delta}"),
        ("Largest ε that a client spent", say.plain(privacy.get("max_epsilon_spent"), 6)),
        ("Unit of protection", say.text(privacy.get("unit"))),
        ("Neighbouring relation", _relation(privacy)),
        ("Trusted", _trust(privacy)),
        ("Mechanism", say.text(privacy.get("mechanism"))),
        ("Reports received", say.count(privacy.get("reports"))),
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
        "The ε above is that of the mask reports alone. Clients also sent messages without "
        "protection, so no ε holds for all that a client sent in this run."
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
