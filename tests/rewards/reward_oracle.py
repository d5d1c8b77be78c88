"""The reward as a person would compute it: loops over Python strings and numpy masks, `re`, `json` and scipy."""

import itertools
import json
import math
import re

import numpy as np
from scipy.optimize import linear_sum_assignment


def numbers(value, count):
    """`value` as a list of exactly `count` usable numbers, else None."""
    if not isinstance(value, list) or len(value) != count:
        return None
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= 1e6 for x in value):
        return None
    return [float(np.float32(x)) for x in value]


def strict_json(text):
    """The object, or None: NaN and Infinity are refused too."""

    def refuse(word):
        raise ValueError(word)

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError:
        return None


def centiseconds(value):
    found = re.match(r"(\d+):(\d+)\.(\d+)", value, re.ASCII) if isinstance(value, str) else None
    return None if found is None else 6000 * int(found[1]) + 100 * int(found[2]) + int(found[3])


def read_plan(text, frames):
    """(number of objects, number complete, valid pieces as (first frame, last frame))."""
    block = re.search(r"<answer>\s*(.*?)\s*</answer>", text, re.S | re.A)
    groups = re.findall(r"\{.*?\}", block[1], re.S) if block else []
    complete, pieces = 0, []
    for group in groups:
        fields = strict_json(group)
        if fields is None or not isinstance(fields.get("description"), str):
            continue
        start, end = centiseconds(fields.get("start_time")), centiseconds(fields.get("end_time"))
        if start is None or end is None:
            continue
        complete += 1
        if start <= end <= 50 * frames:
            pieces.append((min(start // 50, frames - 1), min(end // 50, frames - 1)))
    return len(groups), complete, pieces


def box_iou(a, b):
    width = lambda box: box[2] - box[0] + 1
    height = lambda box: box[3] - box[1] + 1
    if min(width(a), height(a), width(b), height(b)) <= 0:
        return 0.0
    w = max(min(a[2], b[2]) - max(a[0], b[0]) + 1, 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]) + 1, 0)
    union = width(a) * height(a) + width(b) * height(b) - w * h
    return w * h / union if union > 0 else 0.0


def first_best(score):
    """Lexicographically first of the best assignments; scipy confirms that it is one of the best."""
    n = len(score)
    total = lambda order: sum(score[i][order[i]] for i in range(n))
    best = max(map(total, itertools.permutations(range(n))))
    rows, columns = linear_sum_assignment(-np.array(score))
    assert math.isclose(best, np.array(score)[rows, columns].sum(), abs_tol=1e-9)
    return next(order for order in itertools.permutations(range(n)) if total(order) >= best - 1e-6)


def keyframes(pieces, most):
    chosen = sorted({t for first, last in pieces for t in range(first, last + 1)})[:most]
    return [(t, next(i for i, (first, last) in enumerate(pieces) if first <= t <= last)) for t in chosen]


def vos(text, groundings, masks, boxes, scale, predicted, config, most=4):
    """All terms and the accuracy of one completion.

    Args:
      groundings: System 2's text for each keyframe slot.
      masks: bool [N, T, H, W] of the real objects and frames. boxes: [N, T, 4], -1 where the mask is empty.
      predicted: bool [T, H, W], the union of what the segmenter would return.
    """
    n, frames = masks.shape[:2]
    count, complete, pieces = read_plan(text, frames)
    names = "structure coverage count span overlap saliency alignment mismatch segmentation diversity closeness"
    terms = dict.fromkeys(names.split(), 0.0)
    if count:
        terms["structure"] = 0.2 * (count + complete + len(pieces)) / count
    matched = {}
    if pieces:
        visible = masks.any(axis=(2, 3))
        terms["coverage"] = sum(visible[:, a : b + 1].mean() for a, b in pieces) / count
        entries = [t for a, b in pieces for t in range(a, b + 1)]
        distinct = len(set(entries))
        terms["count"] = 0.4 * distinct if distinct <= 4 else 0.4 * (7 - distinct)
        terms["span"] = sum(-0.2 * (b - a) for a, b in pieces)
        terms["overlap"] = -0.5 * (len(entries) - distinct)
        ordered = sorted(pieces, key=lambda piece: piece[0])
        for i, piece in enumerate(ordered):
            touches = i + 1 < len(ordered) and piece[1] >= ordered[i + 1][0]
            terms["diversity"] += config.overlap_punishment if touches else config.distance_reward
        terms["closeness"] = max(0.0, 1 - abs(len(pieces) - config.target_pieces) / config.target_pieces)

        chosen = keyframes(pieces, most)
        area = masks.sum(axis=(0, 2, 3))
        saliency = np.mean([area[t] / (area.max() + 1e-6) for t, _ in chosen])
        hits, excess = [], 0
        for slot, (t, _) in enumerate(chosen):
            found = re.findall(r"\{.*?\}", groundings[slot], re.S)
            excess += max(len(found) - n, 0)
            read = [(strict_json(group) or {}).get("bbox_2d") for group in found[:n]]
            guess = [numbers(value, 4) or [-1.0] * 4 for value in read] + [[-1.0] * 4] * (n - len(found))
            gt = [np.array(boxes[i, t]) * np.tile(scale, 2) for i in range(n)]
            real = [boxes[i, t, 0] != -1 for i in range(n)]
            usable = [r and (config.edge_boxes_match or g[0] > 0) for r, g in zip(real, gt)]
            score = [[box_iou(p, g) if u and p != [-1.0] * 4 else 0.0 for g, u in zip(gt, usable)] for p in guess]
            order = first_best(score)
            hits += [score[i][j] for i, j in enumerate(order) if real[j]]
            for i, j in enumerate(order):
                if -1.0 not in guess[i]:
                    matched[j, slot] = guess[i]
        grounded = bool(matched)
        weighed = config.segmentation > 1e-6 or not config.gated_by_segmentation
        if weighed and (grounded or not config.gated):
            terms["saliency"] = saliency
            terms["alignment"] = np.mean(hits) if hits else 0.0
            terms["mismatch"] = -excess / (n + 1e-6) * 0.5 / len(chosen)
        if weighed and grounded:
            gt = masks.any(axis=0)
            union = (gt | predicted).sum(axis=(1, 2))
            inter = (gt & predicted).sum(axis=(1, 2))
            terms["segmentation"] = np.mean([i / u if u else 1.0 for i, u in zip(inter, union)])
    weighted = {name: getattr(config, name) * value for name, value in terms.items()}
    base = weighted.pop("structure") + weighted.pop("coverage")
    rest = sum(weighted.values())
    return terms, base + (max(rest, 0.0) if config.clip else rest), matched


def refcocog(text, box, points, scale):
    """Seg-Zero's terms of the first object in the answer."""
    terms = {"overlap": 0.0, "points": 0.0, "corners": 0.0, "strict": 0.0}
    block = re.search(r"<answer>\s*(.*?)\s*</answer>", text, re.S | re.A)
    found = re.search(r"\{[^}]+\}", block[1]) if block else None
    fields = strict_json(found[0]) if found else None
    if fields is None:
        return terms
    shapes = (("bbox_2d", 4), ("points_1", 2), ("points_2", 2))
    terms["strict"] = float(all(numbers(fields.get(key), n) is not None for key, n in shapes))
    value = next((v for k, v in fields.items() if "bbox" in k.lower()), None)
    guess = numbers(value, 4)
    if guess is None:
        return terms
    box = [int(x) for x in box * np.tile(scale, 2)]
    overlaps = max(guess[0], box[0]) < min(guess[2], box[2]) and max(guess[1], box[1]) < min(guess[3], box[3])
    iou = box_iou(guess, box) if overlaps else 0.0
    terms["overlap"] = 2 * max(0.0, iou - 0.5) + 0.4 * (iou > 0.5)
    terms["corners"] = min(max((30 - np.mean(np.abs(np.subtract(guess, box)))) * 0.05, 0.0), 1.0)
    spots = [v for k, v in fields.items() if "points" in k.lower()][:2]
    if len(spots) == 2 and all(numbers(v, 2) is not None for v in spots):
        a, b = ([int(x) for x in v] for v in spots)
        c, d = ([int(x) for x in p * scale] for p in points)
        if all(guess[0] <= x <= guess[2] and guess[1] <= y <= guess[3] for x, y in (a, b)):
            apart = min(math.dist(a, c) + math.dist(b, d), math.dist(a, d) + math.dist(b, c)) / 2
            terms["points"] = min(max((150 - apart) * 0.02, 0.0), 1.0)
    return terms
