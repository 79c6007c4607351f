from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.errors import TemplateError
from softprompt.text.template import Anchor, Field, Slot, Target, Template

_PIECES = st.one_of(
    st.sampled_from(
        ["{soft}", "{soft:1}", "{soft:20}", "{text}", " {text}", "  {other_1}", "{{", "}}", " ", "\n", ": "]
    ),
    st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1, max_size=5),
)
SOURCES = (
    st.lists(_PIECES, min_size=1, max_size=8).map("".join).filter(lambda s: s.strip(" ")).map(lambda s: s + "{label}")
)


class _Unseen:
    """What a slot adds to the text: nothing."""

    def __format__(self, spec: str) -> str:
        return ""


def written(template: Template, values: dict[str, str]) -> str:
    parts = []
    for segment in template.segments:
        match segment:
            case Anchor(text):
                parts.append(text)
            case Field(name, blank):
                parts.append(blank + values[name])
            case Target(blank):
                parts.append(blank + values["label"])
    return "".join(parts)


def test_every_kind_of_segment_is_read():
    template = Template.parse("{soft:20}Article: {text}\nTopic:{soft} {label}")
    assert template.segments == (
        Slot(20),
        Anchor("Article:"),
        Field("text", " "),
        Anchor("\nTopic:"),
        Slot(),
        Target(" "),
    )
    assert template.slots == (Slot(20), Slot())
    assert template.target == Target(" ")


def test_double_braces_are_literal_ones():
    assert Template.parse('{{"a": {text}}} -> {{}}{label}').segments == (
        Anchor('{"a":'),
        Field("text", " "),
        Anchor("} -> {}"),
        Target(),
    )


@pytest.mark.parametrize(
    ("source", "blanks"),
    [
        ("{text}{label}", ["", ""]),
        ("a {text}\n{label}", [" ", ""]),
        ("a   {text} {label}", ["   ", " "]),
        ("{soft} {text}{soft}  {label}", [" ", "  "]),
        (" {text}\t{label}", [" ", ""]),
    ],
)
def test_blanks_belong_to_the_field_or_target_behind_them(source, blanks):
    assert [s.blank for s in Template.parse(source).segments if isinstance(s, Field | Target)] == blanks


def test_blanks_before_a_slot_stay_where_they_are():
    assert Template.parse("a {soft}b{label}").segments[:2] == (Anchor("a "), Slot())


def test_fields_are_named_once_in_order_of_appearance():
    assert Template.parse("{b} {a} {b} {label}").fields == ("b", "a")


def test_a_field_may_have_any_identifier_for_a_name():
    assert Template.parse("{본문} {naïve_2} {_x} {label}").fields == ("본문", "naïve_2", "_x")


@settings(deadline=None)
@given(SOURCES)
def test_a_template_says_what_str_format_would(source):
    values = {"text": "T", "other_1": "O", "label": "L"}
    assert written(Template.parse(source), values) == source.format(soft=_Unseen(), **values)


@settings(deadline=None)
@given(SOURCES)
def test_what_is_written_is_read_back_as_it_was(source):
    template = Template.parse(source)
    assert template.source == source
    for changed in (template.with_slot_in_front(), template.with_lengths(7)):
        assert Template.parse(changed.source) == changed
    assert [s.tokens for s in template.with_lengths(7).slots] == [s.tokens or 7 for s in template.slots]


@settings(deadline=None)
@given(st.text(alphabet="{}soft:1label \n", max_size=20))
def test_any_text_is_a_template_or_a_template_error(source):
    refused = None
    try:
        template = Template.parse(source)
    except TemplateError as error:
        refused = error
    if refused is None:
        assert template.source == source
        assert template.target is None or template.target in template.segments
    else:
        assert refused.where == f"template {source!r}"
        assert refused.instead


def test_a_slot_is_put_in_front_only_where_there_is_none():
    assert Template.parse("Article: {text}{label}").with_slot_in_front().source == "{soft}Article: {text}{label}"
    behind = Template.parse("{text}{soft:2}{label}")
    assert behind.with_slot_in_front() == behind


def test_a_slot_may_leave_the_beginning_of_text_first():
    for source, front, kept in [
        ("{bos}a{label}", "{soft}{bos}a{label}", "{bos}{soft}a{label}"),
        ("a{bos}b{label}", "{soft}a{bos}b{label}", "{soft}a{bos}b{label}"),
    ]:
        template = Template.parse(source)
        assert template.with_slot_in_front().source == front
        assert template.with_slot_in_front(behind_start=True).source == kept


def test_the_text_alone_has_neither_slot_nor_beginning_of_text():
    for source in ("{soft:3}{bos}a {text}{label}", "{bos}a {text}{label}", "a {text}{soft}{label}"):
        assert Template.parse(source).with_text_alone() == Template.parse("a {text}{label}")


def test_the_text_opens_with_what_is_no_slot():
    for source, opening in [("{soft}Hi {text}{label}", Anchor("Hi")), ("{text}{label}", Field("text"))]:
        assert Template.parse(source).opening == opening
    alone = Template.parse("{soft}{label}")
    assert alone.opening is alone.target


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("{label}{text}{label}", "{label} or {mask} stands in it 2 times"),
        ("{mask}{text}{label}", "{label} or {mask} stands in it 2 times"),
        ("", "there is nothing in it"),
        ("{cls}{sep}", "there is nothing in it"),
        ("{cls}{text}{bos}", "{bos} stands in it more than once"),
        ("{text}{label}.", "something stands behind {label}"),
        ("{label} {text}", "something stands behind {label}"),
        ("{text}{label}{soft}", "something stands behind {label}"),
        ("{label}", "there is nothing before {label}"),
        ("a { {label}", "a brace stands alone at character 3"),
        ("{label} }", "a brace stands alone at character 9"),
        ("{text}{label", "a brace stands alone at character 7"),
        ("{te{soft}xt}{label}", "a brace stands alone at character 1, with {soft} inside it"),
        ('ab {"q": {text}, {label}', "a brace stands alone at character 4, with {text} inside it"),
        ("{soft:0}{label}", "{soft:0} has no length"),
        ("{soft:00}{label}", "{soft:00} has no length"),
        ("{soft:x}{label}", "{soft:x} has no length"),
        ("{soft:}{label}", "{soft:} has no length"),
        ("{soft:-1}{label}", "{soft:-1} has no length"),
        ("{soft:1_0}{label}", "{soft:1_0} has no length"),
        ("{soft:٣}{label}", "{soft:٣} has no length"),
        ("{soft:" + "9" * 5000 + "}{label}", "9} has no length"),
        ("{}{label}", "{} is neither a slot nor a field"),
        ("{ text }{label}", "{ text } is neither a slot nor a field"),
        ("{my-field}{label}", "{my-field} is neither a slot nor a field"),
        ("{text:3}{label}", "{text:3} is neither a slot nor a field"),
        ("{text}{label:x}", "{label:x} is neither a slot nor a field"),
        ("{0}{label}", "{0} is neither a slot nor a field"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_place(source, what):
    with pytest.raises(TemplateError) as refused:
        Template.parse(source)
    assert what in refused.value.what
    assert refused.value.where == f"template {source!r}"
    assert refused.value.instead


def test_a_slot_inside_a_field_is_told_where_to_go():
    with pytest.raises(TemplateError, match=r"put {soft} before or behind another hole, not into it"):
        Template.parse("{te{soft}xt}{label}")
