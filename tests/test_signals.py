"""Asked to stop: a flag for the loop; asked twice: at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from omnir1_jax.signals import stop_flag

# A loop on the device that would take hours, entered after a line on stdout.
BUSY = """
import jax, jax.numpy as jnp
from omnir1_jax.signals import stop_flag
spin = jax.jit(lambda x: jax.lax.fori_loop(0, 2**31 - 1, lambda i, x: jnp.sin(x), x)).lower(jnp.ones(99)).compile()
with stop_flag() as stop:
    print("ready", flush=True)
    spin(jnp.ones(99)).block_until_ready()
"""


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_a_flag_and_nothing_stays_behind(number):
    handled = signal.signal(number, signal.default_int_handler)  # a suite under nohup ignores SIGHUP
    before = signal.getsignal(number)
    with stop_flag() as stop:
        assert not stop(1)
        os.kill(os.getpid(), number)
        wait_for(lambda: stop(2))
        assert stop(3)
    assert signal.getsignal(number) is before
    with stop_flag() as stop:
        assert not stop(1)
    signal.signal(number, handled)


def test_what_nohup_ignores_is_no_stop():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_flag() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
            assert not stop(1)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_signal_ends_a_computing_process():
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: saves after this step and exits; send it again to exit immediately" in said
