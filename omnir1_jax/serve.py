"""`python -m omnir1_jax.serve --run WORKDIR`: a page that shows a training run while it runs, or afterwards.

Curves, and rollouts to browse and filter by task, step, reward and failure: what was asked and answered, plans, boxes,
masks, reward terms, the completions of a prompt side by side. `report.html` shows the same of some rollouts.
"""

import contextlib
from collections.abc import Mapping

from absl import logging

from omnir1_jax import cli
from omnir1_jax.errors import InputError
from omnir1_jax.inference import serve_guard
from omnir1_jax.reporting import run_server
from omnir1_jax.reporting.run_files import RunFiles

_RUN = cli.flag.string("run", None, "Work directory of a run of python -m omnir1_jax.train.")
_HOST = cli.flag.string("host", "127.0.0.1", "Address of the page; others than this machine only if you say so.")
_PORT = cli.flag.integer("port", 7861, "Of the page; 0 takes a free one.", lower_bound=0, upper_bound=65535)


def main(_: list[str]) -> None:
    cli.need(run=_RUN)
    run = RunFiles(_RUN.value)
    if not run.folder.is_dir():
        raise InputError(f"--run: {run.folder} is missing, or not a folder; name the --workdir of a run")
    run.refresh()
    host = _HOST.value
    if host not in serve_guard.LOOPBACK:
        logging.warning("--host %s: whoever reaches this address can see the run; there is no password", host)
    names = serve_guard.Names(host)

    def refuse(headers: Mapping[str, str]) -> str:
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
        refusal = serve_guard.foreign({"method": "GET", "headers": raw}, names)
        return refusal.text if refusal else ""

    with run_server.opened(run, host, _PORT.value, refuse) as server:
        address, port = f"[{host}]" if ":" in host else host, server.server_address[1]
        print(f"the page is at http://{address}:{port} (Ctrl-C stops it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # of SIGTERM too, see `signals.interruptible`
            server.serve_forever()


if __name__ == "__main__":
    cli.run(main)
