"""Models and datasets of the paper and this package: location, licence, how to get them."""

from typing import NamedTuple

from omnir1_jax.files import hub


class Source(NamedTuple):
    """One model or dataset.

    Attributes:
      repo: repository on the hub; "" if it is elsewhere, and `by_hand` says how to get it.
      files: patterns of the required files; None for all.
      licence: licence on its own page; "see its page" where none was found.
    """

    repo: str
    licence: str
    files: tuple[str, ...] | None = None
    by_hand: str = ""


def _model(repo: str, licence: str) -> Source:
    return Source(repo, licence, hub.MODEL_FILES)


_SIZES = ("tiny", "small", "base-plus", "large")
MODELS: dict[str, Source] = {
    "qwen2.5-omni-7b": _model("Qwen/Qwen2.5-Omni-7B", "Apache-2.0"),
    "qwen2.5-omni-3b": _model("Qwen/Qwen2.5-Omni-3B", "see its page (research only, probably)"),
    "omni-r1": _model("Haoz0206/Omni-R1", "BSD-2-Clause for academic use; ask its authors for commercial use"),
    **{f"sam2.1-hiera-{size}": _model(f"facebook/sam2.1-hiera-{size}", "Apache-2.0") for size in _SIZES},
    **{f"sam2-hiera-{size}": _model(f"facebook/sam2-hiera-{size}-hf", "Apache-2.0") for size in _SIZES},
    "grounding-dino-tiny": _model("IDEA-Research/grounding-dino-tiny", "Apache-2.0"),
    "grounding-dino-base": _model("IDEA-Research/grounding-dino-base", "Apache-2.0"),
}

_NC = "CC BY-NC-SA 4.0: no commercial use"
_COPY = "Dense-World/video-res"  # by the authors of Sa2VA
DATASETS: dict[str, Source] = {
    "revos": Source(_COPY, _NC, ("revos*.zip",), "the authors' own copy: https://github.com/cilinyan/ReVOS-api"),
    "mevis": Source(_COPY, _NC, ("mevis*.zip",), "the authors' own copy: https://github.com/henghuiding/MeViS"),
    "refytvos": Source(_COPY, "see its page", ("rvos*.zip",), "https://competitions.codalab.org/competitions/29139"),
    "refdavis": Source(_COPY, "see its page", ("davis17*.zip",), "https://davischallenge.org"),
    "refavs": Source(
        "", _NC, None, "curl -L -C - -O https://zenodo.org/records/12970978/files/RefAVSBench.tar.gz, then unpack it"
    ),
    "reasonvos": Source(
        "",
        "non-commercial research",
        None,
        "the link to Google Drive on https://github.com/showlab/VideoLISA/blob/main/BENCHMARK.md, then unpack it",
    ),
    "refcocog": Source("Ricky06662/refCOCOg_2k_840", "see its page"),
    "omnibench": Source("m-a-p/OmniBench", "see its page"),
    "dailyomni": Source("liarliar/Daily-Omni", _NC, ("qa.json", "Videos.tar")),
    "videomme": Source("lmms-lab/Video-MME", "academic research only, no commercial use"),
    "mvbench": Source("OpenGVLab/MVBench", "MIT; of its videos each its own"),
    "avhbench": Source("", "see its page", None, "the links to Google Drive on https://github.com/kaist-ami/AVHBench"),
    "videor1": Source("Video-R1/Video-R1-data", "see its page"),
}
