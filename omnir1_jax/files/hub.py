"""Repositories of the Hugging Face hub: where its cache keeps them, and how they get there."""

import fnmatch
import os
import pathlib
import re
import shutil
from collections.abc import Sequence

from etils import epath

from omnir1_jax.errors import InputError, Interrupted, first_line

# What a model needs; other frameworks' copies of the weights stay where they are.
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "spk_dict.pt")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def located(path: str, setting: str) -> str:
    """`path`, or the folder in the hub's cache of the model that it names as `org/name`.

    Raises:
      InputError: it is neither a directory nor in the cache; says which command fetches it.
    """
    if _ID.fullmatch(path) is None or epath.Path(path).exists():
        return path
    if (snapshot := cached(path)) is not None:
        return snapshot
    if not may_be_id(path):
        return path
    raise InputError(
        f"{setting}: {path} is not a directory, and the Hugging Face cache has no model of this id; if that is meant: "
        f"python -m omnir1_jax.fetch model {path}"
    )


def may_be_id(path: str) -> bool:
    """Whether it has the form `org/name`, and is not a folder of the configs and the README."""
    return _ID.fullmatch(path) is not None and path.split("/")[0] not in ("weights", "runs", "data")


def cached(repo: str) -> str | None:
    """The folder of a completely fetched model; None if there is none. Uses no network."""
    folder = _snapshot(repo, "model", MODEL_FILES)
    return folder if folder is not None and os.path.isfile(os.path.join(folder, "config.json")) else None


def cached_dataset(path: str) -> str | None:
    """The folder of the dataset that `path` names as `org/name`; None if it is not an id, or was not fetched."""
    return _snapshot(path, "dataset", None) if _ID.fullmatch(path) else None


def _snapshot(repo: str, kind: str, patterns: Sequence[str] | None) -> str | None:
    import huggingface_hub
    from huggingface_hub import errors

    options = dict(repo_type=kind, local_files_only=True, allow_patterns=None if patterns is None else list(patterns))
    try:
        return str(huggingface_hub.snapshot_download(repo, **options))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None


def fetch(repo: str, kind: str, patterns: Sequence[str] | None, out: str | None) -> tuple[str, int]:
    """Downloads a repository's files, or resumes doing so, and compares every size with the hub's.

    Args:
      kind: "model" or "dataset".
      patterns: of the wanted names; None for all.
      out: directory to write; None for the hub's cache.

    Returns:
      The folder that holds them, and how many bytes they have.

    Raises:
      InputError: no such repository, a licence to accept first, no such files, too little disk.
      Interrupted: the network failed; a rerun resumes.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    try:
        info = huggingface_hub.HfApi().repo_info(repo, repo_type=kind, files_metadata=True)
        match = lambda name: patterns is None or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or () if match(sibling.rfilename)}
        if not sizes:
            raise InputError(f"{page} holds none of {', '.join(patterns or ('any file',))}")
        if kind == "model" and not any(name.endswith(".safetensors") for name in sizes):
            raise InputError(f"{page} holds no *.safetensors; weights in other formats are not read")
        target = pathlib.Path(out) if out else pathlib.Path(constants.HF_HUB_CACHE)
        _need_disk(target, sum(sizes.values()), repo)
        folder = huggingface_hub.snapshot_download(
            repo, repo_type=kind, revision=info.sha, allow_patterns=list(sizes), local_dir=out
        )
        if not out:
            _point_to(pathlib.Path(folder), info.sha)
    except errors.GatedRepoError as error:
        raise InputError(
            f"{repo}: its licence has to be accepted: do so on {page}, then run `hf auth login` and this command again"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"{repo}: the hub has no such {kind}, or it is private; see {page}") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise
        raise Interrupted(f"{repo}: {first_line(error)}; run the same command again to resume") from error
    except Exception as error:  # the client's HTTP library goes by several names, and its errors are not OSErrors
        if not type(error).__module__.startswith("httpx"):
            raise
        raise Interrupted(f"{repo}: {first_line(error)}; run the same command again to resume") from error
    wrong = [name for name, size in sizes.items() if _size(os.path.join(folder, name)) != size]
    if wrong:
        summary = f"{len(wrong)} files, first {wrong[0]},"
        raise InputError(f"{folder}: {summary} differ in size from the hub's; move them elsewhere and rerun")
    return folder, sum(sizes.values())


def _point_to(snapshot: pathlib.Path, sha: str) -> None:
    """Makes the cache's `main` the revision that was fetched by its hash."""
    ref = snapshot.parents[1] / "refs" / "main"
    ref.parent.mkdir(exist_ok=True)
    ref.write_text(sha)


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else -1


def _need_disk(target: pathlib.Path, needed: int, repo: str) -> None:
    existing = next(path for path in (target.absolute(), *target.absolute().parents) if path.exists())
    present_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) if target.is_dir() else 0
    free_bytes = shutil.disk_usage(existing).free
    if needed - present_bytes > free_bytes:
        raise InputError(f"{repo} has {needed / 1e9:.1f} GB and {existing} has {free_bytes / 1e9:.1f} GB free")
