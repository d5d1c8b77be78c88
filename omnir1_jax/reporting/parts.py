"""A file that grows, on a bucket, whose objects cannot be appended to: what is new goes there as a part of its own.

    rollouts.jsonl               as it was when the run was last started, or ended
    rollouts_parts/000000012345  what follows, named after the offset that it begins at

A part that does not continue what stands before it is stale, and is left out.
"""

import pathlib

from etils import epath


class Parts:
    """Copies a local file that is appended to. `open` and `close` copy all of it once, `send` what is new."""

    def __init__(self, local: pathlib.Path, remote: epath.Path, folder: epath.Path):
        self._local, self._remote, self._folder, self._sent = local, remote, folder, 0

    def fetch(self) -> None:
        """Puts the remote content into the local file."""
        data = self._remote.read_bytes() if self._remote.exists() else b""
        for part in self._parts():
            if int(part.name) == len(data):
                data += part.read_bytes()
        if data:
            self._local.write_bytes(data)

    def open(self) -> None:
        """The local file, which may have been truncated, takes the place of the remote one and its parts."""
        data = self._local.read_bytes() if self._local.exists() else b""
        if not self._remote.exists() or self._remote.read_bytes() != data:
            self._remote.parent.mkdir(parents=True, exist_ok=True)
            self._remote.write_bytes(data)  # first, since a part that is left over is stale
        for part in self._parts():
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

    def _parts(self) -> list[epath.Path]:
        found = [path for path in self._folder.iterdir() if path.name.isdecimal()] if self._folder.exists() else []
        return sorted(found, key=lambda path: int(path.name))
