"""System 2's prompts in the graph: a template's tokens around a description encoded on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from omnir1_jax.errors import InputError
from omnir1_jax.text.bpe import Bpe, Tokens, encode
from omnir1_jax.text.family import take_apart
from omnir1_jax.text.strings import Buffer, join, lower_strip

SLOT = "{description}"


class Template(NamedTuple):
    """A prompt with one slot. The text between the slot and the nearest added tokens is encoded with it.

    Pieces of the pre-tokeniser and merges may cross the slot's edges, but never an added token.
    """

    prefix: Int[Array, "p"]  # tokens up to the last added token before the slot, inclusive
    before: UInt8[Array, "b"]
    after: UInt8[Array, "a"]
    suffix: Int[Array, "s"]  # tokens from the next added token on


def template(tokenizer: Any, text: str) -> Template:
    """Tokenise the fixed parts of `text`, which has "{description}" once. Placeholders of images are not expanded."""
    if text.count(SLOT) != 1:
        raise InputError(f"prompt template: {SLOT} must occur once, not {text.count(SLOT)} times")
    before, after = text.split(SLOT)
    added = [t.content for t in take_apart(tokenizer).added]
    ends = [before.rfind(t) + len(t) for t in added if t in before]
    starts = [after.find(t) for t in added if t in after]
    head, tail = max(ends, default=0), min(starts, default=len(after))
    ids = lambda part: jax.device_put(np.asarray(tokenizer(part, add_special_tokens=False)["input_ids"], np.int32))
    flat = lambda part: jax.device_put(np.frombuffer(part.encode(), np.uint8))
    return Template(ids(before[:head]), flat(before[head:]), flat(after[:tail]), ids(after[tail:]))


def fill(tables: Bpe, form: Template, description: Buffer, max_tokens: int) -> Tokens:
    """The tokens of the template with each description, lower-cased and stripped, in its slot: equal to those of

            tokenizer(text.replace("{description}", lower_strip(description)), add_special_tokens=False)

    `max_tokens` bounds the tokens between prefix and suffix. Leading axes of the descriptions are flattened.
    """
    flat = Buffer(
        description.bytes.reshape(-1, description.bytes.shape[-1]),
        description.length.reshape(-1),
        description.truncated.reshape(-1),
    )
    text = join(form.before, lower_strip(flat), form.after)
    # NFC may lengthen a text; 1.5 times is more than living scripts need.
    spare = text.bytes.shape[1] // 2
    middle = encode(tables, jnp.pad(text.bytes, ((0, 0), (0, spare))), text.length, max_tokens)
    p, s = form.prefix.shape[0], form.suffix.shape[0]
    position = jnp.arange(p + max_tokens + s, dtype=jnp.int32)
    out = jnp.pad(middle.ids, ((0, 0), (p, s)))
    out = jnp.where(position < p, jnp.pad(form.prefix, (0, max_tokens + s)), out)
    offset = position - p - middle.length[:, None]
    if s:
        out = jnp.where((offset >= 0) & (offset < s), form.suffix[jnp.clip(offset, 0, s - 1)], out)
    length = jnp.where(middle.too_long, 0, middle.length + p + s)
    return Tokens(jnp.where(position < length[:, None], out, 0), length, middle.too_long)
