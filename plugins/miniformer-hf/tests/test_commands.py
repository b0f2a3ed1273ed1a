"""The commands, with tokenizers: text in, the same ids on both sides, and text out."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
import transformers
from checkpoints import MAKERS, bpe, llama_bpe, ours, outputs, saved, unigram, word_piece
from hypothesis import given, settings
from hypothesis import strategies as st
from miniformer_hf import export_folder, import_folder
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from miniformer.cli import main
from miniformer.inference.engine import Engine
from miniformer.inference.load import Trained, load
from miniformer.kernel import UserError
from miniformer.model.transformer import Transformer

CASES: dict[str, tuple[str, Callable[[], Backend], dict[str, str]]] = {
    "gpt2": ("gpt2", bpe, {"eos_token": "<|endoftext|>"}),
    "llama": ("llama", llama_bpe, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}),
    "masked": ("masked", word_piece, {f"{mark}_token": f"[{mark.upper()}]" for mark in ("pad", "unk", "cls", "sep", "mask")}),
    "sequence": ("sequence", word_piece, {"pad_token": "[PAD]", "unk_token": "[UNK]"}),
    "t5": ("t5", unigram, {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}),
}


def run_process(*args: str, cwd: Path) -> str:
    """Run a command as its user does; returns what it prints."""
    process = subprocess.run([sys.executable, "-m", "miniformer", *args], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0 and process.stderr == "", f"{process.stdout}\n{process.stderr}"
    return process.stdout


def run(*args: str, code: int = 0, cwd: Path) -> str:
    """Run a command in this process, which has imported transformers already; returns what it prints."""
    with (redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, chdir(cwd),
          pytest.raises(SystemExit) as ended):
        main(args)
    assert ended.value.code == code, f"exit {ended.value.code}\n{out.getvalue()}\n{err.getvalue()}"
    return out.getvalue() if code == 0 else err.getvalue()


def there(folder: Path, case: str) -> tuple[Any, Any]:
    """A checkpoint with its tokenizer in `folder`."""
    maker, backend, marks = CASES[case]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend(), **marks)
    model = MAKERS[maker](vocab_size=len(tokenizer) + 3)
    saved(model, folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Trained, Path]]:
    """Each case: their tokenizer, what miniformer loads, and the folder of both."""
    by_case = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp(case)
        _, tokenizer = there(folder / "there", case)
        import_folder(folder / "there", folder / "here")
        by_case[case] = tokenizer, load(folder / "here"), folder
    return by_case


@settings(max_examples=2 * settings.default.max_examples)
@given(case=st.sampled_from(list(CASES)), text=st.text(max_size=20) | st.sampled_from(checkpoints.CORPUS))
def test_a_text_has_the_same_ids_on_both_sides(imported: dict[str, Any], case: str, text: str) -> None:
    tokenizer, trained, _ = imported[case]
    assert trained.tokenizer.encode_whole(text) == tokenizer(text)["input_ids"]
    assert trained.tokenizer.decode(tokenizer(text)["input_ids"]) == tokenizer.decode(
        tokenizer(text)["input_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("case", CASES)
def test_the_tokenizer_comes_back_with_its_marks(imported: dict[str, Any], case: str) -> None:
    tokenizer, trained, folder = imported[case]
    export_folder(folder / "here", folder / "back")
    assert (folder / "back" / "tokenizer.json").read_bytes() == (folder / "there" / "tokenizer.json").read_bytes()
    back = AutoTokenizer.from_pretrained(folder / "back")
    for text in checkpoints.CORPUS[:3]:
        assert back(text)["input_ids"] == tokenizer(text)["input_ids"]
    for mark, token in CASES[case][2].items():
        if mark != "unk_token":
            assert getattr(back, mark) == token
    assert trained.tokenizer.pad_id == (back.pad_token_id or 0)


@pytest.mark.parametrize(("case", "task"), [("gpt2", "LanguageModeling"), ("llama", "LanguageModeling"),
                                            ("masked", "MaskedLanguageModeling"), ("sequence", "Classification"),
                                            ("t5", "Seq2Seq")])
def test_the_task_is_that_of_the_head(imported: dict[str, Any], case: str, task: str) -> None:
    trained = imported[case][1]
    assert type(trained.task).__name__ == task and trained.notes == ()
    if case == "masked":
        assert trained.task.mask_id == imported[case][0].mask_token_id
    if case == "sequence":
        assert trained.task.labels == ("no", "yes", "maybe")


@pytest.mark.slow
def test_commands_import_generate_inspect_and_export(tmp_path: Path) -> None:
    model, tokenizer = there(tmp_path / "there", "gpt2")
    printed = run_process("import-hf", "there", "here", cwd=tmp_path)
    assert printed == f"here: transformer of {model.num_parameters():,} parameters\n"
    prompt = "the quick"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    expected = model.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=tokenizer.eos_token_id)[0, ids.shape[1]:]
    text = run("generate", "here", "--prompt", prompt, "--greedy", "--max-new-tokens", "8", cwd=tmp_path)
    assert text == prompt + tokenizer.decode(expected, skip_special_tokens=True) + "\n"
    assert json.loads(run("inspect", "here", "--json", cwd=tmp_path))["parameters"] == model.num_parameters()
    assert run("export-hf", "here", "back", cwd=tmp_path) == "back: GPT2LMHeadModel\n"
    original, exported = (load_file(tmp_path / name / "model.safetensors") for name in ("there", "back"))
    assert all(torch.equal(tensor, exported[name]) for name, tensor in original.items())
    assert "back: exists already" in run("export-hf", "here", "back", code=2, cwd=tmp_path)


@pytest.mark.slow
def test_of_t5_the_source_is_a_whole_text(tmp_path: Path) -> None:
    model, tokenizer = there(tmp_path / "there", "t5")
    import_folder(tmp_path / "there", tmp_path / "here")
    ids = tokenizer("a cat", return_tensors="pt").input_ids
    assert ids[0, -1] == tokenizer.eos_token_id
    expected = tokenizer.decode(model.generate(ids, do_sample=False, max_new_tokens=8)[0], skip_special_tokens=True)
    text = run("generate", "here", "--prompt", "a cat", "--greedy", "--max-new-tokens", "8", cwd=tmp_path)
    assert text.split() == expected.split() != []


def test_an_end_token_of_any_name_is_the_model_s(tmp_path: Path) -> None:
    """There and back: config.json says which token it is, whatever the tokenizer calls it."""
    backend = bpe()
    backend.add_special_tokens(["<|im_end|>"])
    end = backend.token_to_id("<|im_end|>")
    saved(MAKERS["llama"](vocab_size=310, eos_token_id=end, tie_word_embeddings=False), tmp_path / "there")
    backend.save(str(tmp_path / "there" / "tokenizer.json"))
    import_folder(tmp_path / "there", tmp_path / "here")
    trained = load(tmp_path / "here")
    assert trained.eos_id == Engine(trained.model, trained.tokenizer).eos_id == end
    export_folder(tmp_path / "here", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


def test_a_checkpoint_without_a_tokenizer_is_told_and_still_a_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import_folder(saved(MAKERS["llama"](), tmp_path / "there"), tmp_path / "here")
    assert "no tokenizer.json" in caplog.text
    assert Transformer.from_pretrained(tmp_path / "here").config.ffn.name == "swiglu"


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    saved(MAKERS["gpt2"](), tmp_path / "there")
    PreTrainedTokenizerFast(tokenizer_object=bpe()).save_pretrained(tmp_path / "there")
    with pytest.raises(UserError, match=r"\d+ tokens, and the model has 41"):
        import_folder(tmp_path / "there", tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flags"), [
    ("LlamaForCausalLM", ["--attention", "rope-mha", "--ffn", "swiglu", "--norm", "rmsnorm"]),
    ("BertForSequenceClassification", ["--task", "classification", "--position", "bert-embeddings", "--head", "bert-pooled",
                                       "--norm", "layernorm", "--set", "norm.eps=1e-12", "--norm-placement", "post",
                                       "--ffn", "gelu", "--set", "ffn.bias=true", "--set", "attention.bias=true"]),
])
def test_what_miniformer_trained_transformers_runs(tmp_path: Path, name: str, flags: list[str]) -> None:
    llama = name.startswith("Llama")
    records = [{"text": text} if llama else {"input": text, "label": text[:1]} for text in checkpoints.CORPUS]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records * 4))
    run("train", "--train-path", "data.jsonl", "--max-steps", "3", "--d-model", "16", "--n-heads", "2", "--n-layers", "2",
        "--max-seq-len", "32", "--batch-size", "4", "--tokenizer-vocab-size", "300", "--experiment-name", "mine", *flags,
        cwd=tmp_path)
    assert run("export-hf", "runs/mine", "there", cwd=tmp_path) == f"there: {name}\n"
    theirs, trained = getattr(transformers, name).from_pretrained(tmp_path / "there"), load(tmp_path / "runs" / "mine")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "there")
    ids = tokenizer("the quick fox", return_tensors="pt").input_ids
    assert ids[0].tolist() == trained.tokenizer.encode("the quick fox")
    torch.testing.assert_close(ours(trained.model, ids, summary=not llama), outputs(theirs, ids)[0], rtol=0, atol=1e-4)
    if not llama:
        assert list(theirs.config.id2label.values()) == list(trained.task.labels)
    else:
        actual, expected = (model.generate(ids, max_new_tokens=5, do_sample=False) for model in (trained.model, theirs))
        assert actual[0, :expected.shape[1]].tolist() == expected[0].tolist()
