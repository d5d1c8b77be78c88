"""What others wrote is safe to print, on one line."""

import subprocess
import sys

from omnir1_jax.errors import printable


def test_control_characters_are_escaped_and_text_is_not():
    assert printable("Où? 中文\u3000字 é😀") == "Où? 中文\u3000字 é😀"
    hostile = "a\n\r\t\x1b[31m\u202eb\u2028\udcff\x9b\ufeff\0"
    assert printable(hostile) == r"a\n\r\t\x1b[31m\u202eb\u2028\udcff\x9b\ufeff\x00"


def test_an_error_that_names_a_hostile_path_is_one_line():
    code = (
        "import sys; from omnir1_jax import cli; from omnir1_jax.files import json_file; "
        "cli.run(lambda argv: json_file.read(argv[1], '--boxes'))"
    )
    name = b"x\x1b[2J\n\xff\xe2\x80\xae.json"
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1 and rb"--boxes: x\x1b[2J\n\udcff\u202e.json: no such" in done.stderr
