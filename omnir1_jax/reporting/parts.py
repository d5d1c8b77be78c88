"""A growing file on a bucket, whose objects cannot be appended to: new bytes are stored as further parts.

    rollouts.jsonl               as it was when the run was last started, or ended
    rollouts_parts/000000012345  what follows, named after the offset that it begins at

A part that does not continue the bytes before it is stale, and is left out.
"""

import pathlib

from etils import epath


class Copy:
    """A local copy of a file on a bucket, or of a growing one with its parts, to which `update` appends."""

    def __init__(self, local: pathlib.Path, remote: epath.Path, folder: epath.Path | None = None):
        self._local, self._remote, self._folder = local, remote, folder
        self._whole, self._added = None, set()

    def update(self) -> None:
        """Fetches new parts; if the remote file was replaced or an added part is gone, copies everything again."""
        if not self._remote.exists():
            return
        stat, parts = self._remote.stat(), _parts(self._folder)
        version = stat.length, stat.mtime
        if version != self._whole or not self._added <= {part.name for part in parts}:
            self._local.write_bytes(self._remote.read_bytes())
            self._whole, self._added = version, set()
        for part in parts:
            if int(part.name) == self._local.stat().st_size:
                with self._local.open("ab") as file:
                    file.write(part.read_bytes())
                self._added.add(part.name)


class Parts:
    """Copies a local file that is appended to. `open` and `close` copy it entirely, `send` what was appended."""

    def __init__(self, local: pathlib.Path, remote: epath.Path, folder: epath.Path):
        self._local, self._remote, self._folder, self._sent = local, remote, folder, 0

    def fetch(self) -> None:
        """Puts the remote content into the local file."""
        Copy(self._local, self._remote, self._folder).update()

    def open(self) -> None:
        """Replaces the remote file and its parts by the local file, which may have been truncated."""
        data = self._local.read_bytes() if self._local.exists() else b""
        if not self._remote.exists() or self._remote.read_bytes() != data:
            self._remote.parent.mkdir(parents=True, exist_ok=True)
            self._remote.write_bytes(data)  # first, since a leftover part is stale
        for part in _parts(self._folder):
            part.unlink()
        self._sent = len(data)

    def send(self) -> None:
        """Copies what was appended since."""
        with self._local.open("rb") as file:
            file.seek(self._sent)
            data = file.read()
        if data:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"{self._sent:012d}").write_bytes(data)
            self._sent += len(data)


def _parts(folder: epath.Path | None) -> list[epath.Path]:
    folders = [p for p in folder.iterdir() if p.name.isdecimal()] if folder is not None and folder.exists() else []
    return sorted(folders, key=lambda path: int(path.name))
