"""The server's side: all phases of one run, each done once, in order, resumable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedprune import config as configuration
from fedprune import progress, runs, study
from fedprune.config import Config
from fedprune.errors import FederationError, FedpruneError, LedgerError, RunError
from fedprune.federated.averaging import train_rounds
from fedprune.federated.conversation import Conversation
from fedprune.federated.evaluation import accuracy_of, cost_phase, fairness_phase, robustness_phase
from fedprune.federated.experiment import Experiment, Held, JsonDict
from fedprune.federated.opening import run_folder_path
from fedprune.federated.path import Outcome, follow
from fedprune.federated.reuse import baseline_series, leave, take_over
from fedprune.federated.sharing import Sharing, from_environment
from fedprune.federated.summary import summarize
from fedprune.federated.voting import BASELINES, private_votes
from fedprune.progress import Reporter
from fedprune.runs import (
    Architecture,
    RunFolder,
    is_run_of,
    ledger_contradiction,
    seal,
    weights_vector,
)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's entry point: run the configured experiment into its run folder, or continue it.

    A person's error is said in one sentence, and fails the Flower run.
    """
    reporter = progress.from_environment()
    try:
        _run_once(grid, context, reporter)
    except FedpruneError as error:
        reporter.fail(f"{error}")
        raise


def _run_once(grid: Grid, context: Context, reporter: Reporter) -> None:
    config = configuration.from_flat(context.run_config)
    path = run_folder_path(config, context.run_id)
    folder = _new_or_same(path, _one_seed(config))  # a Flower run is one run
    with folder.locked():
        reporter.say(f"run folder: {path}")
        if not folder.has("summary.json"):
            run(grid, folder, reporter, from_environment())


def _one_seed(config: Config) -> Config:
    evaluate = config.evaluate.model_copy(update={"seeds": 1})
    return config.model_copy(update={"evaluate": evaluate, "out": ""})


def _new_or_same(path: Path, config: Config) -> RunFolder:
    """Start a run, or open the folder in which one of the same configuration was started."""
    if not (path / "config.toml").is_file():
        return RunFolder.create(path, config.model_copy(update={"out": str(path)}))
    folder = RunFolder.open(path)
    if _one_seed(folder.config) != config:
        raise RunError(f"{path} holds a run of another configuration; name another folder with out")
    return folder


def run(
    grid: Grid, folder: RunFolder, reporter: Reporter, sharing: Sharing | None = None
) -> JsonDict:
    """Do all phases of a folder's run that are not finished yet and return the summary.

    Args:
        grid: reaches the clients.
        folder: of the run.
        reporter: where to say how far it is.
        sharing: what it has in common with the other runs of a sweep.

    Raises:
        FedpruneError: in one sentence; what is finished stays finished.
    """
    check_continuable(folder)
    # A run folder may have been moved since it was started.
    config = folder.config.model_copy(update={"out": str(folder.path)})
    conversation = Conversation(grid, config.data.clients, config.federation, reporter)
    shared = sharing if conversation.simulated else None  # deployed clients answer everything
    experiment = Experiment(config, folder, conversation, reporter, shared)
    _check_trust(experiment)
    experiment.phase("plan", lambda: _plan(experiment))
    dense = dense_model(experiment)
    private = follow(experiment, dense, "private", private_votes)
    _say_accuracy(experiment, "private votes", private)
    save_artifacts(experiment, dense, private.held)
    baselines = follow_baselines(experiment, dense)
    cost_phase(experiment, private.held, dense)
    fairness_phase(experiment, private.held, dense)
    robustness_phase(experiment, private.held, dense)
    experiment.phase("seal", lambda: dict(seal(folder)))
    return summarize(experiment, dense, private, baselines)


def _check_trust(experiment: Experiment) -> None:
    """Refuse trust and availability settings that have no meaning among deployed clients.

    Raises:
        FederationError: naming the setting and why.
    """
    if experiment.simulated:
        return
    if experiment.config.availability.configured:
        raise FederationError(
            "the table availability exists in simulation only: deployed clients come and go by "
            "themselves; leave its keys at their defaults"
        )
    trust = experiment.config.privacy.trust
    if trust == "shuffle":
        raise FederationError(
            "privacy.trust = 'shuffle' needs a shuffler between clients and server; Flower's "
            "messages name their sender, so deployed clients would get no central guarantee"
        )
    if trust == "none":
        raise FederationError(
            "privacy.trust = 'none' exists in simulation only: a deployed client never sends its "
            "mask without noise"
        )


def check_continuable(folder: RunFolder) -> None:
    """Refuse to continue a run whose configuration or ledger was changed after it had begun.

    Raises:
        RunError: if the configuration is another.
        LedgerError: if the ledger was rolled back.
    """
    for event in folder.events()[:1]:
        name = event["result"].get("run")
        if not any(is_run_of(name, folder.config, simulated) for simulated in (True, False)):
            raise RunError(
                f"{folder.path / 'config.toml'} was changed after the run had begun; a run has "
                "one configuration, start another for the new one"
            )
    broken = ledger_contradiction(folder)
    if broken:
        raise LedgerError(
            f"{folder.path} cannot be continued, its ledger was rolled back: {broken}"
        )


def _plan(experiment: Experiment) -> JsonDict:
    config = experiment.config
    dataset = None
    if experiment.simulated:
        kept = experiment.sharing.kept if experiment.sharing else None
        dataset = kept.dataset(config) if kept else study.load_dataset(config)
    found = study.plan(config, experiment.schema, dataset).to_json()
    _check_budgets(experiment)
    return {"run": experiment.run_id, **found}


def _check_budgets(experiment: Experiment) -> None:
    """Say before anything is spent which clients' own budgets do not suffice."""
    privacy = experiment.config.privacy
    record_level = privacy.trust == "record"
    for client, said in sorted(experiment.conversation.introductions.items()):
        left = said.record_epsilon_left if record_level else said.epsilon_left
        unit = "record-level" if record_level else "client-level"
        if not experiment.simulated and (left is None or left < privacy.epsilon):
            has = "no" if left is None else f"epsilon = {left:g} left of its own"
            experiment.reporter.say(
                f"client {client} has {has} {unit} budget and will refuse the epsilon = "
                f"{privacy.epsilon:g} that this run asks for"
            )
        trains = runs.private_rounds(experiment.config) > 0
        if not experiment.simulated and trains and said.record_epsilon_left is None:
            experiment.reporter.say(
                f"client {client} has no record-level budget and will refuse DP-SGD rounds"
            )


def dense_model(experiment: Experiment) -> Held:
    """Build, load or train the dense network."""
    config, schema = experiment.config, experiment.schema

    def initial() -> tuple[Architecture, Tensor, JsonDict]:
        architecture = Architecture.dense(config.model.name, schema.num_classes, schema.input_shape)
        network = study.initial_model(config, schema)
        return architecture, weights_vector(network), {"units": len(architecture.dense_layout)}

    start, _ = experiment.model_phase("start", initial)
    trained = train_rounds(
        experiment,
        start,
        prefix="",
        stage="train",
        rounds=config.train.rounds,
        learning_rate=config.train.learning_rate,
        keep=config.prune.rewind,
    )
    accuracy = accuracy_of(experiment, trained, trained, "evaluate-dense")
    if accuracy is not None:
        experiment.reporter.say(f"dense accuracy {accuracy:.4f}")
    return trained


def follow_baselines(experiment: Experiment, dense: Held) -> Mapping[str, Outcome] | None:
    """Give every baseline ranking the same schedule, in simulation only."""
    if not experiment.simulated or not experiment.config.evaluate.baselines:
        return None
    found = {}
    for name, rank in BASELINES.items():
        series = baseline_series(experiment, dense, name)
        take_over(experiment, series)
        found[name] = follow(experiment, dense, name, rank)
        leave(experiment, series)
        _say_accuracy(experiment, name.replace("_", " "), found[name])
    return found


def save_artifacts(experiment: Experiment, dense: Held, pruned: Held) -> None:
    """Write dense.safetensors, model.safetensors, architecture.json and layout.json."""
    folder = experiment.folder
    folder.write_model(dense.model(), "dense.safetensors")
    folder.write_model(pruned.model(), "model.safetensors")
    folder.write_text("architecture.json", pruned.architecture.to_json() + "\n")
    folder.write_json("layout.json", pruned.architecture.dense_layout.describe())


def _say_accuracy(experiment: Experiment, name: str, outcome: Outcome) -> None:
    if outcome.accuracy is not None and outcome.accuracy_before_fine_tuning is not None:
        experiment.reporter.say(
            f"{name}: accuracy {outcome.accuracy_before_fine_tuning:.4f} pruned, "
            f"{outcome.accuracy:.4f} fine-tuned"
        )
