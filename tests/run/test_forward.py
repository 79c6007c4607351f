from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import reference
import tiny
from reference import ROWS, TEMPLATES, assert_close, case
from softprompt.backbone.backbone import Backbone
from softprompt.errors import TemplateError
from softprompt.prompts.prompt import VirtualTokens
from softprompt.run.forward import Filling, Forward
from softprompt.run.loss import answer_loss

# Short rows: what is counted is counted without padding.
SHORT = ({"text": "won", "label": "x"}, {"text": "fell", "label": "y"}, {"text": "won", "label": "x"})


def gradients(forward, given) -> list[torch.Tensor]:
    given = given.leaves()
    answer_loss(*forward(given.examples, given.fillings, given.which)).backward()
    return [p.grad for p in given.prompts if p.numel()]


def assert_equals_sequence(model, forward, given, tolerance=1e-5) -> None:
    """Logits of every row, the loss and the gradient of every prompt are those of the plain model."""
    ours, theirs = given.leaves(), given.leaves()
    logits, targets = forward(ours.examples, ours.fillings, ours.which)
    for row, target, (example, prompt) in zip(logits, targets, theirs.alone(), strict=True):
        length = len(example.target)
        assert target[-length:].tolist() == list(example.target)
        assert_close(row[-length:], reference.logits(model, example, prompt), tolerance)
    got, wanted = answer_loss(logits, targets), reference.loss(model, theirs)
    assert_close(got, wanted, tolerance)
    if not got.requires_grad:
        assert not wanted.requires_grad
        return
    got.backward()
    wanted.backward()
    for mine, other in zip(ours.prompts, theirs.prompts, strict=True):
        if mine.numel():
            assert float(other.grad.abs().max()) > 0
            assert_close(mine.grad, other.grad, tolerance)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_equals_the_prompt_in_sequence(family, template, share):
    backbone = reference.backbone(family)
    forward = Forward(backbone, share=share)
    # A backbone that fails its own check would keep everything in sequence, and be right without sharing.
    assert forward.share == share
    assert_equals_sequence(reference.plain(family), forward, case([template], backbone))


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "deepseek_v3"])
def test_templates_and_prompts_mix_in_one_batch(family):
    backbone = reference.backbone(family)
    assert_equals_sequence(reference.plain(family), Forward(backbone), case(list(TEMPLATES), backbone))


@pytest.mark.parametrize("family", tiny.UNROUTED)
def test_backbones_that_read_no_context_keep_the_prompt_in_sequence(family):
    backbone = reference.backbone(family)
    forward = Forward(backbone)
    assert not backbone.lowers
    assert not forward.share
    assert_equals_sequence(reference.plain(family), forward, case(list(TEMPLATES), backbone))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_eager_attention_equals_the_prompt_in_sequence(family):
    backbone = tiny.backbone(family, attention="eager")
    assert_equals_sequence(reference.plain(family), Forward(backbone), case(list(TEMPLATES), backbone))


def test_real_model_equals_the_prompt_in_sequence(smollm2):
    given = case(["front", "behind", "two"], smollm2, rows=ROWS[:2])
    # Without a context before it, a routed model is the plain one.
    assert_equals_sequence(smollm2.model, Forward(smollm2), given, tolerance=3e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_two_prompts_of_one_template_do_not_mix(family):
    backbone = reference.backbone(family)
    one, other = case(["front"], backbone, seed=1), case(["front"], backbone, seed=2)
    both = reference.Case(
        one.examples + other.examples, one.prompts + other.prompts, (0,) * len(ROWS) + (1,) * len(ROWS)
    )
    assert_equals_sequence(reference.plain(family), Forward(backbone), both)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_row_is_the_same_alone_and_in_a_mixed_batch(family):
    backbone = reference.backbone(family)
    given = case(list(TEMPLATES), backbone)
    forward = Forward(backbone)
    together, _ = forward(given.examples, given.fillings, given.which)
    for row, example, k in zip(together, given.examples, given.which, strict=True):
        (alone,), _ = forward([example], given.fillings, [k])
        assert_close(row[-len(alone) :], alone)


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_a_prompt_is_forgotten_past_the_window(family):
    backbone = reference.backbone(family)
    given = case(["front"], backbone, rows=[{"text": "the team won the match, the market fell", "label": "no"}])
    other = replace(given, prompts=(-given.prompts[0],))
    windows = [site.window for site in backbone.sites]
    reach = None if None in windows else sum(w - 1 for w in windows)
    logits, changed = (Forward(backbone)(c.examples, c.fillings)[0] for c in (given, other))
    assert reach is None or len(given.examples[0].tokens) - 3 > reach
    assert torch.equal(logits, changed) == (reach is not None)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(family):
    given = case(list(TEMPLATES), reference.backbone(family))
    checkpointed = tiny.backbone(family, gradient_checkpointing=True)
    with reference.inputs_of(reference.first_site(checkpointed)) as seen:
        answer_loss(*Forward(checkpointed)(given.leaves().examples, given.leaves().fillings, given.which))
        without = len(seen)
        seen.clear()
        found = gradients(Forward(checkpointed), given)
        assert len(seen) > without, "nothing was recomputed"
    for got, wanted in zip(found, gradients(Forward(reference.backbone(family)), given), strict=True):
        assert_close(got, wanted, 1e-6)


def test_a_prompt_in_float32_trains_before_a_backbone_in_bfloat16():
    model = tiny.model("llama").to(torch.bfloat16)
    backbone = Backbone(model, tiny.tokenizer())
    assert backbone.lowers
    given = case(list(TEMPLATES), backbone)
    # bfloat16 has 8 bits: two ways to compute the same differ by several of the last.
    plain = tiny.model("llama").to(torch.bfloat16).requires_grad_(False)
    assert_equals_sequence(plain, Forward(backbone), given, tolerance=0.05)
    assert {g.dtype for g in gradients(Forward(backbone), given)} == {torch.float32}


def test_only_the_answers_go_through_the_head():
    backbone = reference.backbone("llama")
    given = case(["front", "behind"], backbone)
    longest = max(len(e.target) for e in given.examples)
    with reference.inputs_of(backbone.model.get_output_embeddings()) as seen:
        logits, targets = Forward(backbone)(given.examples, given.fillings, given.which)
    assert [s.shape[:2] for s in seen] == [(len(given.examples), longest)]
    assert logits.shape[:2] == targets.shape == (len(given.examples), longest)


def computed(forward, given) -> int:
    """How many positions one call computes."""
    with reference.inputs_of(reference.first_site(forward.backbone)) as seen, torch.no_grad():
        forward(given.examples, given.fillings, given.which)
    return sum(s.shape[0] * s.shape[1] for s in seen)


def test_a_prompt_in_front_is_computed_once_per_step():
    given = case(["front"], reference.backbone("llama"), rows=SHORT)
    lengths = [len(e.tokens) + len(e.target) - 1 for e in given.examples]
    forward = Forward(reference.backbone("llama"))
    rows = sum(lengths) - 3 * len(SHORT)
    assert len(set(lengths)) == 1
    anchor = given.examples[0].field_at - 3
    # The slot and the hard text behind it are shared, and again computed in the next step.
    assert [computed(forward, given) for _ in range(2)] == [3 + anchor + rows - anchor * len(SHORT)] * 2
    assert computed(Forward(reference.backbone("llama"), share=False), given) == sum(lengths)


def test_a_text_before_the_prompt_is_computed_once_per_run():
    given = case(["behind"], reference.backbone("llama"), rows=SHORT)
    forward = Forward(reference.backbone("llama"))
    head = given.examples[0].field_at
    rows = sum(3 + len(e.target) - 1 for e in given.examples)
    texts = sum(len(text) for text in {forward.plan(e).text for e in given.examples})
    # A text that stands in the batch twice is read once.
    assert [computed(forward, given) for _ in range(2)] == [head + texts + rows, texts + rows]
    forward.reader.read_ahead([forward.plan(e) for e in given.examples])
    assert [computed(forward, given) for _ in range(2)] == [rows, rows]


def test_rows_of_two_prompts_about_one_text_read_it_once():
    given = case(["behind"], reference.backbone("llama"), rows=SHORT[:1])
    forward = Forward(reference.backbone("llama"))
    both = reference.Case(given.examples * 2, (given.prompts[0], -given.prompts[0]), (0, 1))
    with torch.no_grad():
        ready = forward.prepare(both.examples, both.fillings, both.which)
    assert ready.context.size == 1
    assert ready.rows is None
    assert not torch.equal(*forward(both.examples, both.fillings, both.which)[0])


def test_what_stands_before_all_rows_is_one_entry():
    given = case(["front"], reference.backbone("llama"), rows=ROWS)
    ready = Forward(reference.backbone("llama")).prepare(given.examples, given.fillings)
    assert ready.context.size == 1
    assert ready.rows is None


def test_a_compiled_prompt_is_computed_once():
    backbone = reference.backbone("llama")
    given = case(["front"], backbone, rows=SHORT)
    forward = Forward(backbone)
    compiled = Filling(VirtualTokens(given.prompts[0]), {})
    first, _ = forward(given.examples, [compiled])
    with reference.inputs_of(reference.first_site(backbone)) as seen:
        second, _ = forward(given.examples, [compiled])
    assert len(seen) == 1
    assert torch.equal(first, second)
    ((kept,),) = compiled.compiled.values()
    assert kept.nbytes == sum(t.untyped_storage().nbytes() for t in (*kept.keys, *kept.values))


def test_a_compiled_prompt_holds_no_graph():
    backbone = reference.backbone("llama")
    given = case(["front"], backbone, rows=SHORT).leaves()
    compiled = Filling(VirtualTokens(given.prompts[0]), {})
    Forward(backbone)(given.examples, [compiled])
    ((kept,),) = compiled.compiled.values()
    assert not any(t.requires_grad for t in (*kept.keys, *kept.values))


def test_compiling_many_prompts_at_once_equals_each_alone():
    backbone = reference.backbone("gpt2")
    given = case(list(TEMPLATES), backbone)
    fillings = [replace(f, compiled={}) for f in given.fillings]
    forward = Forward(backbone)
    for _ in range(2):
        logits, targets = forward(given.examples, fillings, given.which)
        assert_close(answer_loss(logits, targets), reference.loss(reference.plain("gpt2"), given))


def test_what_is_kept_under_inference_mode_serves_training():
    backbone = reference.backbone("llama")
    given = case(list(TEMPLATES), backbone)
    forward = Forward(backbone)
    compiled = Filling(VirtualTokens(given.prompts[0]), {})
    with torch.inference_mode():
        forward.reader.read_ahead([forward.plan(e) for e in given.examples])
        forward(given.examples, [compiled, *given.fillings[1:]], given.which)
    assert_equals_sequence(reference.plain("llama"), forward, given)
    trained = given.leaves()
    fillings = [compiled, *trained.fillings[1:]]
    answer_loss(*forward(given.examples, fillings, given.which)).backward()
    learned = [p.grad for p in trained.prompts[1:] if p.numel()]
    for got, wanted in zip(learned, gradients(Forward(backbone), given)[1:], strict=True):
        assert_close(got, wanted)


def test_an_example_with_more_virtual_tokens_than_its_prompt_is_refused():
    backbone = reference.backbone("llama")
    given = case(["front", "middle"], backbone, rows=SHORT[:1])
    for share in (True, False):
        with pytest.raises(TemplateError, match="4 virtual tokens, but the prompt 3"):
            Forward(backbone, share=share)([given.examples[1]], given.fillings, [0])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_call_changes_neither_backbone_nor_prompt_nor_batch(family):
    backbone = tiny.backbone(family)
    given = case(list(TEMPLATES), backbone).leaves()
    copies, before = [p.detach().clone() for p in given.prompts], reference.state(backbone.model)
    answer_loss(*Forward(backbone)(given.examples, given.fillings, given.which)).backward()
    with reference.failing(reference.last_site(backbone)):
        Forward(backbone)(given.examples, given.fillings, given.which)
    assert reference.state(backbone.model) == before
    ids = torch.arange(3, 15)[None]
    assert torch.equal(backbone.model(ids).logits, reference.plain(family)(ids).logits)
    for prompt, copy in zip(given.prompts, copies, strict=True):
        assert torch.equal(prompt, copy)
        assert prompt._version == 0


def test_a_prepared_batch_is_not_changed_by_running_it():
    backbone = reference.backbone("gemma3")
    given = case(list(TEMPLATES), backbone)
    ready = Forward(backbone).prepare(given.examples, given.fillings, given.which)
    tensors = [ready.inputs_embeds, ready.mask, ready.targets, *ready.context.keys, *ready.context.values, ready.rows]
    versions = [t._version for t in tensors]
    for _ in range(2):
        backbone.logits(ready.inputs_embeds, ready.mask, ready.context, ready.rows, keep=1)
    assert [t._version for t in tensors] == versions


def test_a_failed_call_leaves_nothing_behind():
    backbone = tiny.backbone("llama")
    given = case(["front", "headed"], backbone)
    forward = Forward(backbone)
    compiled = [replace(f, compiled={}) for f in given.fillings]
    with reference.failing(reference.last_site(backbone)):
        forward(given.examples, compiled, given.which)
    assert compiled[0].compiled == {}
    assert forward.reader.kept == 0
    logits, targets = forward(given.examples, compiled, given.which)
    assert_close(answer_loss(logits, targets), reference.loss(reference.plain("llama"), given))


def test_two_carriers_of_one_backbone_do_not_touch_each_other():
    backbone = reference.backbone("llama")
    given, other = (case(["headed", "front"], backbone, seed=s) for s in (1, 2))
    alone = Forward(backbone)(given.examples, given.fillings, given.which)[0]
    one, two = Forward(backbone), Forward(backbone)
    two(other.examples, other.fillings, other.which)
    assert one.reader.kept == 0
    assert torch.equal(one(given.examples, given.fillings, given.which)[0], alone)
    assert torch.equal(two(given.examples, given.fillings, given.which)[0], alone)
