"""The server's side: all phases of one run, each done once, in order, resumable."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedprune import config as configuration
from fedprune import study
from fedprune.config import Config
from fedprune.errors import FederationError
from fedprune.federated.averaging import train_rounds
from fedprune.federated.conversation import Conversation
from fedprune.federated.evaluation import accuracy_of, cost_phase, fairness_phase, robustness_phase
from fedprune.federated.experiment import Experiment, Held, JsonDict
from fedprune.federated.local_grid import LocalGrid
from fedprune.federated.path import Outcome, follow
from fedprune.federated.summary import summarize
from fedprune.federated.voting import BASELINES, private_votes
from fedprune.progress import Quiet, Reporter
from fedprune.runs import Architecture, RunFolder, seal, weights_vector

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's entry point: run the configured experiment into its run folder."""
    config = configuration.from_flat(context.run_config)
    one_seed = config.evaluate.model_copy(update={"seeds": 1})  # a Flower run is one run
    config = config.model_copy(update={"evaluate": one_seed})
    if not config.out:
        raise FederationError("out must name the run folder when the app runs under Flower")
    folder = RunFolder.create(config.out, config)
    with folder.locked():
        run(grid, config, folder, Quiet())


def run(grid: Grid, config: Config, folder: RunFolder, reporter: Reporter) -> JsonDict:
    """Do all phases that are not finished yet and return the summary.

    Raises:
        FedpruneError: in one sentence; what is finished stays finished.
    """
    dataset = study.load_dataset(config)
    experiment = Experiment(
        config=config,
        folder=folder,
        conversation=Conversation(grid, config.data.clients, reporter),
        reporter=reporter,
        dataset=dataset,
        simulated=isinstance(grid, LocalGrid),
    )
    experiment.phase(
        "plan", lambda: {"run": experiment.run_id, **study.plan(config, dataset).to_json()}
    )
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


def dense_model(experiment: Experiment) -> Held:
    """Build, load or train the dense network."""
    config, dataset = experiment.config, experiment.dataset

    def initial() -> tuple[Architecture, Tensor, JsonDict]:
        architecture = Architecture.dense(
            config.model.name, dataset.num_classes, dataset.input_shape
        )
        network = study.initial_model(config, dataset)
        return architecture, weights_vector(network), {"units": len(architecture.dense_layout)}

    start, _ = experiment.model_phase("start", initial)
    trained = train_rounds(
        experiment,
        start,
        prefix="",
        stage="train",
        rounds=config.train.rounds,
        learning_rate=config.train.learning_rate,
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
        found[name] = follow(experiment, dense, name, rank)
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
