"""One configuration and seed on both engines: identical masks, reports and models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import small_config
from safetensors.torch import load_file

from fedprune import audit
from fedprune.errors import FederationError
from fedprune.federated.simulate import resume, simulate
from fedprune.privacy import Ledger
from fedprune.privacy.ledgers.chain import STORED
from fedprune.progress import Quiet
from fedprune.runs import RunFolder

SIXTEEN = (
    "data.clients=16",
    "train.rounds=2",
    "train.clients_per_round=8",
    "train.local_epochs=1",
    "evaluate.baselines=false",
)
HEART = ("data.dataset=heart", "data.groups=sex", "privacy.epsilon=8.0")


def reports(out: Path) -> dict[str, bytes]:
    with Ledger.open(out / "ledger.sqlite", read_only=True) as ledger:
        return {e.client: e.report for e in ledger.entries() if e.stage == STORED}


@pytest.mark.parametrize("dataset", ["digits", "heart"])
def test_local_and_flower_give_identical_masks_and_reports(
    dataset: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    overrides = list(SIXTEEN)
    if dataset == "heart":
        overrides += [*HEART, f"data.root={request.getfixturevalue('data_root')}"]
    config = small_config(*overrides)
    local, flower = tmp_path / "local", tmp_path / "flower"
    for out, engine in ((local, "local"), (flower, "flower")):
        simulate(config, out, Quiet(), engine)
    assert len(reports(local)) == 16
    assert reports(local) == reports(flower)
    for name in ("votes", "model", "dense"):
        file = f"{name}.safetensors"
        assert (local / file).read_bytes() == (flower / file).read_bytes(), file
    margins = [load_file(out / "margins.safetensors") for out in (local, flower)]
    for name, values in margins[0].items():  # float64, in batches of other sizes
        torch.testing.assert_close(values, margins[1][name], rtol=1e-9, atol=1e-12)
    assert audit.audit(flower).holds
    fairness = [
        RunFolder.open(out).read_json("summary.json")["fairness"] for out in (local, flower)
    ]
    assert fairness[0] == fairness[1]
    if dataset == "heart":  # two classes: labels and predictions are counted
        assert fairness[1]["outcomes"]["demographic_parity"]["difference_pruned"] is not None


def test_the_local_engine_continues_what_flower_s_began_and_a_failure_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaks.py").write_text(
        "from pathlib import Path\n"
        "from fedprune.data import load\n"
        "from fedprune.errors import DataError\n"
        "def rows(root, *, seed):\n"
        "    if Path('mended').exists():\n"
        "        return load('digits', root, seed=seed)\n"
        "    raise DataError('the rows are not there yet')\n"
    )
    monkeypatch.chdir(tmp_path)
    config = small_config(*SIXTEEN, "data.dataset=breaks:rows")
    with pytest.raises(FederationError, match="the rows are not there yet") as refused:
        simulate(config, tmp_path / "run", Quiet(), "flower")
    assert "\n" not in str(refused.value)
    (tmp_path / "mended").touch()
    summary = resume(tmp_path / "run", Quiet())
    assert summary["privacy"]["reports"] == 16
