"""`miniformer import-hf DIR OUT` and `miniformer export-hf RUN DIR`."""

from __future__ import annotations

import click


@click.command("import-hf")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.argument("out", type=click.Path())
def import_hf(folder: str, out: str) -> None:
    """Make a model folder of miniformer from a checkpoint of transformers: GPT-2, Llama, BERT or T5.

    DIR is a folder with config.json, *.safetensors and tokenizer.json, as save_pretrained writes it; OUT is the new folder.
    """
    from .convert import import_folder

    model = import_folder(folder, out)
    click.echo(f"{out}: {model.assembly} of {sum(p.numel() for p in model.parameters()):,} parameters")


@click.command("export-hf")
@click.argument("run", type=click.Path())
@click.argument("folder", metavar="DIR", type=click.Path())
def export_hf(run: str, folder: str) -> None:
    """Make a checkpoint that transformers reads, from a model that fits GPT-2, Llama, BERT or T5.

    RUN is a run folder, or a folder with a saved model; DIR is the new folder.
    """
    import json
    from pathlib import Path

    from .convert import export_folder
    from .files import CONFIG

    export_folder(run, folder)
    [name] = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))["architectures"]
    click.echo(f"{folder}: {name}")
