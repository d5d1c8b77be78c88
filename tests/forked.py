"""Commands in forked processes: a server that starts them and waits for them, and how each ends."""

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


def collect_seldom() -> None:
    """Of what is imported nothing is ever freed, and a program's trace is millions of objects: looking at them all
    again and again takes up to a sixth of tracing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


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


def serve(run: Callable[[dict[str, Any]], None]) -> None:
    """Answers orders, a line of JSON each: a command's process number, or {"wait": number} its exit status."""
    collect_seldom()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            status = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
            print(status if status >= 0 else 128 - status, flush=True)
        elif child := os.fork():
            print(child, flush=True)
        else:
            finish(order["log"], run, order)
