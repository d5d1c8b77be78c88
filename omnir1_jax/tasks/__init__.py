"""Tasks: what a completion means, whether System 2 is used, and its reward.

Each module defines one `Task` object; `data.<name>.family` names it, or a user-defined one.
"""

from omnir1_jax.config import lookup
from omnir1_jax.errors import InputError
from omnir1_jax.tasks import qa, refavs, refcocog, vos
from omnir1_jax.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (vos.TASK, refavs.TASK, refcocog.TASK, qa.TASK)}


def get(name: str, setting: str = "data.*.family") -> Task:
    """The task of this name, or a user-defined one as module:object or file.py:object.

    Raises:
      InputError: there is none; names the setting.
    """
    task = lookup.registered(name, TASKS, setting)
    if not isinstance(task, Task):
        raise InputError(f"{setting}: {name} is not a task, an omnir1_jax.tasks.Task")
    return task
