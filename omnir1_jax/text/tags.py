"""The text between tags of a model's or a dataset's text, in time linear in the text.

Regular expressions such as `<answer>\\s*(.*?)\\s*</answer>` read the same, but take time cubic in a text that opens
many tags, or runs of white space, and closes none.
"""


def between(text: str, tag: str) -> str | None:
    """The text from the first `<tag>` to the next `</tag>`; None without such a pair."""
    _, opened, rest = text.partition(f"<{tag}>")
    content, closed, _ = rest.partition(f"</{tag}>")
    return content if opened and closed else None


def all_between(text: str, tag: str) -> list[str]:
    """`between` for every pair; a pair begins after the previous one has ended."""
    return spans(text, f"<{tag}>", f"</{tag}>")


def spans(text: str, first: str, last: str) -> list[str]:
    """The texts between each `first` and the next `last`, without these."""
    out, position = [], 0
    while (start := text.find(first, position)) >= 0 and (end := text.find(last, start + len(first))) >= 0:
        out.append(text[start + len(first) : end])
        position = end + len(last)
    return out
