"""Readers of the video and image sets: from disk, exactly what was written; and errors that name what is missing."""

import collections
import csv
import json
import pickle
import shlex
import shutil

import numpy as np
import pytest

from omnir1_jax.data import (
    media,
    mevis,
    paths,
    reasonvos,
    refavs,
    refcocog,
    refdavis,
    refytvos,
    registry,
    revos,
    rle,
    unpickle_masks,
)
from omnir1_jax.data.masks import decode_label_map, decode_masks
from omnir1_jax.data.refs import BadSample, Reader
from omnir1_jax.data.synthetic import encode, writers
from omnir1_jax.errors import InputError
from tests.data import trees

VOS_TREES = (
    "revos", "revos_flat", "mevis", "refavs", "refytvos", "refdavis", "reasonvos", "refcocog", "refcocog_parquet",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Each kind of tree, written once."""
    base = tmp_path_factory.mktemp("trees")
    for name in VOS_TREES:
        trees.BUILD[name](base / name)
    return base


@pytest.fixture
def copy(root, tmp_path):
    """A tree of one's own to break."""

    def make(name: str):
        return shutil.copytree(root / name, tmp_path / name)

    return make


def clip_at(split: str, number: int):
    return trees.clip(writers.clip_seed(0, split, number))


def whole(clip):
    return range(len(clip.frames))


def decoded(images: np.ndarray) -> np.ndarray:
    """What JPEG leaves of frames."""
    return np.stack([media.decode_image(encode.jpeg(image), "frame") for image in images])


@pytest.mark.parametrize("tree", ["revos", "revos_flat"])
@pytest.mark.parametrize("split", revos.SPLITS)
def test_revos_round_trip(root, tree, split):
    reader = revos.open(str(root / tree), split)
    assert isinstance(reader, Reader)
    reader = pickle.loads(pickle.dumps(reader))
    numbers = {f"synthetic/{split}/clip_{k:05d}": k for k in range(2)}
    seen = set()
    for ref in (reader[i] for i in range(len(reader))):
        clip = clip_at(split, numbers[ref.extra["video"]])
        objects = ref.extra["obj_id"]
        assert np.array_equal(decode_masks(ref.masks, whole(ref)), clip.masks[objects])
        assert np.array_equal(media.load_frames(ref.frames, whole(ref)), decoded(clip.frames))
        assert {e.text: list(e.targets) for e in clip.expressions}[ref.query] == objects
        assert ref.size == (48, 64) and ref.family == "vos" and ref.audio is None
        assert ref.sample_id == f"revos/{split}/{ref.extra['video']}/{ref.extra['exp_id']}"
        if split == "valid":
            assert np.array_equal(decode_masks(ref.foreground, whole(ref))[0], clip.masks.any(0))
        seen.add(ref.extra["type_id"])
    # The sentence that fits nothing is there to be judged, and not to be trained on.
    assert seen == ({0, 1} if split == "train" else {0, 1, 2})
    assert [len(group) for group in reader.clips()] == ([7, 7] if split == "train" else [8])
    with pytest.raises(IndexError):
        reader[len(reader)]


def test_revos_names_start_anywhere_and_have_gaps(root):
    reader = revos.open(str(root / "revos"))
    starts = {reader[group[0]].frames.names[:2] for group in reader.clips()}
    assert starts == {("00000", "00005"), ("00010", "00015")}
    ids = {reader[i].extra["exp_id"] for i in range(len(reader))}
    assert "3" not in ids and "4" in ids


def test_chosen_frames_in_any_order(root):
    ref = revos.open(str(root / "revos"))[0]
    picks = [4, 0, 4, 2]
    everything = decode_masks(ref.masks, whole(ref))
    assert np.array_equal(decode_masks(ref.masks, picks), everything[:, picks])
    with pytest.raises(BadSample, match="no mask for frame 6"):
        decode_masks(ref.masks, [6], "it")


def test_training_skips_what_has_no_target(copy):
    tree = copy("revos")
    path = tree / "meta_expressions_train_.json"
    meta = json.loads(path.read_text())
    first, second = meta["videos"].values()
    for expression in first["expressions"].values():
        expression["type_id"] = 2
    path.write_text(json.dumps(meta))
    assert len(revos.open(str(tree))) == 7
    assert len(revos.open(str(tree), keep_empty=True)) == 16
    for expression in second["expressions"].values():
        expression["obj_id"] = expression["anno_id"] = []
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match="no items for split 'train'"):
        revos.open(str(tree))


@pytest.mark.parametrize("split", mevis.SPLITS)
def test_mevis_round_trip(root, split):
    reader = mevis.open(str(root / "mevis"), split)
    order = {group[0]: k for k, group in enumerate(reader.clips())}
    for first, k in order.items():
        clip = clip_at(split, k)
        for i in reader.clips()[k]:
            ref = reader[i]
            assert np.array_equal(media.load_frames(ref.frames, whole(ref)), decoded(clip.frames))
            assert len(ref.extra["video"]) == 12 and ref.frames.names[0] == "00000"
            if split == "valid":
                assert ref.masks is None and set(ref.extra) == {"video", "exp_id"}
            else:
                assert np.array_equal(decode_masks(ref.masks, whole(ref)), clip.masks[ref.extra["obj_id"]])
        assert reader[first].sample_id.startswith(f"mevis/{split}/")


@pytest.mark.parametrize("split", refavs.SPLITS)
def test_refavs_round_trip(root, split):
    reader = refavs.open(str(root / "refavs"), split)
    config = writers.refavs_config(trees.SMALL)
    nulls = 0
    for i in range(len(reader)):
        ref = reader[i]
        number = next(v for v in range(3) if _vid(split, v) == ref.extra["vid"])
        clip = writers.make_clip(config, writers.clip_seed(0, split, number))
        masks = decode_masks(ref.masks, whole(ref))
        assert len(ref.frames) == 10 and ref.frames.fps == 1.0
        if ref.extra["null"]:
            nulls += 1
            assert ref.extra["dir"].startswith("null_") and ref.extra["dir"] != ref.extra["vid"]
            assert masks.shape == (1, 10, 48, 64) and not masks.any()
        else:
            assert ref.extra["dir"] == ref.extra["vid"]
            assert np.array_equal(masks[0], clip.masks[ref.extra["fid"] - 1])
        assert np.array_equal(media.load_frames(ref.frames, whole(ref)), decoded(clip.frames))
        assert f"{ref.extra['dir']}/audio.wav" in ref.audio.path
    assert nulls == {"train": 1, "val": 1, "test_n": len(reader)}.get(split, 0)


def _vid(split: str, number: int) -> str:
    import hashlib

    name = hashlib.blake2b(f"0/{split}/{number}".encode(), digest_size=5).hexdigest()
    return f"{'-' if number % 3 == 1 else 's'}{name}_0_10000"


def test_refavs_quirks(root):
    """The directory is the uid less two parts; TODO and junk rows go; an id used twice stays, told apart."""
    assert refavs.directory("null_c--KCIeh0kLM_0_10000_0_3") == "null_c--KCIeh0kLM_0_10000"
    reader = refavs.open(str(root / "refavs"))
    assert reader.notes == ("1 rows left out: split TODO", "1 rows left out: no expression")
    assert sum(label.endswith("#2") for label in reader.ids) == 1 and len(set(reader.ids)) == len(reader)
    assert any(label.startswith("refavs/train/-") for label in reader.ids)


def test_refavs_null_row_without_masks_is_empty(copy):
    tree = copy("refavs")
    for folder in (tree / "gt_mask").glob("null_*"):
        shutil.rmtree(folder)
    reader = refavs.open(str(tree), "test_n")
    masks = decode_masks(reader[0].masks, range(10))
    assert masks.shape == (1, 10, 48, 64) and not masks.any()


def test_refytvos(root):
    folder = str(root / "refytvos")
    c = trees.clip(1)
    reader = refytvos.open(folder)
    for i in range(len(reader)):
        ref = reader[i]
        n = ref.extra["obj_id"] - 1
        assert np.array_equal(decode_masks(ref.masks, whole(ref))[0], c.masks[n])
        assert ref.extra["category"] == c.scene.shapes[n].kind
    valid = refytvos.open(folder, "valid")  # keys of valid less keys of test
    assert {valid[i].extra["video"] for i in range(len(valid))} == {"v_valid"}
    assert valid[0].masks is None
    test = refytvos.open(folder, "test")
    assert {test[i].extra["video"] for i in range(len(test))} == {"v_test"}


def test_reasonvos(root):
    reader = reasonvos.open(str(root / "reasonvos"))
    assert [reader[i].sample_id for i in range(4)] == [
        f"reasonvos/test/{video}/{n}" for video in ("061_car", "b-w") for n in (1, 2)
    ]
    for i, (number, step) in enumerate([(60, 1), (60, 1), (61, 2), (61, 2)]):
        ref, c = reader[i], trees.clip(number)
        assert ref.extra["annotated"] == tuple(range(0, len(c.frames), step)) and ref.extra["is_sent"] is True
        assert np.array_equal(decode_masks(ref.masks, ref.extra["annotated"])[0], c.masks[i % 2][::step])


@pytest.mark.parametrize("masks", ["dict", "maps"])
def test_refdavis_protocols(root, masks):
    folder = str(root / "refdavis")
    reader = refdavis.open(folder, masks=masks)
    clips = {"bike-packing": trees.clip(4), "aerobatics": trees.clip(5)}
    anno_ids = {}
    for i in range(len(reader)):
        ref = reader[i]
        found = decode_masks(ref.masks, whole(ref))[0].copy()
        expected = clips[ref.extra["video"]].masks[ref.extra["obj"]].copy()
        if masks == "maps":
            expected[:, 0, 0] = False  # void
        assert np.array_equal(found, expected)
        assert ref.extra["obj"] * 4 + ref.extra["annotator"] == int(ref.extra["exp_id"])
        anno_ids[ref.extra["video"], ref.extra["exp_id"]] = ref.extra["anno_id"]
    # The counter runs over sorted videos and over ids sorted as text: "10" and "11" come before "2".
    assert min(anno_ids, key=anno_ids.get) == ("aerobatics", "0")
    assert anno_ids["aerobatics", "10"] == anno_ids["aerobatics", "1"] + 1 < anno_ids["aerobatics", "2"]
    maps = refdavis.annotation(folder, "aerobatics", reader[0].frames.names)
    assert decode_label_map(paths.read_bytes(maps.paths[0]))[0, 0] == refdavis.VOID


def test_refdavis_with_pickled_masks(copy):
    """The copy that others hand out: the message says what to run, and that gives the same masks."""
    tree = copy("refdavis")
    shutil.rmtree(tree / "Annotations_unsupervised")
    path = tree / "valid" / "mask_dict.json"
    wanted = json.loads(path.read_text())
    path.unlink()
    tracks = {
        key: [mask and {"size": mask["size"], "counts": mask["counts"].encode()} for mask in track]
        for key, track in wanted.items()
    }
    (tree / "valid" / "mask_dict.pkl").write_bytes(pickle.dumps(tracks, protocol=2))
    for masks in ("auto", "dict"):
        with pytest.raises(InputError, match=r"holds none of .*mask_dict\.pkl is a pickle.*if you trust it") as error:
            refdavis.open(str(tree), masks=masks)
    command = shlex.split(str(error.value).partition("convert it with: ")[2])
    assert command[:3] == ["python", "-m", "omnir1_jax.data.unpickle_masks"]
    assert unpickle_masks.convert(*command[3:]) == len(wanted)
    assert json.loads(path.read_text()) == wanted and refdavis.open(str(tree))[0].masks is not None
    with pytest.raises(InputError, match="exists already"):
        unpickle_masks.convert(*command[3:])


class Evil:
    def __reduce__(self):
        return print, ("this ran",)


def test_the_converter_runs_nothing_of_a_pickle(tmp_path, capsys):
    mask = np.eye(3, 4, dtype=np.uint8)
    lengths = {"size": [np.int64(3), np.int64(4)], "counts": rle.encode(mask > 0)["counts"]}
    good = {0: [mask, mask > 0, None, lengths], "1": [collections.OrderedDict(lengths)]}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "good.pkl").write_bytes(pickle.dumps(good, protocol=protocol))
        assert unpickle_masks.convert(tmp_path / "good.pkl", tmp_path / f"{protocol}.json") == 2
        first = json.loads((tmp_path / f"{protocol}.json").read_text())["0"]
        assert first[:2] == [rle.encode(mask > 0)] * 2 and first[2] is None and first[3] == first[0]
    bad = [
        pickle.dumps({"0": [Evil()]}),
        pickle.dumps({"0": [np.array([None])]}),
        pickle.dumps({"0": [{"size": [3, 4], "counts": "~"}]}),
        pickle.dumps({"0": [np.zeros((2, 2, 2), np.uint8)]}),
        pickle.dumps([1]),
        pickle.dumps(good)[:-9],
        b"",
    ]
    for data in bad:
        (tmp_path / "bad.pkl").write_bytes(data)
        with pytest.raises(InputError, match=r"bad\.pkl"):
            unpickle_masks.convert(tmp_path / "bad.pkl", tmp_path / "out.json")
        assert not (tmp_path / "out.json").exists()
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("tree", ["refcocog", "refcocog_parquet"])
def test_refcocog_round_trip(root, tree):
    reader = refcocog.open(str(root / tree))
    config = writers.refcocog_config(trees.SMALL)
    for k in range(len(reader)):
        ref = reader[k]
        clip = writers.make_clip(config, writers.clip_seed(0, "train", k))
        (target,) = {e.text: e.targets for e in clip.expressions}[ref.query]
        (box,), points = ref.extra["boxes"], ref.extra["points"]
        rows, columns = np.flatnonzero(clip.masks[target, 0].any(1)), np.flatnonzero(clip.masks[target, 0].any(0))
        expected = np.array(
            [columns[0] * 840 / 64, rows[0] * 840 / 48, (columns[-1] + 1) * 840 / 64, (rows[-1] + 1) * 840 / 48]
        )
        assert np.abs(np.array(box) - expected).max() <= 1
        for x, y in points:
            assert clip.masks[target, 0, int(y * 48 / 840), int(x * 64 / 840)]
        assert len(points) == (2 if tree == "refcocog" else 1)
        image = media.load_frames(ref.frames, [0])[0]
        assert np.array_equal(image, decoded(encode.canvas(clip.frames[0])[None])[0]) and ref.size == (840, 840)
        assert (ref.extra["img_height"], ref.extra["img_width"]) == (48, 64)


def test_refcocog_both_spellings():
    tags = "<box>(0,457),(374,672)</box><points>(50,592),(144,601)</points>"
    assert refcocog.parse_solution(tags) == (((0, 457, 374, 672),), ((50, 592), (144, 601)))
    objects = [{"bbox_2d": [0, 457, 374, 672], "point_2d": [50, 592]}, {"bbox_2d": [1, 2, 30, 40], "point_2d": [5, 9]}]
    assert refcocog.parse_solution(json.dumps(objects)) == (((0, 457, 374, 672), (1, 2, 30, 40)), ((50, 592), (5, 9)))
    for bad in ("", "<box>(0,4)</box>", "<box>(5,5),(5,9)</box>", "<box>(0,0),(900,9)</box>", "[1]", "[{}]", "[", "{}"):
        with pytest.raises(ValueError):
            refcocog.parse_solution(bad)


def test_missing_things_are_named(copy):
    tree = copy("revos")
    (tree / "mask_dict.json").unlink()
    with pytest.raises(InputError, match=r"mask_dict\.json is missing"):
        revos.open(str(tree))
    tree = copy("mevis")
    video = next((tree / "train" / "JPEGImages").iterdir())
    (video / "00003.jpg").unlink()
    reader = mevis.open(str(tree))
    position = next(i for i, label in enumerate(reader.ids) if video.name in label)
    with pytest.raises(BadSample, match=r"00003\.jpg is missing") as error:
        reader[position]
    assert error.value.sample_id == reader.ids[position]
    shutil.rmtree(video)
    with pytest.raises(InputError, match=f"1 of 2 videos have no frames.*{video.name}"):
        mevis.open(str(tree))
    tree = copy("refavs")
    (tree / "metadata.csv").write_text("vid,uid,split\na,b,train\n")
    with pytest.raises(InputError, match=r"metadata\.csv row 1: the key 'fid' is missing"):
        refavs.open(str(tree))
    with pytest.raises(InputError, match="no split 'dev'"):
        refavs.open(str(tree), "dev")
    with pytest.raises(InputError, match="'nope' is none of"):
        registry.open_dataset("nope", str(tree))
    with pytest.raises(InputError, match="nowhere is missing"):
        registry.open_dataset("revos", str(tree / "nowhere"))


def test_wrong_keys_are_named(copy):
    tree = copy("revos")
    path = tree / "meta_expressions_train_.json"
    meta = json.loads(path.read_text())
    video = next(iter(meta["videos"]))
    meta["videos"][video]["expressions"]["0"]["obj_id"] = ["0"]
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError) as error:
        revos.open(str(tree))
    assert f"videos['{video}'].expressions['0'].obj_id[0]: expected a whole number, found '0'" in str(error.value)


@pytest.mark.parametrize("name", ["../outside", "/etc", "a/../../b", "C:\\x", "gs://bucket/x", "a\\..\\..\\b"])
def test_no_path_leaves_the_root(copy, name):
    tree = copy("revos")
    path = tree / "meta_expressions_train_.json"
    meta = json.loads(path.read_text())
    video = next(iter(meta["videos"]))
    meta["videos"][name] = meta["videos"].pop(video)
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match="leaves the dataset's root"):
        revos.open(str(tree))


def test_csv_rows_keep_commas_and_lines(copy):
    tree = copy("refavs")
    path = tree / "metadata.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0]["exp"] = 'the one, which says "hm",\nand goes'
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    assert refavs.open(str(tree))[0].query == rows[0]["exp"]
