"""Tasks: what a completion means, whether System 2 looks, and what the answer earns.

Each module has one object that says it all; `data.<name>.family` names it, or one of the user's own.
"""

from omnir1_jax.config import lookup
from omnir1_jax.errors import InputError
from omnir1_jax.tasks import qa, refavs, refcocog, vos
from omnir1_jax.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (vos.TASK, refavs.TASK, refcocog.TASK, qa.TASK)}


def get(name: str, setting: str = "data.*.family") -> Task:
    """The task of this name, or the user's own as module:object or file.py:object.

    Raises:
      InputError: there is none; names the setting.
    """
    task = lookup.registered(name, TASKS, setting)
    if not isinstance(task, Task):
        raise InputError(f"{setting}: {name} is not a task, an omnir1_jax.tasks.Task")
    return task
