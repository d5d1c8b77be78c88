"""A bucket in memory: while `bucket()` is open, `gs://` paths lead there."""

import contextlib
from collections.abc import Iterator

from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class _Bucket(MemoryFileSystem):
    """As in a bucket, a folder is there while an object is in it."""

    protocol = ("gs",)
    cachable = False

    def __init__(self):
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").strip("/") if path.strip("/") else ""

    def mkdir(self, path, create_parents=True, **kwargs):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def rmdir(self, path):
        raise FileNotFoundError(path)

    def rename(self, path1, path2, recursive=False, **kwargs):
        old, new = self._strip_protocol(path1), self._strip_protocol(path2)
        for name in [name for name in self.store if name == old or name.startswith(old + "/")]:
            self.store[new + name[len(old) :]] = self.store.pop(name)


@contextlib.contextmanager
def bucket(monkeypatch) -> Iterator[dict[str, object]]:
    """Its objects by name."""
    files = _Bucket()
    with monkeypatch.context() as patch:
        patch.setattr(backend.fsspec_backend.__class__, "fs", lambda self, path: files)
        yield files.store
