"""The benchmarks' numbers once more, from the PNGs on disk and the trees' own files."""

import csv
import itertools
import json
import math

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco
from scipy import ndimage


def pngs(folder, names):
    """Predicted masks; they have to be gray images of 0 and 255."""
    found = [cv2.imread(str(folder / f"{name}.png"), cv2.IMREAD_UNCHANGED) for name in names]
    assert all(image.ndim == 2 and set(np.unique(image)) <= {0, 255} for image in found)
    assert len(list(folder.iterdir())) == len(names)
    return np.stack(found) > 0


def track(runs):
    """Masks of an annotation; None is an empty one of the size of the others."""
    size = next(r["size"] for r in runs if r)
    return np.stack([coco.decode(r).astype(bool) if r else np.zeros(size, bool) for r in runs])


def region(truth, predicted):
    values = []
    for g, p in zip(truth, predicted):
        values.append((g & p).sum() / (g | p).sum() if (g | p).any() else 1.0)
    return float(np.mean(values))


def boundary(mask):
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here, right, below, corner = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (here != right) | (here != below) | (here != corner)


def contour(truth, predicted):
    radius = math.ceil(0.008 * math.hypot(*truth.shape[1:]))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x**2 + y**2 <= radius**2
    values = []
    for g, p in zip(map(boundary, truth), map(boundary, predicted)):
        if not g.any() or not p.any():
            values.append(float(not g.any() and not p.any()))
            continue
        precision = (p & ndimage.binary_dilation(g, disk)).sum() / p.sum()
        recall = (g & ndimage.binary_dilation(p, disk)).sum() / g.sum()
        values.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return float(np.mean(values))


def expressions(root, meta, masks, predicted):
    """(type, truth [t h w], prediction, video) of every expression of a tree of ReVOS or MeViS."""
    videos = json.loads((root / meta).read_text())["videos"]
    tracks = json.loads((root / masks).read_text())
    for video, record in videos.items():
        for name, expression in record["expressions"].items():
            found = pngs(predicted / video / name, record["frames"])
            truth = [track(tracks[str(anno)]) for anno in expression["anno_id"]]
            truth = np.any(truth, axis=0) if truth else np.zeros_like(found)
            yield expression.get("type_id"), truth, found, video


def mevis(root, predicted):
    rows = [
        (region(truth, found), contour(truth, found))
        for _, truth, found, _ in expressions(root / "valid_u", "meta_expressions.json", "mask_dict.json", predicted)
    ]
    j, f = 100 * np.mean(rows, axis=0)
    return {"J": j, "F": f, "J&F": (j + f) / 2, "count": len(rows)}


def revos(root, predicted):
    """{kind: {J, F, A, R, J&F}}"""
    union = json.loads((root / "mask_dict_foreground.json").read_text())
    rows = {0: [], 1: [], 2: []}
    for kind, truth, found, video in expressions(root, "meta_expressions_valid_.json", "mask_dict.json", predicted):
        ground = track(union[video]["masks_rle"])
        right = np.mean([(g == p).mean() for g, p in zip(truth, found)])
        sober = [max(1 - (p & ~g).sum() / (u.sum() + 1e-6), 0) for g, p, u in zip(truth, found, ground)]
        rows[kind].append([region(truth, found), contour(truth, found), right, np.mean(sober)])
    table = {
        name: dict(zip("JFAR", np.mean(np.round(100 * np.array(rows[kind]), 2), axis=0)))
        for name, kind in (("referring", 0), ("reasoning", 1))
    }
    table["overall"] = {key: np.mean([table["referring"][key], table["reasoning"][key]]) for key in "JFAR"}
    for row in table.values():
        row["J&F"] = (row["J"] + row["F"]) / 2
    return table


def beta(truth, predicted):
    """Mean F over the frames that have truth; at the lowest threshold everything is predicted."""
    values = [0.0]
    for g, p in zip(truth, predicted):
        if g.any():
            precision, recall = (g & p).sum() / max(p.sum(), 1), (g & p).sum() / g.sum()
            values.append(1.3 * precision * recall / (0.3 * precision + recall) if (g & p).any() else 0.0)
    return np.sum(values) / max(len(values) - 1, 1)


def refavs(root, split, predicted, batch=4):
    """J and F in percent, S."""
    rows = [row for row in csv.DictReader((root / "metadata.csv").open()) if row["split"] == split]
    names = [f"{t:05d}" for t in range(10)]
    big = lambda masks: np.stack([cv2.resize(m.astype(np.float32), (256, 256)) > 0 for m in masks])
    scores = []
    for start in range(0, len(rows), batch):
        truth, found = [], []
        for row in rows[start : start + batch]:
            folder = root / "gt_mask" / row["uid"].rsplit("_", 2)[0] / f"fid_{row['fid']}"
            truth += [big([cv2.imread(str(folder / f"{n}.png"), cv2.IMREAD_GRAYSCALE) > 0 for n in names])]
            found += [big(pngs(predicted / row["uid"] / f"fid_{row['fid']}", names))]
        truth, found = np.concatenate(truth), np.concatenate(found)
        j = [(g & p).sum() / (g | p).sum() if g.any() else (~p).mean() for g, p in zip(truth, found)]

        scores.append((np.mean(j), max(beta(truth, found), beta(truth, np.ones_like(found))), math.sqrt(found.mean())))
    j, f, s = np.mean(scores, axis=0)
    return {"J": 100 * j, "F": 100 * f, "S": s, "videos": len(rows)}


def indices(path):
    """A label map: the indices of a palette PNG, whatever its colours."""
    return np.asarray(Image.open(path))


def mean_of(rows):
    j, f = 100 * np.mean(rows, axis=0)
    return {"J": j, "F": f, "J&F": (j + f) / 2}


def refytvos(root, predicted):
    """The train split, whose label maps are there."""
    rows = []
    videos = json.loads((root / "meta_expressions/train/meta_expressions.json").read_text())["videos"]
    for video, record in videos.items():
        maps = np.stack([indices(root / "train/Annotations" / video / f"{n}.png") for n in record["frames"]])
        for name, expression in record["expressions"].items():
            found = pngs(predicted / video / name, record["frames"])
            truth = maps == int(expression["obj_id"])
            rows.append((region(truth, found), contour(truth, found)))
    return mean_of(rows) | {"count": len(rows)}


def refdavis(root, predicted):
    """By expression, and as four submissions to DAVIS' unsupervised evaluation, objects matched by trying all ways."""
    videos = json.loads((root / "meta_expressions/valid/meta_expressions.json").read_text())["videos"]
    single, submissions = [], [[], [], [], []]
    for video, record in videos.items():
        names = record["frames"]
        maps = np.stack([indices(root / "Annotations_unsupervised/480p" / video / f"{n}.png") for n in names])
        known = maps != 255
        found = {int(e): pngs(predicted / video / e, names) for e in record["expressions"]}
        for number, mask in found.items():
            truth = maps == number // 4 + 1
            single.append((region(truth, mask), contour(truth, mask)))
        truths = [maps == n for n in range(1, maps[0][known[0]].max() + 1)]
        for annotator, rows in enumerate(submissions):
            left, drawn = known.copy(), []  # of objects over each other the first is seen
            for number in range(annotator, len(found), 4):
                drawn.append(found[number] & left)
                left &= ~found[number]
            pairs = [[(region(truth, mask), contour(truth, mask)) for mask in drawn] for truth in truths]
            ways = itertools.permutations(range(len(drawn)), len(truths))
            best = max(ways, key=lambda way: sum(sum(pairs[n][m]) for n, m in enumerate(way)))
            rows += [pairs[n][m] for n, m in enumerate(best)]
    each = [mean_of(rows) for rows in submissions]
    average = {key: np.mean([one[key] for one in each]) for key in each[0]}
    assert len({one["J"] for one in each}) > 1
    return mean_of(single) | {"count": len(single), "unsupervised": average | {"submissions": 4}}
