"""The model card of a saved prompt: its README.md."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from softprompt.text.task import SPOKEN
from softprompt.text.template import Slot

if TYPE_CHECKING:
    from softprompt.collection import SavedPrompts
    from softprompt.saved import SavedPrompt

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def card(saved: SavedPrompt, name: str) -> str:
    """Markdown: what the prompt is, how good, how it was trained and how it is used.

    Args:
        name: what the prompt is called; the name of its folder.
    """
    sections = [
        _front_matter(saved),
        f"# {_escaped(name)}",
        _about(saved),
        "## Template\n\nA `{soft:N}` is N learned vectors, a `{name}` a field of the row, `{label}` (or `{mask}`) the "
        "answer.\n\n" + _block(saved.task.template.source),
        _labels(saved),
        _metrics(saved),
        _training(saved),
        _use(saved, name),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def collection_card(saved: SavedPrompts, name: str) -> str:
    """Markdown: what prompts belong together, how good each is, and how they are used.

    Args:
        name: of their folder.
    """
    ensemble = saved.kind == "ensemble"
    about = (
        f"{len(saved.members)} soft prompts of one task for the frozen model {_code(saved.backbone_name)}, made with "
        "softprompt; " + ("asked together, they vote on the label." if _votes(saved) else "each answers by itself.")
        if ensemble
        else f"Soft prompts of {len(saved.members)} tasks for the frozen model {_code(saved.backbone_name)}, made with "
        "softprompt in one training, in which they shared a part. Each is a prompt by itself; another task may begin "
        "from all of them."
    )
    metrics = list(dict.fromkeys(metric for member in saved.members.values() for metric in member.metrics))
    rows = [
        (_cell(member), *(f"{prompt.metrics[m]:.4g}" if m in prompt.metrics else "" for m in metrics))
        for member, prompt in saved.members.items()
    ]
    sections = [
        _front_matter(saved.first),
        f"# {_escaped(name)}",
        about,
        "## Prompts\n\n" + _table(("prompt", *map(_cell, metrics)), rows),
        _metrics(saved),
        _facts(dict(saved.training)),
        _use(saved.first, name if ensemble and _votes(saved) else f"{name}/{next(iter(saved.members))}"),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _votes(saved: SavedPrompts) -> bool:
    return saved.task.classifies or saved.task.kind == "multi-label"


def _front_matter(saved: SavedPrompt) -> str:
    lines = ["library_name: softprompt"]
    hub_id, _, _ = saved.backbone_name.partition("@")
    if _HUB_ID.fullmatch(hub_id):  # anything else is no model that a reader could follow a link to
        lines.append(f"base_model: {json.dumps(hub_id)}")
    lines.append(f"tags: {json.dumps(['soft-prompt', saved.method.NAME])}")
    return "\n".join(["---", *lines, "---"])


def _about(saved: SavedPrompt) -> str:
    slots = sum(isinstance(segment, Slot) for segment in saved.task.template.segments)
    places = "" if slots == 1 else f" in {slots} slots"
    return "\n".join(
        [
            f"A soft prompt for the frozen model {_code(saved.backbone_name)}, made with softprompt.",
            "It works with this model only.",
            "",
            f"- method: {_code(saved.method.NAME)}",
            f"- learned: {saved.values.describe()}{places}",
            f"- size: {saved.nbytes:,} bytes",
            f"- task: {saved.task.kind}, answer in the field {_code(saved.task.target)}"
            + (f", read inside {_code(saved.task.field)}" if saved.task.field else ""),
            *([] if saved.head is None else [f"- head: a linear layer, {list(saved.head.weight.shape)}"]),
            f"- model: fingerprint {_code(saved.backbone_fingerprint)}, trained in {_code(saved.dtype)}",
            f"- tokenizer: fingerprint {_code(saved.tokenizer_fingerprint)}",
        ]
    )


def _labels(saved: SavedPrompt) -> str:
    if not saved.task.labels:
        return ""
    if saved.task.kind not in SPOKEN:
        return "## Labels\n\n" + ", ".join(map(_code, saved.task.labels))
    rows = [(_cell(label), _cell(word)) for label, word in zip(saved.task.labels, saved.task.words, strict=True)]
    return "## Labels\n\n" + _table(("label", "word the model answers with"), rows)


def _metrics(saved: SavedPrompt | SavedPrompts) -> str:
    if not saved.metrics:
        return ""
    return "## Metrics\n\n" + _table(("metric", "value"), [(_cell(k), f"{v:.4g}") for k, v in saved.metrics.items()])


def _training(saved: SavedPrompt) -> str:
    return _facts({f"method.{key}": value for key, value in saved.method.settings().items()} | dict(saved.training))


def _facts(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    rows = [(_cell(key), _cell(_written(value))) for key, value in facts.items()]
    return "## Training\n\n" + _table(("fact", "value"), rows)


def _use(saved: SavedPrompt, name: str) -> str:
    fields = saved.task.template.fields
    row = "{" + ", ".join(f'"{field}": "..."' for field in fields) + "}"
    options = ", max_new_tokens=32" if saved.task.kind == "generation" else ""
    arguments = '--text "..."' if fields == ("text",) else " ".join(f'{field}="..."' for field in fields)
    python = "\n".join(
        [
            "from softprompt import Backbone, Engine",
            "",
            f"engine = Engine(Backbone.load({saved.backbone_name!r}))",
            f"engine.add({name!r}, {name!r})  # its name, its folder",
            f"engine.answer([({name!r}, {row})]{options})",
        ]
    )
    shell = f"softprompt predict {shlex.quote(name)} {arguments}".rstrip()
    return f"## Use\n\n{_block(python, 'python')}\n\n{_block(shell, 'sh')}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _visible(text: str) -> str:
    """One line: what is no printable character is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _code(text: str) -> str:
    """A code span that no character of `text` can end or change."""
    text = _visible(text)
    if not text.strip(" "):
        text = json.dumps(text)  # a span of blanks would not be seen
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _cell(text: str) -> str:
    """A code span in a table, where a bar would end the cell even inside the span."""
    return _code(text).replace("|", "\\|")


def _block(text: str, language: str = "text") -> str:
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _escaped(text: str) -> str:
    """Plain text in a heading."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", _visible(text)).strip() or "prompt"
