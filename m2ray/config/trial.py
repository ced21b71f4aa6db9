"""Configuration of one training: the keys of `trial` in a search space, and of a file for `m2ray.train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from m2ray.config.condition_names import (
    NAMES,
    WORDS,
    bits_count,
    drop_name,
    facts_name,
    has_parameter,
    scale_gate_name,
    text_name,
    tokens_name,
)
from m2ray.config.objectives import CrossEntropyTerm, Losses
from m2ray.config.task import ALL, Splits, TaskConfig, is_text_file
from m2ray.util import plugins
from m2ray.util.strict_yaml import Count, NonNegative, Positive, Share, StrictModel

# The built-in encoders, which `m2ray.codec.encoder_registry` lists; plugins add others.
ENCODERS = (
    *("last_token", "resampler", "segments", "memory", "constant"),
    *("own", "projector", "pooled", "gist", "adapter"),
)


def _is_encoder(name: str) -> str:
    plugins.resolve(plugins.ENCODERS, ENCODERS, name)
    return name


# The JSON schema lists the built-in names only.
Encoder = Annotated[str, AfterValidator(_is_encoder), WithJsonSchema({"enum": list(ENCODERS), "type": "string"})]


NumericType = Literal["auto", "float32", "bfloat16", "float16"]  # auto: the one in the receiver's file


class CodecConfig(StrictModel):
    """The codec: the encoder, the bottleneck of the latent, and the scale of the prefix."""

    added_later: ClassVar[Mapping[str, Any]] = {"channel": "embeddings", "channel_layers": None, "lead": ""}

    encoder: Encoder = "segments"
    channel: Annotated[
        Literal["embeddings", "kv", "hidden"],
        Field(
            description="where the vectors enter the receiver: as input embeddings; as keys and values of some "
            "layers; or as hidden states after one layer"
        ),
    ] = "embeddings"
    channel_layers: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...] | None,
        Field(
            strict=False,
            min_length=1,
            description="layers of the channel, counted from 0. kv: those that get keys and values, default all. "
            "hidden: the one whose output is replaced",
        ),
    ] = None
    k: Annotated[int, Field(ge=1, le=4096, description="prefix vectors")] = 8
    place: Annotated[
        Literal["message", "before", "behind", "after"],
        Field(
            description="where they stand in B's prompt: in the message's place; before all of it; behind B's "
            "half of the task, before the words that close the prompt; after all of it"
        ),
    ] = "message"
    width: Annotated[
        int, Field(ge=8, le=8192, multiple_of=4, description="hidden width of the encoder, which has 4 heads")
    ] = 256
    layers: Annotated[int, Field(ge=1, le=32, description="resampler, segments: depth")] = 2
    cut: Annotated[
        Literal["tokens", "clauses"],
        Field(description="segments: the units of which each slot gets an equal share"),
    ] = "tokens"
    start: Annotated[
        Literal["words", "states"],
        Field(
            description="segments: initial value of a slot. words: the sum of its words' embeddings; states: the "
            "receiver's hidden state at its last word after the first layer, which needs a scale_gate of that norm"
        ),
    ] = "words"
    lead: Annotated[
        str,
        Field(
            description="text that the sender reads before the message, such as the beginning of B's prompt: a "
            "model may read its very first token badly"
        ),
    ] = ""
    lora_rank: Annotated[int, Field(ge=1, le=256, description="memory, gist, pooled: rank of the LoRA")] = 16
    calibration: Annotated[
        Literal["layernorm", "norm", "none"],
        Field(
            description="layernorm: affine, as in the attempt; norm: rescales each vector and keeps its "
            "direction; none: leaves it as the encoder made it, whatever scale_gate is"
        ),
    ] = "norm"
    scale_gate: Annotated[
        Positive,
        Field(
            description="initial prefix norm over the mean norm of the receiver's own vectors in the channel "
            "(token embeddings); learned"
        ),
    ] = 1.5
    bottleneck: Literal["none", "vq"] = "none"
    codebook: Annotated[int, Field(ge=2, le=65536, description="vq: codes per group")] = 512
    groups: Annotated[int, Field(ge=1, le=64, description="vq: codes per slot; each covers a share of D")] = 1

    @field_validator("channel_layers", mode="before")
    @classmethod
    def _one_layer(cls, layers: Any) -> Any:
        # An axis of a space searches numbers, not lists.
        return [layers] if isinstance(layers, int) and not isinstance(layers, bool) else layers

    @field_validator("channel_layers")
    @classmethod
    def _in_order(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers and list(layers) != sorted(set(layers)):
            raise ValueError(f"{list(layers)}: name each layer once, in ascending order")
        return layers

    @model_validator(mode="after")
    def _fit_channel(self) -> CodecConfig:
        layers = self.channel_layers
        if self.channel == "embeddings" and layers is not None:
            raise ValueError("channel_layers: the channel embeddings has none; remove it, or set channel")
        if self.channel == "hidden" and (layers is None or len(layers) != 1):
            raise ValueError("channel_layers: the channel hidden needs exactly one layer, such as [4]")
        if self.channel != "embeddings" and self.start != "words":
            raise ValueError("start: only the channel embeddings uses it; remove it")
        if self.calibration == "none" and self.bottleneck == "vq":
            raise ValueError("calibration: none does not fit bottleneck vq, whose codes have no scale; use norm")
        return self

    @property
    def trains_nothing(self) -> bool:
        """True of a codec without weights to train, which sends the receiver's own vectors as they are."""
        return self.encoder == "own" and self.calibration == "none"

    @property
    def slots_at(self) -> str:
        """The slots' place and channel, as rows name them: `message`, `after kv`, `message hidden 3`."""
        if self.channel == "embeddings":
            return self.place
        return " ".join([self.place, self.channel, ",".join(map(str, self.channel_layers or ()))]).rstrip()


class Anneal(StrictModel):
    """Schedule that reduces the slots one by one from `start` to the codec's k (encoder `segments`).

    A slot is removed once the codec has recovered the share `bound` of what the text is worth to the receiver, and
    at the latest when a straight line from the start of training to `deadline` (share of all steps) requires it.
    """

    start: Count = 20
    bound: Share = 0.8
    hold: Annotated[int, Field(ge=1, description="minimum steps at each k")] = 10
    deadline: Annotated[float, Field(gt=0, le=1)] = 0.6


class TrainingConfig(StrictModel):
    """The training of one codec."""

    epochs: Count = 10
    epoch_samples: Annotated[int, Field(ge=1, description="samples drawn per epoch, in order, from train")] = 3072
    batch_size: Annotated[int, Field(ge=2, description="global batch, over all workers")] = 64
    lr: Positive = 1e-3
    schedule: Literal["cosine", "cosine_per_epoch", "constant"] = "cosine"
    warmup: Annotated[int, Field(ge=0, description="steps of linear warm-up")] = 20
    weight_decay: NonNegative = 0.01
    grad_clip: Positive = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    anneal: Anneal | None = None
    start: Annotated[
        str | None,
        Field(
            min_length=1,
            description="checkpoint with the initial weights, of any k if the encoder works with any",
        ),
    ] = None
    restarts: Annotated[
        int,
        Field(
            ge=0,
            description="times that training restarts, with other weights and half the learning rate, if the "
            "codec still ignores its message halfway",
        ),
    ] = 0
    log_every: Count = 20

    @property
    def epoch_steps(self) -> int:
        """Optimiser steps per epoch; samples that do not fill a batch are left out."""
        return self.epoch_samples // self.batch_size

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.epoch_steps * self.epochs


# The conditions that show, while a search runs, whether a codec carries anything; and those that a verdict needs
# besides.
EVERYWHERE = ("normal", "null", "random", "shuffle", "P0", "P1")
ON_CONFIRM = ("constant", "mean", "matched", "init", "near", "identity", "facts", "tokens")


class EvaluationConfig(StrictModel):
    """Settings of decoding: the same for all conditions, so that every comparison is paired."""

    temperature: NonNegative = 0.0
    max_new_tokens: Count = 128
    batch_size: Count = 250
    constant_samples: Annotated[
        int | None,
        Field(
            ge=64,
            description="episodes that train condition constant's prefix; left out: as many as train the codec",
        ),
    ] = None
    score: Annotated[
        Literal["gain", "success"],
        Field(
            description="what a searcher sees of a checkpoint: the gain in nats per value, or in the exact "
            "probability that B, sampling at temperature 1, writes a right answer"
        ),
    ] = "gain"
    conditions: Annotated[list[str], Field(description="run on every split")] = [*EVERYWHERE]
    confirm_conditions: Annotated[
        list[str],
        Field(
            description="run on confirm besides; facts stands for facts-M with every M below the number of facts "
            "in a message, tokens for tokens-k, drop for drop-1 to drop-k"
        ),
    ] = [*ON_CONFIRM]
    text_bytes: Annotated[list[Count], Field(description="conditions text-B, on every split")] = [16, 64]
    scale_gates: Annotated[list[NonNegative], Field(description="conditions scale_gate=S, on every split")] = [
        *(0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
    ]

    @field_validator("conditions", "confirm_conditions", mode="before")
    @classmethod
    def _null_is_a_name(cls, names: Any) -> Any:
        # YAML reads an unquoted null as nothing; in a list of conditions it is the one of that name.
        return ["null" if name is None else name for name in names] if isinstance(names, list) else names

    @field_validator("conditions", "confirm_conditions")
    @classmethod
    def _exist(cls, names: list[str]) -> list[str]:
        own = (*NAMES, *WORDS)
        known = [*own, *plugins.installed(plugins.CONDITIONS)]
        for name in names:
            if has_parameter(name):
                continue
            if name not in known:
                raise ValueError(f"condition {name!r} does not exist; use some of {', '.join(known)}")
            plugins.resolve(plugins.CONDITIONS, own, name)
        return names

    @property
    def decoding(self) -> str:
        """The name of the decoding in rows."""
        return f"t={self.temperature:g}" if self.temperature else "greedy"


class TrialConfig(StrictModel):
    """One configuration: everything `python -m m2ray.train` needs."""

    added_later: ClassVar[Mapping[str, Any]] = {"receiver_dtype": None}

    receiver: str = "mini"
    receiver_dtype: Annotated[
        NumericType | None,
        Field(
            description="numeric type of the receiver; auto: that of its file; left out: on a CPU the faster of "
            "float32 and bfloat16, measured once; on an accelerator bfloat16"
        ),
    ] = None
    task: TaskConfig = TaskConfig()
    splits: Splits = Splits()
    codec: CodecConfig = CodecConfig()
    losses: Losses = Field(default_factory=lambda: Losses(ce=CrossEntropyTerm()))
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    workers: Annotated[int, Field(ge=1, description="DDP workers; 1 trains in process")] = 1
    trackers: Annotated[
        list[Literal["tensorboard", "mlflow", "wandb"]],
        Field(
            description="trackers that get the training curves, besides history.json; see m2ray.training.trackers"
        ),
    ] = []

    @model_validator(mode="before")
    @classmethod
    def _whole_file(cls, tree: Any) -> Any:
        """Use all lines of a text file in splits that are not named: its parts are disjoint by their groups."""
        task, splits = (tree.get("task"), tree.get("splits", {})) if isinstance(tree, dict) else (None, None)
        if isinstance(task, dict) and isinstance(splits, dict) and is_text_file(task):
            return {**tree, "splits": {**dict.fromkeys(Splits.model_fields, ALL), **splits}}
        return tree

    @model_validator(mode="after")
    def _fits_task(self) -> TrialConfig:
        if not self.task.is_text_file:
            self.splits.check_ranges()
        if self.task.is_text and self.evaluation.score == "success":
            raise ValueError("evaluation.score: success needs a task with countable answers; use gain")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> TrialConfig:
        losses, codec, training = self.losses, self.codec, self.training
        if codec.bottleneck == "vq" and losses.commitment is None:
            raise ValueError("codec.bottleneck: vq needs losses.commitment; add it, for example with weight 0.25")
        if codec.bottleneck == "none":
            for name in ("commitment", "code_information"):
                if getattr(losses, name) is not None:
                    raise ValueError(f"losses.{name}: needs codec.bottleneck: vq; set that or remove the loss")
        if losses.slots and codec.encoder != "segments":
            raise ValueError("losses.slots: only the encoder segments has slots for words; remove it")
        if losses.slots and codec.channel != "embeddings":
            raise ValueError("losses.slots: needs codec.channel: embeddings, whose slots have states; remove it")
        if codec.start != "words" and codec.encoder != "segments":
            raise ValueError("codec.start: only the encoder segments uses it; remove it")
        if training.anneal and codec.encoder != "segments":
            raise ValueError("training.anneal: only the encoder segments works with any k; remove it")
        if training.anneal and training.anneal.start < codec.k:
            raise ValueError(f"training.anneal.start: below codec.k = {codec.k}; start at {codec.k} or above")
        names = [*self.evaluation.conditions, *self.evaluation.confirm_conditions]
        if codec.bottleneck == "vq" and (rounded := next(filter(bits_count, names), None)):
            raise ValueError(f"evaluation: condition {rounded!r}: a vq codec sends codes, not numbers; remove it")
        if training.batch_size % self.workers:
            raise ValueError(f"training.batch_size: not a multiple of {self.workers} workers; change either")
        if training.epoch_samples < training.batch_size:
            raise ValueError("training.epoch_samples: smaller than a batch; raise it")
        return self

    @property
    def training_settings(self) -> dict[str, Any]:
        """All that decides a training: a training is resumed, and a trained codec kept, where it is the same."""
        return {
            **self.model_dump(exclude={"trackers", "evaluation", "receiver_dtype"}),
            "score": self.evaluation.score,
        }

    def conditions_on(self, split: str) -> list[str]:
        """Return the names of the conditions to run on a split: search, select, or confirm and any other.

        `facts`, `tokens` and `drop` are resolved. `near` and `facts` are left out where the task cannot have them:
        see `TaskConfig.has_near_messages` and `TaskConfig.shortest_message`; `init` where nothing is trained.
        """
        evaluation, searching = self.evaluation, split in ("search", "select")
        names = [*evaluation.conditions, *([] if searching else evaluation.confirm_conditions)]
        facts = self.task.shortest_message(split if searching else "confirm") or 0
        stands_for = {
            "facts": [facts_name(count) for count in range(1, facts)],
            "tokens": [tokens_name(self.codec.k)],
            "drop": [drop_name(slot) for slot in range(1, self.codec.k + 1)],
            "near": ["near"] if self.task.has_near_messages else [],
            "init": [] if self.codec.trains_nothing else ["init"],
        }
        names = [resolved for name in names for resolved in stands_for.get(name, [name])]
        texts = [text_name(limit) for limit in evaluation.text_bytes]
        gates = [scale_gate_name(gate) for gate in evaluation.scale_gates]
        return list(dict.fromkeys([*names, *texts, *gates]))

    @property
    def constant_samples(self) -> int:
        """Number of episodes that train the prefix of the condition `constant`."""
        return self.evaluation.constant_samples or self.training.steps * self.training.batch_size
