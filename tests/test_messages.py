"""Messages: what they advise."""

import ast
import pathlib
import re

PACKAGE = pathlib.Path(__file__).parent.parent / "omnir1_jax"
DELETING = re.compile(
    r"\b(remove|delete|erase|discard|unlink|wipe|rm)\s+(-|it\b|its\b|them\b|the\b|this\b|that\b|what\b|\{)"
)


def texts(path: pathlib.Path) -> list[str]:
    """Every string of a file but its docstrings, f-strings with their fields as {}."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree)
                  if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            out.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            out.append(node.value)
    return out


def test_no_message_advises_to_delete_files():
    advice = {path.name: [text for text in texts(path) if DELETING.search(text)] for path in PACKAGE.rglob("*.py")}
    assert not {name: found for name, found in advice.items() if found}
