"""Every key of the configuration, with its default and what is allowed."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from fedprune.errors import ConfigError

Scalar: TypeAlias = str | int | float | bool

Fraction01 = Annotated[float, Field(gt=0, le=1, description="a number in (0, 1]")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
NonNegative = Annotated[
    float, Field(ge=0, allow_inf_nan=False, description="a number of at least 0")
]
Momentum = Annotated[float, Field(ge=0, lt=1, description="a number in [0, 1)")]
Spread = Annotated[float, Field(ge=0, le=10, description="a number in [0, 10]")]
Count = Annotated[int, Field(ge=0, description="a whole number of at least 0")]
PositiveCount = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
Text = Annotated[str, Field(description="a string")]
Switch = Annotated[bool, Field(description="true or false")]

LEAST_NOISE_MULTIPLIER, LARGEST_NOISE_MULTIPLIER = 2.0**-6, 2.0**16  # what DP-SGD's grid holds
KEEP_KEYS = ("keep_units", "keep_macs", "keep_params", "keep_latency")
UNSET_KEYS = (*KEEP_KEYS, "rewind")  # "" leaves them unset where there is no null


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataConfig(_Table):
    """Which rows there are and who holds them."""

    dataset: Text = "digits"
    root: Text = ""
    partition: Literal["iid", "dirichlet", "shards", "natural"] = "iid"
    alpha: Positive = 0.3
    shards_per_client: PositiveCount = 2
    clients: PositiveCount = 200
    groups: Text = "class"


class ModelConfig(_Table):
    """Which network is pruned and where its weights start."""

    name: Text = "lenet"
    weights: Text = ""


class PruneConfig(_Table):
    """What is scored, how much stays and in how many steps.

    With `group_scores` a client scores each group of its rows (`data.groups`) by itself and reports
    on the worst group's score of a unit, or on the largest share of any group's importance.
    Units compete with all others (`scope` global), with those of their own layer, or with those of
    layers of the same structure (isomorphic; Fang et al. 2024). Every layer keeps `floor` units at
    least, and a multiple of `round_to`. `keep_latency` is a fraction of the time that
    `latency_table` predicts, a file that `fedprune latency` measures where the network will run.
    A budget is filled by `ranking`, or with the largest sum of scores (`value`), for which scores
    should be in units of loss; `auto` is value for a budget of time and ranking for others.
    With `bound_slack` units of a layer whose votes differ by no more standard deviations than that
    may take each other's place, if the network's Lipschitz bound becomes smaller by it.
    `rewind` is the round of dense training to whose weights the kept units go back after every
    step (Frankle et al. 2020); 0 is where the weights start, unset leaves them as they are. With
    `regrow` clients speak about removed units too from the second step on, and those come back
    whose votes are higher than a kept unit's beyond their noise.
    """

    criterion: Literal[
        "random",
        "magnitude_l1",
        "magnitude_l2",
        "bn_scale",
        "taylor",
        "taylor_separate",
        "taylor_weights",
        "taylor_second",
        "taylor_second_full",
        "fisher",
        "linear_logits",
        "linear_logits_signed",
        "linear_logits_rest",
        "linear_logits_projected",
        "linear_logits_all",
        "oracle",
    ] = "taylor"
    group_scores: Literal["off", "worst", "share"] = "off"
    keep_units: Fraction01 | None = None
    keep_macs: Fraction01 | None = None
    keep_params: Fraction01 | None = None
    keep_latency: Fraction01 | None = None
    latency_table: Text = ""
    floor: PositiveCount = 1
    scope: Literal["global", "layer", "isomorphic"] = "global"
    round_to: PositiveCount = 1
    fill: Literal["auto", "ranking", "value"] = "auto"
    bound_slack: Spread = 0.0
    schedule: Literal["one-shot", "geometric", "cubic", "continuous"] = "one-shot"
    steps: PositiveCount = 1
    rewind: Count | None = None
    regrow: Switch = False

    @property
    def budget(self) -> tuple[str, float]:
        """The one `keep_*` key that is set, and its value."""
        for name in KEEP_KEYS:
            value = getattr(self, name)
            if value is not None:
                return name, float(value)
        raise ConfigError(f"one of {', '.join(f'prune.{key}' for key in KEEP_KEYS)} must be set")


class PrivacyConfig(_Table):
    """Who is trusted and how much each client may spend on its mask report.

    `epsilon` and `delta` are the guarantee under `trust`: of each report (local), of all reports
    together after a shuffler (shuffle), of the sum alone (aggregate), of one record (record).
    `mechanism` is threshold randomised response at its best block and threshold, or a special case.
    `phases` asks disjoint cohorts one after another, the later ones about undecided units only.
    `min_reports` is what shuffle and aggregate need at least; 0 means the quorum's. `colluding` is
    how many clients may help an aggregate's server against the others. Without
    `masking` a simulation adds an aggregate's numbers up in plain sight, which comes out the same.
    """

    trust: Literal["local", "shuffle", "aggregate", "record", "none"] = "local"
    epsilon: Annotated[float, Field(ge=1e-6, le=64, description="a number in [1e-6, 64]")] = 4.0
    delta: Annotated[float, Field(ge=0, lt=0.1, description="a number in [0, 0.1)")] = 0.0
    prior: Literal["magnitude", "none"] = "magnitude"
    mechanism: Literal["threshold", "warner", "k-ary", "duchi"] = "threshold"
    phases: Annotated[int, Field(ge=1, le=16, description="a whole number in [1, 16]")] = 1
    min_reports: Count = 0
    colluding: Count = 0
    masking: Switch = True


class TrainConfig(_Table):
    """Federated averaging: before pruning (`rounds`) and after each step (`fine_tune_rounds`).

    In `recalibrate` rounds after each step clients send sums from which batch norms get statistics
    that fit the smaller network.
    `private` says which of them use DP-SGD at record level: a target of (`dp_epsilon`, `dp_delta`)
    for a client that takes part in all of them, or a `noise_multiplier` of its own (0: from the
    target). Each step samples every record with probability `sample_rate`. Over a series of rounds
    the learning rate follows `decay`, which starts anew after every step of pruning.
    A `margin_radius` above 0 trains for certificates at that l2 radius (GloRo, Leino et al. 2021).
    With a `fairness_step` above 0 fine-tuning weighs the examples of each group (`data.groups`) by
    a dual variable that moves by so much times what the group's loss in accuracy through pruning
    exceeds everybody's by more than `fairness_tolerance`; every round asks for count tables then.
    """

    rounds: Count = 40
    fine_tune_rounds: Count = 10
    clients_per_round: PositiveCount = 50
    local_epochs: PositiveCount = 5
    batch_size: PositiveCount = 8
    learning_rate: Positive = 0.2
    fine_tune_learning_rate: Positive = 0.1
    decay: Literal["constant", "cosine", "linear", "step"] = "cosine"
    momentum: Momentum = 0.9
    weight_decay: NonNegative = 0.0
    margin_radius: NonNegative = 0.0
    fairness_step: NonNegative = 0.0
    fairness_tolerance: NonNegative = 0.01
    recalibrate: Count = 0
    private: Literal["off", "fine-tune", "all"] = "off"
    dp_epsilon: Positive = 8.0
    dp_delta: Annotated[float, Field(gt=0, lt=0.1, description="a number in (0, 0.1)")] = 1e-5
    noise_multiplier: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    sample_rate: Fraction01 = 0.1


class EvaluateConfig(_Table):
    """What is measured, on which rows, and what may leave a client for it.

    With `tables` = noised a client sends two count tables at most, of its test and of its training
    rows, each with discrete Laplace noise of `table_epsilon` (delta = 0): at record level, or at
    client level, where a table counts `table_rows` of the client's rows at most.
    Of two classes the final tables count label and predictions, from which demographic parity and
    equalised odds follow; groups by class are counted plainly.
    With `local_certificates` rows are also certified by bounds that hold in the ball of
    `certified_radius` around them alone: tighter, and for small networks of ReLUs only.
    `attacked_rows` of the rows with margins are attacked as well (0: none), which shows how much
    of what is not certified is looseness.
    """

    split: Literal["test", "validation"] = "test"
    tables: Literal["simulation-only", "unprotected", "noised", "off"] = "simulation-only"
    table_epsilon: Annotated[
        float, Field(ge=1e-3, le=64, description="a number in [0.001, 64]")
    ] = 1.0
    table_unit: Literal["record", "client"] = "record"
    table_rows: PositiveCount = 100
    seeds: PositiveCount = 3
    baselines: Switch = True
    certified_radius: Positive = 0.1
    certified_rows: PositiveCount = 1000
    attacked_rows: Count = 100
    local_certificates: Switch = False
    confidence: Annotated[
        float, Field(ge=0.5, le=0.9999, description="a number in [0.5, 0.9999]")
    ] = 0.95
    resamples: Annotated[int, Field(ge=100, description="a whole number of at least 100")] = 2000


class FederationConfig(_Table):
    """How long the server waits, and how many answers it needs to go on.

    `quorum` is the share of the clients asked that must answer in every phase; `deadline_seconds`
    ends the wait of a phase, `join_seconds` the wait for clients at the start.
    """

    quorum: Fraction01 = 1.0
    deadline_seconds: Positive = 600.0
    join_seconds: Positive = 60.0


class AvailabilityConfig(_Table):
    """Which simulated clients can be reached, and whose answers arrive in time.

    In simulation only; training and voting rounds are subject to it, introductions and evaluation
    are not. Of the clients asked in a round each is available with probability `participation`,
    drawn independently of all others, and, where there is a `trace` (a CSV file of intervals
    client,start,end in seconds, repeated after its last end), if the trace has it there when the
    round begins. Of those that are, each loses its answer with probability `dropout` after it was
    made and charged, and takes `delay_median_seconds` times a lognormal factor of its own, the
    same in all rounds (`speed_sigma`), times a lognormal factor of the round (`delay_sigma`).
    Answers that take longer than `deadline_seconds` are a straggler's and not used (0: there is
    no deadline). `pause_seconds` pass between a round's end and the next one's beginning. Seconds
    here are those of a simulated clock; nothing waits for them.
    """

    participation: Fraction01 = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="a number in [0, 1)")] = 0.0
    delay_median_seconds: NonNegative = 0.0
    delay_sigma: Spread = 0.0
    speed_sigma: Spread = 0.0
    deadline_seconds: NonNegative = 0.0
    pause_seconds: NonNegative = 0.0
    trace: Text = ""

    @property
    def configured(self) -> bool:
        """Whether any key differs from its default, under which everybody always answers."""
        return self != AvailabilityConfig()


class EngineConfig(_Table):
    """Where simulated clients run; Ray's keys are for `--engine flower`.

    `deterministic` scores one client at a time on one thread, so that every engine and cohort
    size gives the same bits. `precision` is that of the passes which score clients: bfloat16 is
    used where the device has instructions for it and a sample of the clients shows that it keeps
    at least 0.99 of the votes' mask.
    `workers` are the processes that train the local engine's clients: 0 means as many as cores, 1
    means none. `actors` = 0 means as many as fit; `ray_address` names a running Ray cluster, ""
    starts one.
    """

    deterministic: Switch = False
    precision: Literal["float32", "bfloat16"] = "float32"
    workers: Count = 0
    cpus_per_client: PositiveCount = 1
    gpus_per_client: NonNegative = 0.0
    actors: Count = 0
    ray_address: Text = ""


class Config(_Table):
    """The whole experiment."""

    seed: Annotated[
        int, Field(ge=0, lt=2**62, description="a whole number of at least 0, below 2**62")
    ] = 1
    out: Text = ""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    prune: PruneConfig = PruneConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    federation: FederationConfig = FederationConfig()
    availability: AvailabilityConfig = AvailabilityConfig()
    engine: EngineConfig = EngineConfig()
