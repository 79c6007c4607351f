"""Examples of a task for a backbone."""

from __future__ import annotations

from softprompt.backbone.backbone import Backbone
from softprompt.errors import SourceError
from softprompt.text.examples import ExampleMaker
from softprompt.text.task import SPOKEN, Task


def example_maker(backbone: Backbone, task: Task, *, inside: bool = False) -> ExampleMaker:
    """What makes examples of a task for a backbone.

    Args:
        inside: whether the prompt stands inside the attention.

    Raises:
        TemplateError: a model of this kind does not answer where the template says.
        SourceError: the task is answered in words, and the model has no language modelling head.
        LabelError, LengthError: as `ExampleMaker`.
    """
    # First of all: what else there is to say of the template would not make the model answer.
    if task.kind in SPOKEN and not backbone.speaks:
        raise SourceError(
            f"it has no language modelling head, so it cannot answer a {task.kind} in words",
            where=backbone.name,
            instead="Use a task with a trained head, or vectors, and a template without {label} and {mask}: "
            "kind='sequence-classification' (--kind sequence-classification), token-classification, "
            "question-answering or feature-extraction.",
        )
    return ExampleMaker(
        task, backbone.tokenizer, backbone.positions, backbone.kind, len(backbone.decoder_start), inside=inside
    )
