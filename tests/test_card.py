from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest

import reference
from softprompt import artifact
from softprompt.card import card
from softprompt.prompts import PromptTuning
from softprompt.text.task import Task
from toys import FRONT, TOPICS, WRITING, prompt


def written(task=TOPICS, name="topic", **changes) -> str:
    return card(replace(prompt(reference.backbone("llama"), task), **changes), name)


def test_a_saved_prompt_has_a_card_that_says_what_it_is(tmp_path):
    backbone = reference.backbone("llama")
    saved = prompt(backbone)
    text = (artifact.save(saved, tmp_path / "topic") / artifact.CARD).read_text()
    for fact in (
        "# topic",
        "tiny-llama",
        "prompt-tuning",
        FRONT,
        "4 virtual tokens, each a vector of 32 numbers",
        "512 bytes",
        "| `accuracy` | 0.5 |",
        "| `steps` | `3` |",
        "| `sports` | `sports` |",
        backbone.fingerprint,
        backbone.tokenizer_fingerprint,
        'softprompt predict topic --text "..."',
    ):
        assert fact in text


@pytest.mark.parametrize(("name", "linked"), [("org/model", True), ("org/model@main", True), ("smollm2", False)])
def test_only_a_model_of_the_hub_is_linked(name, linked):
    front_matter = written(backbone_name=name).split("---")[1]
    assert ('base_model: "org/model"' in front_matter) == linked


@pytest.mark.parametrize(("task", "option"), [(TOPICS, ""), (WRITING, ", max_new_tokens=32")])
def test_the_code_shown_is_code(task, option):
    block = re.search(r"```python\n(.*?)```", written(task), re.DOTALL)[1]
    assert f'engine.answer([("topic", {{"text": "..."}})]{option})' in block.replace("'", '"')
    compile(block, "card", "exec")


def test_the_command_shown_is_one_command_whatever_the_name():
    text = written(Task("{soft:4}{a} {b} {label}"), name="my $(touch x); prompt")
    command = re.search(r"```sh\nsoftprompt predict (.*?)\n```", text, re.DOTALL)[1]
    shown = [sys.executable, "-c", "import sys; print(sys.argv[1:])"]
    split = subprocess.run(["sh", "-c", f'"$@" {command}', "sh", *shown], capture_output=True, text=True, check=True)
    assert split.stdout.strip() == str(["my $(touch x); prompt", "a=...", "b=..."])


def test_no_text_of_a_prompt_breaks_out_of_its_place():
    nasty = "`|```\n# Owned\n<script>"
    text = written(
        Task("```\n# Owned\n{soft:4}{text}{label}", {nasty: "won", "b": "fell"}),
        name=nasty,
        metrics={nasty: 1.0},
        training={nasty: nasty},
        method=PromptTuning(init="text", text=nasty),
    )
    outside = re.sub(r"(`{3,})(?:text|python|sh)\n.*?\n\1(?=\n)", "", text, flags=re.DOTALL)
    assert len(re.findall(r"^# ", outside, re.MULTILINE)) == 1
    assert "\n<script>" not in outside
    for line in outside.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3


def test_what_is_not_known_has_no_section():
    text = written(WRITING, metrics={})
    assert "## Metrics" not in text
    assert "## Labels" not in text
