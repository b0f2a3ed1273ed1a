"""A trained model is loaded whole: weights, tokenizer, task; or what is missing is told."""

import json

import pytest
import torch
from token_streams import generate

from miniformer.checkpoint.store import BEST, CONFIG, MANIFEST, digest, write_model
from miniformer.config.model_config import TransformerConfig
from miniformer.data.tokenizer import Tokenizer
from miniformer.inference.load import load
from miniformer.inference.predict import predict
from miniformer.kernel import UnknownComponent, UserError, resolve
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.tasks.seq2seq import SourceInput

TOKENIZER = Tokenizer.train(["some text to learn from"] * 5, 265)


def save(folder, task="language-modeling", tokenizer=TOKENIZER, **more):
    """A model of that task, written as a run writes it."""
    config = TransformerConfig(vocab_size=TOKENIZER.vocab_size, d_model=8, n_heads=2, n_layers=1, causal=True)
    model = Transformer(config)
    write_model(folder, model.state_dict(), {"assembly": "transformer", "model": config.model_dump(mode="json"),
                                             "task": resolve("task", task).model_dump(mode="json"), **more},
                None if tokenizer is None else tokenizer.to_json())
    return model.eval()


def edit(folder, change):
    """The same model, as another installation might have written it."""
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, CONFIG: digest(folder / CONFIG)}))


def test_a_loaded_model_computes_what_the_saved_one_did(tmp_path):
    model, tokens = save(tmp_path / "model"), torch.tensor([TOKENIZER.encode("text")])
    trained = load(tmp_path / "model")
    assert torch.equal(trained.model(tokens), model(tokens))
    assert trained.notes == ()


def test_a_loaded_model_is_ready_to_use(tmp_path):
    save(tmp_path / "model")
    trained = load(str(tmp_path / "model"))
    assert not trained.model.training
    prompt = torch.tensor(trained.tokenizer.encode("some text"))
    assert trained.tokenizer.decode(generate(trained.model, prompt, 0)) == "some text"


def test_the_tokenizer_is_the_saved_one(tmp_path):
    save(tmp_path / "model")
    assert load(tmp_path / "model").tokenizer.to_json() == TOKENIZER.to_json()


def test_the_task_keeps_what_it_learnt(tmp_path):
    save(tmp_path / "model", {"name": "classification", "labels": ["b", 1]})
    assert load(tmp_path / "model").task.labels == ("b", 1)


def test_a_run_folder_stands_for_its_best_model(tmp_path):
    save(tmp_path / BEST)
    assert load(tmp_path).tokenizer.vocab_size == TOKENIZER.vocab_size


def test_a_model_without_tokenizer_is_told(tmp_path):
    save(tmp_path / "model", tokenizer=None)
    with pytest.raises(UserError, match=r"model: no tokenizer\.json; this model was not saved by a training run"):
        load(tmp_path / "model")


def test_a_model_without_task_is_told(tmp_path):
    save(tmp_path / "model")
    edit(tmp_path / "model", lambda config: config.pop("task"))
    with pytest.raises(UserError, match=r"model: no 'task' in config\.json"):
        load(tmp_path / "model")


def test_a_folder_without_model_is_told(tmp_path):
    with pytest.raises(UserError, match="no saved model here"):
        load(tmp_path)


def test_a_task_that_is_not_installed_is_told_with_its_package(tmp_path):
    save(tmp_path / "model")

    def from_elsewhere(config):
        config["task"] = {"name": "acme-tasks:haiku"}
        config["providers"]["acme-tasks"] = "1.0"

    edit(tmp_path / "model", from_elsewhere)
    with pytest.raises(UnknownComponent, match="pip install acme-tasks"):
        load(tmp_path / "model")


def test_another_version_of_a_provider_is_noted(tmp_path):
    save(tmp_path / "model")
    edit(tmp_path / "model", lambda config: config.update(providers={"miniformer": "0.0.1"}))
    [note] = load(tmp_path / "model").notes
    assert note.startswith("compatible: trained with miniformer 0.0.1; this is ")


def test_a_model_that_does_not_fit_another_version_needs_migration(tmp_path):
    save(tmp_path / "model")

    def older(config):
        config["providers"] = {"miniformer": "0.0.1"}
        config["model"]["ffn"] = {"name": "gelu", "squeeze": 2}

    edit(tmp_path / "model", older)
    for read in (load, Transformer.from_pretrained):
        with pytest.raises(UserError, match=r"(?s)needs migration: this model was made with miniformer 0\.0\.1 \(here: .*"
                                            r"squeeze.*pip install miniformer==0\.0\.1"):
            read(tmp_path / "model")


def test_weights_that_do_not_fit_need_migration_only_where_versions_differ(tmp_path):
    save(tmp_path / "model")
    edit(tmp_path / "model", lambda config: config["model"].update(d_ff=24))
    with pytest.raises(UserError, match=r"^.*model\.safetensors does not fit the model"):
        load(tmp_path / "model")
    edit(tmp_path / "model", lambda config: config.update(providers={"miniformer": "0.0.1"}))
    with pytest.raises(UserError, match=r"(?s)needs migration: .*does not fit the model"):
        load(tmp_path / "model")


def test_every_package_that_is_missing_is_told_at_once(tmp_path):
    save(tmp_path / "model")
    edit(tmp_path / "model", lambda config: config["providers"].update({"acme-parts": "1.5", "acme-tasks": "1.0"}))
    with pytest.raises(UnknownComponent, match=r"missing: .*pip install acme-parts==1\.5 acme-tasks==1\.0"):
        load(tmp_path / "model")


def test_an_encoder_decoder_is_loaded_as_what_it_is(answering):
    trained = load(answering)
    assert type(trained.model) is Seq2SeqTransformer
    source = torch.tensor(trained.tokenizer.encode("7 times the owl jumps"))
    written = generate(trained.model, source, 8, temperature=0, eos_id=trained.tokenizer.eos_id)
    assert trained.tokenizer.decode(written) == "the owl"
    assert trained.tokenizer.decode(trained.model.generate(source[None], 8, do_sample=False)[0]) == "the owl"


def test_its_predictions_are_what_it_writes(answering):
    found = list(predict(load(answering), [{"source": "3 times the dog jumps"}, {"source": "9 times the owl jumps " * 20}]))
    assert found[0] == {"target": "the dog"}
    assert found[1].keys() == {"target"}, "a source that is too long is cut"


def test_its_answers_are_those_of_its_task(answering):
    trained = load(answering)
    sources = [f"{n} times the {animal} jumps" for n in (3, 44) for animal in ("fox", "cat")]
    questions = [trained.task.question(SourceInput(source=source), trained.tokenizer) for source in sources]
    answers = trained.task.answer(trained.model, trained.task.collate(questions), trained.tokenizer)
    assert answers == [{"target": "the fox"}, {"target": "the cat"}] * 2


def test_an_assembly_that_is_unknown_is_told(tmp_path):
    save(tmp_path / "model")
    edit(tmp_path / "model", lambda config: config.update(assembly="seqseq"))
    with pytest.raises(UserError, match="there is no assembly named 'seqseq'\n  did you mean: seq2seq"):
        load(tmp_path / "model")
