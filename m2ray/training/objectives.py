"""Training objectives, each a function of `Signals` by name; their weights are configuration.

Shapes: B rows (this worker's), H rows of the whole batch over all workers, A answer tokens, W words of the
vocabulary, V values of an answer, N values of a domain, M negatives, K slots, D width, G groups,
C codes, L layers, S tokens after the message's place, T message tokens, E width of a head, F = K * D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2ray.codec.codec import CodecOutput
from m2ray.codec.encoders import sinusoidal_positions
from m2ray.codec.prefix_statistics import mean_cosine
from m2ray.config.objectives import CrossEntropyTerm, Losses, LossTerm, MarginTerm, NegativesTerm
from m2ray.config.trial import TrialConfig
from m2ray.receiver.conformance.opening import open_channel
from m2ray.receiver.model.requests import AnswerOutput
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.references import References
from m2ray.util import plugins


def weighted_nll(nll_BA: Tensor, references: References, value_weight: float) -> Tensor:
    """Return the weighted mean over an answer's tokens, [B]: values weigh `value_weight`, other tokens 1."""
    weight_BA = torch.where(references.values_BA, value_weight, 1.0) * references.mask_BA
    return (nll_BA * weight_BA / weight_BA.sum(1, keepdim=True)).sum(1)


class SlotStates(NamedTuple):
    """Hidden states after each layer but the last, at the prefix and at the words that its slots stand for."""

    prefix_BLKD: Tensor
    text_BLKD: Tensor  # no gradient
    mask_BK: Tensor  # False at slots that stand for no word


class RepeatedMessage(NamedTuple):
    """What the receiver predicts of this worker's messages, asked to repeat them from the prefix alone."""

    logits_BTW: Tensor  # predict the message's tokens
    ids_BT: Tensor
    mask_BT: Tensor


@dataclass
class Signals:
    """Inputs of the objectives. A field is None where no objective in use needs it."""

    encoded: CodecOutput  # of the whole batch, H rows
    inputs_HD: Tensor  # pooled message states of the whole batch
    message_ids_HT: Tensor
    message_mask_HT: Tensor
    heads: Heads
    references: References | None = None  # this worker's reference answers
    answer: AnswerOutput | None = None  # under the right message
    nll_BA: Tensor | None = None
    nll_B: Tensor | None = None  # weighted_nll under the right message
    shuffled_B: Tensor | None = None  # under another episode's message
    null_B: Tensor | None = None  # under zeros; no gradient
    negatives_MBA: Tensor | None = None  # under the messages of M other episodes of the batch
    text_answer: AnswerOutput | None = None  # under the message as text; no gradient
    slots: SlotStates | None = None
    repeated: RepeatedMessage | None = None


class Heads(nn.Module):
    """Small networks that some objectives need; trained beside the codec, not part of a checkpoint."""

    WIDTH = 128

    def __init__(self, config: TrialConfig, receiver: Receiver) -> None:
        super().__init__()
        losses, self.k, width = config.losses, config.codec.k, receiver.width
        slot = open_channel(receiver, config.codec.channel, config.codec.channel_layers).channel.width
        flat = self.k * slot
        self.rebuild = self.tokens = self.critic = self.repeat_D = None
        if losses.reconstruction:
            self.rebuild = nn.Sequential(nn.Linear(flat, 512), nn.GELU(), nn.Linear(512, width))
        if losses.reconstruction_tokens:
            self.tokens = nn.ModuleDict(
                {
                    "slots": nn.Linear(slot, self.WIDTH),
                    "decoder": nn.TransformerDecoderLayer(self.WIDTH, 4, 256, 0.0, "gelu", batch_first=True),
                    "out": nn.Linear(self.WIDTH, len(receiver.embedding_ND)),
                }
            )
        if losses.latent_information:
            self.critic = nn.ModuleList([nn.Linear(flat, self.WIDTH), nn.Linear(width, self.WIDTH)])
        if losses.autoencoding:  # the embedding that asks the receiver to repeat the message
            self.repeat_D = nn.Parameter(receiver.embedding_ND.float().mean(0).cpu())

    def flat(self, latent_HKD: Tensor) -> Tensor:
        """Return one vector per message, [H, k * D]; while k anneals, neighboring slots are averaged."""
        if latent_HKD.shape[1] != self.k:
            latent_HKD = F.adaptive_avg_pool1d(latent_HKD.transpose(1, 2), self.k).transpose(1, 2)
        return latent_HKD.flatten(1)


def ce(signals: Signals, term: LossTerm) -> Tensor:
    """Return the cross-entropy of the answer, weighted mean per token."""
    assert signals.nll_B is not None
    return signals.nll_B.mean()


def kl(signals: Signals, term: LossTerm) -> Tensor:
    """Return KL(receiver with the text || receiver with the prefix), mean over answer tokens.

    This distills the context into the prefix (Askell et al. 2021; Ge et al. 2023).
    """
    assert signals.text_answer is not None
    assert signals.answer is not None
    assert signals.references is not None
    teacher = F.log_softmax(signals.text_answer.logits_BAW.float(), dim=-1)
    student = F.log_softmax(signals.answer.logits_BAW.float(), dim=-1)
    return (teacher.exp() * (teacher - student)).sum(-1)[signals.references.mask_BA].mean()


def states(signals: Signals, term: LossTerm) -> Tensor:
    """Return 1 - cosine between hidden states under the prefix and under the text.

    Mean over layers and over the tokens after the message's place. This is hidden-state distillation (Jiao et al.
    2020, TinyBERT) of the context into the prefix. A codec can raise the answer's likelihood without using the
    message; it cannot match these states without it, so this objective prevents collapse.
    """
    assert signals.text_answer is not None
    assert signals.answer is not None
    prefix_BLSD, mask_BS = signals.answer.states_BLSD, signals.answer.mask_BS
    text_BLSD = signals.text_answer.states_BLSD
    assert prefix_BLSD is not None
    assert text_BLSD is not None
    assert mask_BS is not None
    text_BLSD = text_BLSD[:, :, -prefix_BLSD.shape[2] :]  # only the answer comes after slots that follow B's text
    distance_BLS = 1 - F.cosine_similarity(prefix_BLSD.float(), text_BLSD.float(), dim=-1)
    weight_BS = mask_BS / mask_BS.sum(dim=1, keepdim=True)
    return torch.einsum("bls,bs->bl", distance_BLS, weight_BS).mean()


def slots(signals: Signals, term: LossTerm) -> Tensor:
    """Return 1 - cosine between hidden states at a slot and at the word that the slot stands for.

    Mean over slots (see `Segments.word_positions`) and over layers but the last. Later tokens attend to the hidden
    states at a message's words after each layer; a slot with the same states is read the same. The objective needs
    no answer, so it also serves as a cheap warm-up.
    """
    assert signals.slots is not None
    prefix_BLKD, text_BLKD, mask_BK = signals.slots
    distance_BLK = 1 - F.cosine_similarity(prefix_BLKD.float(), text_BLKD.float(), dim=-1)
    return (distance_BLK.mean(1) * mask_BK).sum() / mask_BK.sum()


def help(signals: Signals, term: LossTerm) -> Tensor:
    """Return max(0, NLL_correct - NLL_null + margin), the reference attempt's L_help.

    It rewards any prefix that beats zeros.
    """
    assert signals.nll_B is not None
    assert signals.null_B is not None
    assert isinstance(term, MarginTerm)
    return F.relu(signals.nll_B - signals.null_B + term.margin).mean()


def contrast(signals: Signals, term: LossTerm) -> Tensor:
    """Return max(0, margin - (NLL_shuffled - NLL_correct)).

    It rewards prefixes that differ between messages; alone, it does not reward right answers.
    """
    assert signals.nll_B is not None
    assert signals.shuffled_B is not None
    assert isinstance(term, MarginTerm)
    return F.relu(term.margin - (signals.shuffled_B - signals.nll_B)).mean()


def infonce(signals: Signals, term: LossTerm) -> Tensor:
    """Return InfoNCE (van den Oord et al. 2018), scored by the receiver's log-likelihood of the answer."""
    assert signals.nll_BA is not None
    assert signals.negatives_MBA is not None
    assert isinstance(term, NegativesTerm)
    wrong_BM = -signals.negatives_MBA.sum(-1).T
    scores_BM = torch.cat([-signals.nll_BA.sum(-1, keepdim=True), wrong_BM], dim=1) / term.temperature
    return -F.log_softmax(scores_BM, dim=1)[:, 0].mean()


def reconstruction(signals: Signals, term: LossTerm) -> Tensor:
    """Return the MSE between unit vectors: the pooled message state, and an MLP's guess of it from the latent."""
    assert signals.heads.rebuild is not None
    guess_HD = signals.heads.rebuild(signals.heads.flat(signals.encoded.latent_BKD))
    return F.mse_loss(F.normalize(guess_HD, dim=-1), F.normalize(signals.inputs_HD, dim=-1))


def reconstruction_tokens(signals: Signals, term: LossTerm) -> Tensor:
    """Return the cross-entropy of the message's tokens, predicted from latent and position, mean per token."""
    parts = signals.heads.tokens
    assert parts is not None
    ids_HT, mask_HT = signals.message_ids_HT, signals.message_mask_HT
    slots_HKE = parts["slots"](signals.encoded.latent_BKD)
    positions_T = torch.arange(ids_HT.shape[1], device=ids_HT.device, dtype=slots_HKE.dtype)
    positions_HTE = sinusoidal_positions(positions_T, Heads.WIDTH).expand(len(ids_HT), -1, -1)
    logits_HTW = parts["out"](parts["decoder"](positions_HTE, slots_HKE, tgt_key_padding_mask=~mask_HT))
    return F.cross_entropy(logits_HTW[mask_HT], ids_HT[mask_HT])


def info_preserve(signals: Signals, term: LossTerm) -> Tensor:
    """Return the MSE between the pairwise cosine similarities of latents and of inputs, over the batch."""
    latent_HF = F.normalize(signals.encoded.latent_BKD.flatten(1), dim=-1)
    inputs_HD = F.normalize(signals.inputs_HD, dim=-1)
    return F.mse_loss(latent_HF @ latent_HF.T, inputs_HD @ inputs_HD.T)


def commitment(signals: Signals, term: LossTerm) -> Tensor:
    """Return the VQ commitment: MSE of the latent to its code (van den Oord et al. 2017, eq. 3)."""
    assert signals.encoded.quantized_BKD is not None
    return F.mse_loss(signals.encoded.latent_BKD, signals.encoded.quantized_BKD.detach())


def code_information(signals: Signals, term: LossTerm) -> Tensor:
    """Return minus the mutual information of message and code, H(mean p) - mean H(p), per code, in nats."""
    probs_HKGC = signals.encoded.code_probs_BKGC
    assert probs_HKGC is not None

    def entropy(probs: Tensor) -> Tensor:
        return -(probs * probs.clamp(min=1e-9).log()).sum(-1)

    return (entropy(probs_HKGC).mean(0) - entropy(probs_HKGC.mean(0))).mean()


def latent_information(signals: Signals, term: LossTerm) -> Tensor:
    """Return minus the InfoNCE bound on the mutual information of message and latent, up to log H, in nats."""
    assert signals.heads.critic is not None
    latent_HE = F.normalize(signals.heads.critic[0](signals.heads.flat(signals.encoded.latent_BKD)), dim=-1)
    inputs_HE = F.normalize(signals.heads.critic[1](signals.inputs_HD), dim=-1)
    scores_HH = latent_HE @ inputs_HE.T / 0.1
    return F.cross_entropy(scores_HH, torch.arange(len(scores_HH), device=scores_HH.device))


def diversity(signals: Signals, term: LossTerm) -> Tensor:
    """Return the mean cosine between the prefixes of different messages."""
    return mean_cosine(signals.encoded.prefix_BKD)


def autoencoding(signals: Signals, term: LossTerm) -> Tensor:
    """Return the cross-entropy of the message's tokens, which the receiver itself repeats from the prefix.

    A learned embedding behind the prefix asks for it (Ge et al. 2023, ICAE).
    """
    assert signals.repeated is not None
    logits_BTW, ids_BT, mask_BT = signals.repeated
    return F.cross_entropy(logits_BTW[mask_BT].float(), ids_BT[mask_BT])


LOSSES: dict[str, Callable[[Signals, LossTerm], Tensor]] = {
    "ce": ce,
    "kl": kl,
    "states": states,
    "slots": slots,
    "help": help,
    "contrast": contrast,
    "infonce": infonce,
    "reconstruction": reconstruction,
    "reconstruction_tokens": reconstruction_tokens,
    "info_preserve": info_preserve,
    "commitment": commitment,
    "code_information": code_information,
    "latent_information": latent_information,
    "diversity": diversity,
    "autoencoding": autoencoding,
}
NEED_ANSWER = ("ce", "kl", "states", "help", "contrast", "infonce")


def needs_answer(name: str) -> bool:
    """Return whether an objective needs the receiver's answers; otherwise the codec's output suffices."""
    return name in NEED_ANSWER or name not in LOSSES


def objective_value(name: str, signals: Signals, term: LossTerm) -> Tensor:
    """Return an objective's unweighted value.

    Raises:
        UserError: a plugin's objective fails, or returns something other than a tensor without dimensions.
    """
    function = plugins.load(plugins.LOSSES, LOSSES, name)
    with plugins.blame(plugins.LOSSES, name):
        value = function(signals, term)
    if not isinstance(value, Tensor) or value.ndim:
        shape = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.60}"
        raise plugins.plugin_error(plugins.LOSSES, name, f"gave {shape}, expected a tensor without dimensions")
    return value


def weighted_sum(signals: Signals, losses: Losses, step: int, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the total to minimize at a step, and each objective's unweighted value.

    Args:
        signals: Inputs of the objectives.
        losses: The objectives in use and their weights.
        step: The step, counted from 0.
        steps: Number of steps of the training.
    """
    values, total = {}, torch.zeros((), device=signals.inputs_HD.device)
    for name, term in losses.terms().items():
        special = {"slots": signals.slots, "autoencoding": signals.repeated}
        inputs = special.get(name, signals.answer if needs_answer(name) else signals.encoded)
        if inputs is None:  # its weight is 0 at this step, so the receiver was not run for it
            continue
        values[name] = objective_value(name, signals, term)
        total = total + term.weight_at(step, steps) * values[name]
    return total, values


def value_weight(losses: Losses) -> float:
    """Return the weight of an answer's values in every `weighted_nll`."""
    return losses.ce.value_weight if losses.ce else CrossEntropyTerm().value_weight
