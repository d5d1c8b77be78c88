"""Weights of the terms and the three published readings of the reward."""

import dataclasses

from omnir1_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class VosReward:
    """A weight for each term of `vos.VosTerms`, and the rules that differ between the published readings.

    Attributes:
      structure .. closeness: weights; 0 leaves the term a metric.
      format, length_bonus: weights of the two terms that count beside the accuracy.
      edge_boxes_match: whether a true box that touches the left edge can be matched. The authors' code says no.
      gated: saliency, alignment and mismatch count only with a valid box.
      gated_by_segmentation: ... and only if `segmentation` weighs more than 1e-6, as in the training commit.
      clip: if pieces are valid but everything besides structure and coverage sums to 0 or less, those two are all.
      distance_reward, overlap_punishment: what the paper's diversity gives for each piece, clear of the next or not.
      target_pieces: the number of pieces that `closeness` asks for.
    """

    structure: float = 1.0
    coverage: float = 1.0
    count: float = 1.0
    span: float = 1.0
    overlap: float = 1.0
    saliency: float = 0.0
    alignment: float = 1.0
    mismatch: float = 1.0
    segmentation: float = 2.0
    diversity: float = 0.0
    closeness: float = 0.0
    format: float = 1.0
    length_bonus: float = 1.0
    edge_boxes_match: bool = False
    gated: bool = True
    gated_by_segmentation: bool = True
    clip: bool = False
    distance_reward: float = 0.25
    overlap_punishment: float = -0.2
    target_pieces: int = 4


PRESETS: dict[str, VosReward] = {
    # The training commit: aK 1, aK_ratio 0, aA 1, aG 2.
    "authors": VosReward(),
    # The released script: aK 1, aK_ratio 1, aA 1, aG 0, with no gate on aG.
    "authors_released": VosReward(saliency=1.0, segmentation=0.0, gated_by_segmentation=False),
    # The formula of arXiv 2505.20256: RK (diversity, count, saliency), RA, RG.
    "paper": VosReward(
        structure=0.0,
        coverage=0.0,
        count=0.0,
        span=0.0,
        overlap=0.0,
        saliency=1.0,
        mismatch=0.0,
        segmentation=1.0,
        diversity=1.0,
        closeness=1.0,
        edge_boxes_match=True,
        gated=False,
        gated_by_segmentation=False,
    ),
}


def preset(name: str, **changes) -> VosReward:
    """A preset with some of its values changed.

    Raises:
      InputError: names an unknown preset or field.
    """
    if name not in PRESETS:
        raise InputError(f"reward.preset: {name!r} is none of {', '.join(PRESETS)}")
    known = {field.name for field in dataclasses.fields(VosReward)}
    if unknown := changes.keys() - known:
        raise InputError(f"reward.{sorted(unknown)[0]}: no such term; there are {', '.join(sorted(known))}")
    return dataclasses.replace(PRESETS[name], **changes)
