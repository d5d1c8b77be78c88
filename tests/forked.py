"""The end of a forked process that runs a command."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


def finish(log: str, run: Callable[..., None], *args: Any) -> NoReturn:
    """Runs `run(*args)` with its output in the file `log`, and ends this process with its status."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 1
    try:
        run(*args)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
