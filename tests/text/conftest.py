"""Tokenizers of the kinds that pieces of a template have to get along with."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from softprompt.backbone import sources


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerBase:
    """The real SmolLM2 tokenizer: byte-level, no beginning-of-text token."""
    return AutoTokenizer.from_pretrained(sources.resolve("smollm2").folder)


@pytest.fixture(scope="session", params=["first", "legacy"])
def metaspace(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """As SentencePiece does it: a blank is put before every text, and `<s>` before that.

    "first" is how newer tokenizer files say it (a pre-tokenizer), "legacy" how Llama 2's does (a normalizer).
    """
    taught = Tokenizer(models.BPE())
    taught.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    specials, bytes_ = ["<unk>", "<s>", "</s>"], [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*specials, *bytes_], show_progress=False)
    sentences = ["Article: the team won the match", "Topic: sports", "Topic: business", "Title: the market fell, twice"]
    taught.train_from_iterator(sentences * 4, trainer)
    # Once more from what was learned, for the bytes to be no special tokens.
    learned = json.loads(taught.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    made = Tokenizer(models.BPE(learned["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.add_special_tokens(specials)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if request.param == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
