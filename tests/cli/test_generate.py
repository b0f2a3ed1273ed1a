"""`miniformer generate`, on a real run."""

import shutil


def test_greedy_text_is_the_same_with_and_without_state(cli, trained):
    args = ("generate", str(trained), "--prompt", "the quick", "--greedy", "--max-new-tokens", "24")
    text = cli(*args).stdout
    assert text == cli(*args, "--no-state").stdout
    assert text.startswith("the quick brown fox jumps over")


def test_a_seed_repeats_the_draws(cli, trained):
    args = ("generate", str(trained), "--prompt", "", "--temperature", "2", "--max-new-tokens", "20")
    one, same, other = (cli(*args, "--seed", seed).stdout for seed in ("1", "1", "2"))
    assert one == same != other


def test_a_folder_without_a_model_is_refused(cli, tmp_path):
    assert "no saved model here; expected a run folder" in cli("generate", str(tmp_path), "--prompt", "x", code=2).stderr


def test_a_damaged_model_is_refused(cli, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    weights = tmp_path / "copy" / "checkpoints" / "best_model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert "damaged: its SHA-256 is not the one in manifest.json" in \
        cli("generate", "copy", "--prompt", "x", code=2).stderr


def test_of_an_encoder_decoder_the_answer_alone_is_written(cli, answering):
    args = ("generate", str(answering), "--prompt", "20 times the fox jumps", "--greedy")
    assert cli(*args).stdout == cli(*args, "--no-state").stdout == "the fox\n"
