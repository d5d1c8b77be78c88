"""Weights of the reward's terms and the three published variants of the reward."""

import dataclasses

from omnir1_jax.config.schema import setting


@dataclasses.dataclass(frozen=True)
class VosReward:
    """A weight for each term of `rewards.vos.VosTerms`, and the rules that differ between the published variants.

    A term of weight 0 is only a metric.
    """

    structure: float = setting(1.0, "weight: pieces that are there, complete and valid")
    coverage: float = setting(1.0, "weight: object area that the plan's frames show")
    count: float = setting(1.0, "weight: distinct frames, up to 4")
    span: float = setting(1.0, "weight: penalty for a piece's frames beyond its first")
    overlap: float = setting(1.0, "weight: penalty for frames that were chosen already")
    saliency: float = setting(0.0, "weight: object area in the keyframes")
    alignment: float = setting(1.0, "weight: mean IoU of boxes")
    mismatch: float = setting(1.0, "weight: penalty for boxes beyond the number of objects")
    segmentation: float = setting(2.0, "weight: region similarity of the masks")
    diversity: float = setting(0.0, "weight: the paper's: pieces apart in time")
    closeness: float = setting(0.0, "weight: the paper's: how close the number of pieces is to `target_pieces`")
    format: float = setting(1.0, "weight: completions in the right format; added to the accuracy")
    length_bonus: float = setting(1.0, "weight: completions of a length in `reward.bonus_range`; added to the accuracy")
    edge_boxes_match: bool = setting(
        False, "whether a ground truth box that touches the left edge can be matched; in the authors' code it cannot"
    )
    gated: bool = setting(True, "saliency, alignment and mismatch count only with a valid box ...")
    gated_by_segmentation: bool = setting(
        True, "... and only if `segmentation` weighs more than 1e-6, as in the training commit"
    )
    clip: bool = setting(
        False, "if pieces are valid but all terms besides structure and coverage sum to 0 or less, count these two only"
    )
    distance_reward: float = setting(0.25, "diversity of a piece that is clear of the next")
    overlap_punishment: float = setting(-0.2, "diversity of a piece that is not")
    target_pieces: int = setting(4, "number of pieces that `closeness` asks for")


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
