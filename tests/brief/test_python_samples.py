"""The Python samples of the product brief, as they are written there: one test each, in the brief's order."""

import pytest
import torch


def test_building_and_using_an_encoder_only_model():
    from miniformer.config.model_config import TransformerConfig
    from miniformer.model.transformer import Transformer

    # Build an encoder-only Transformer for classification
    config = TransformerConfig(
        vocab_size=10000,
        d_model=256,
        n_heads=8,
        n_layers=4,
        d_ff=1024,
        dropout=0.1,
        activation="gelu",
        output_dim=10,  # For 10-class classification
        max_seq_len=512
    )
    model = Transformer(config)

    # Forward pass with token IDs
    input_ids = torch.randint(0, 10000, (2, 128))
    logits = model(input_ids)  # shape: [2, 128, 10]

    # If you need just the classification output (first token)
    cls_logits = logits[:, 0, :]  # shape: [2, 10]

    assert logits.shape == (2, 128, 10)
    assert cls_logits.shape == (2, 10)


@pytest.mark.slow
def test_using_the_seq2seq_model():
    from miniformer.config.model_config import TransformerConfig
    from miniformer.model.seq2seq_transformer import Seq2SeqTransformer

    # Build a seq2seq Transformer for translation/summarization
    config = TransformerConfig(
        vocab_size=32000,
        d_model=512,
        n_heads=8,
        n_layers=6,
        d_ff=2048,
        dropout=0.1,
        activation="swiglu",
        max_seq_len=1024
    )
    model = Seq2SeqTransformer(config)

    # Training: forward pass with source and target
    src_ids = torch.randint(0, 32000, (2, 64))  # [batch_size, src_seq_len]
    tgt_ids = torch.randint(0, 32000, (2, 48))  # [batch_size, tgt_seq_len]

    # Returns logits, encoder_hidden_states, and kv_cache (if requested)
    logits, enc_states, _ = model(src_ids, tgt_ids)  # logits: [2, 48, 32000]

    assert logits.shape == (2, 48, 32000)
    assert enc_states.shape == (2, 64, 512)
    assert _ is None

    # Inference: generate output sequence
    src_ids = torch.randint(0, 32000, (1, 64))
    generated_ids = model.generate(
        src_ids,
        max_new_tokens=100,
        temperature=0.8,
        top_k=50,
        repetition_penalty=1.2
    )

    assert generated_ids.shape == (1, 100)
    assert generated_ids.min() >= 0 and generated_ids.max() < 32000


@pytest.mark.parametrize("task", ["language_modeling", "classification", "regression"])
def test_json_lines_dataset(folder, tokenizer, task):
    from miniformer.train.datamodule import JSONLinesDataset

    path = "data/train.jsonl" if task == "language_modeling" else f"data/{task}_train.jsonl"
    dataset = JSONLinesDataset(
        path=path,
        tokenizer=tokenizer,  # Optional, required for language modeling
        task=task  # or "classification", "regression"
    )

    assert len(dataset) == 40
    assert len(dataset[0].tokens) > 3


@pytest.mark.parametrize("model", ["transformer", "seq2seq"])
def test_the_data_module_and_the_lightning_module(folder, tokenizer, model):
    from miniformer.train.datamodule import MiniFormerDataModule
    from miniformer.train.module import MiniFormerLitModule
    from miniformer.train.train_config import TrainConfig

    train_config = TrainConfig(train_path="data/train.jsonl", val_path="data/val.jsonl", task="language_modeling", model=model,
                               model_config={"d_model": 32, "n_heads": 2, "n_layers": 1})

    datamodule = MiniFormerDataModule(
        config=train_config,
        tokenizer=tokenizer  # Optional, required for language modeling
    )
    model = MiniFormerLitModule(train_config)

    batch = next(iter(datamodule.train_dataloader()))
    assert model(batch).shape == (*batch.inputs.shape, 8192)


def test_available_configurations():
    from miniformer.config.model_config import TransformerConfig

    config = TransformerConfig(
        vocab_size=50000,      # Vocabulary size
        d_model=768,           # Hidden dimension
        n_heads=12,            # Number of attention heads
        n_layers=12,           # Number of layers
        d_ff=3072,             # Feed-forward dimension
        dropout=0.1,           # Dropout rate
        activation="gelu",     # Activation function (gelu, relu, swiglu)
        output_dim=None,       # Output dimension (defaults to vocab_size)
        max_seq_len=1024,      # Maximum sequence length
        pre_norm=True,         # Pre-norm or post-norm architecture
        rotary_pct=0.0         # Rotary embedding percentage (0.0-1.0)
    )

    assert config.n_outputs == 50000
    assert config.ffn.name == "gelu"
    assert config.position.name == "sinusoidal"


@pytest.mark.parametrize("assembly", ["transformer", "seq2seq"])
def test_generation_parameters(assembly):
    from miniformer.config.model_config import TransformerConfig
    from miniformer.model.assemblies import assembly_of

    model = assembly_of(assembly)(TransformerConfig(vocab_size=64, d_model=32, n_heads=2, n_layers=1, max_seq_len=128,
                                                    causal=assembly == "transformer"))
    input_ids = torch.randint(0, 64, (2, 5))

    outputs = model.generate(
        input_ids,
        max_new_tokens=100,    # Maximum generation length
        temperature=1.0,       # Sampling temperature (1.0 = no change)
        top_k=50,              # Top-k sampling (0 = disabled)
        top_p=0.9,             # Nucleus sampling threshold (1.0 = disabled)
        do_sample=True,        # Use sampling (False = greedy)
        repetition_penalty=1.0 # Penalize repeated tokens (1.0 = no penalty)
    )

    assert outputs.shape == (2, 105 if assembly == "transformer" else 100)


def test_text_generation(folder, capsys):
    trained("my_lm", train_path="data/train.jsonl", task="language_modeling", model="seq2seq")
    tokenizer = saved_tokenizer("my_lm")

    from miniformer.model.seq2seq_transformer import Seq2SeqTransformer

    # Load model (assuming you have a trained model checkpoint)
    model = Seq2SeqTransformer.from_pretrained("./runs/my_lm/checkpoints/best_model")
    model.eval()

    # Encode input text (using your tokenizer)
    input_ids = tokenizer.encode("Once upon a time", return_tensors="pt")

    # Generate text
    with torch.no_grad():
        output_ids = model.generate(
            input_ids,
            max_new_tokens=100,
            temperature=0.8,
            top_k=50
        )

    # Decode output tokens
    generated_text = tokenizer.decode(output_ids[0])
    print(generated_text)

    assert output_ids.shape[0] == 1 and 1 <= output_ids.shape[1] <= 100
    assert capsys.readouterr().out.rstrip("\n") == generated_text.rstrip("\n")


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_classification_and_regression(folder, task):
    trained("my_classifier", train_path=f"data/{task}_train.jsonl", task=task)
    tokenizer = saved_tokenizer("my_classifier")

    from miniformer.model.transformer import Transformer

    # Load model
    model = Transformer.from_pretrained("./runs/my_classifier/checkpoints/best_model")
    model.eval()

    # Encode input
    input_ids = tokenizer.encode("This is a test input", return_tensors="pt")

    # Forward pass
    with torch.no_grad():
        outputs = model(input_ids)

    # For classification
    if task == "classification":
        logits = outputs[:, 0, :]  # Use [CLS] token
        probs = torch.softmax(logits, dim=-1)
        predicted_class = torch.argmax(probs, dim=-1).item()
        assert predicted_class in range(10)

    # For regression
    elif task == "regression":
        prediction = outputs[:, 0, 0].item()  # Use first dimension of [CLS]
        assert isinstance(prediction, float)


def test_model_configuration():
    from miniformer.config.model_config import TransformerConfig

    config = TransformerConfig(
        vocab_size=30522,        # Vocabulary size
        d_model=768,             # Model dimension
        n_heads=12,              # Attention heads
        n_layers=12,             # Transformer layers
        d_ff=3072,               # Feed-forward dimension (4x d_model is common)
        dropout=0.1,             # Dropout rate
        activation="swiglu",     # Activation: "gelu", "relu", "swiglu"
        rotary_pct=0.25,         # Apply RoPE to 25% of dimensions
        pre_norm=True,           # Pre-norm architecture (vs post-norm)
        max_seq_len=2048,        # Maximum sequence length
        input_dim=None,          # For feature inputs (not tokens)
        output_dim=None          # Custom output dimension
    )

    assert config.position.options["pct"] == 0.25
    assert config.n_outputs == 30522


def test_training_configuration():
    from miniformer.train.train_config import TrainConfig

    config = TrainConfig(
        train_path="data/train.jsonl",          # Training data path
        val_path="data/val.jsonl",              # Validation data path
        test_path="data/test.jsonl",            # Test data path (optional)
        task="language_modeling",               # Task type
        model="seq2seq",                        # Model architecture
        model_config={},                        # Model configuration dict
        batch_size=32,                          # Batch size
        max_epochs=10,                          # Maximum epochs
        lr=3e-4,                                # Learning rate
        weight_decay=0.01,                      # Weight decay
        scheduler="cosine",                     # LR scheduler
        warmup_steps=1000,                      # Warmup steps
        gradient_clip_val=1.0,                  # Gradient clipping
        accumulate_grad_batches=1,              # Gradient accumulation steps
        work_dir="./runs",                      # Working directory
        experiment_name="experiment1",          # Experiment name
        logger="tensorboard",                   # Logger type
        gpus=1,                                 # Number of GPUs
        precision=32,                           # Precision (16, 32)
        seed=42,                                # Random seed
        num_workers=4,                          # DataLoader workers
        early_stopping_patience=3,              # Early stopping patience
        checkpoint_metric="val_loss"            # Metric for checkpointing
    )

    assert (config.model, config.gpus, config.task.name) == ("seq2seq", 1, "language-modeling")


@pytest.mark.parametrize("sizes", [{}, {"vocab_size": 64, "d_model": 64}, {"vocab_size": 3}, {"d_model": 8, "n_heads": 4}])
@pytest.mark.parametrize("assembly", ["transformer", "seq2seq"])
def test_without_output_dim_the_outputs_are_the_vocabulary_whatever_the_sizes(assembly, sizes):
    from miniformer.config.model_config import TransformerConfig
    from miniformer.model.assemblies import assembly_of

    config = TransformerConfig(**{"vocab_size": 50, "d_model": 16, "n_heads": 2, "n_layers": 1, "output_dim": None, **sizes})
    model, ids = assembly_of(assembly)(config), torch.zeros(2, 5, dtype=torch.long)
    logits = model(ids) if assembly == "transformer" else model(ids, ids)[0]
    assert logits.shape == (2, 5, config.vocab_size)


@torch.no_grad()
def test_the_first_position_of_an_encoder_sees_the_whole_sequence_and_no_padding():
    from miniformer.config.model_config import TransformerConfig
    from miniformer.kernel import Context, Layout
    from miniformer.model.transformer import Transformer

    model = Transformer(TransformerConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=2, output_dim=10)).double().eval()
    input_ids, context = torch.randint(0, 50, (1, 8)), Context(Layout.from_lengths([6], 8))
    first = model(input_ids, context)[:, 0, :]
    for column in range(8):
        changed = input_ids.clone()
        changed[0, column] = (changed[0, column] + 1) % 50
        moved = not torch.equal(model(changed, context)[:, 0, :], first)
        assert moved == (column < 6)


def trained(name, **fields):
    """A run of that name, small enough for a test."""
    from miniformer.train.train_config import TrainConfig
    from miniformer.train.trainer import train

    train(TrainConfig(**fields, experiment_name=name, max_steps=3, batch_size=4, precision=32, tokenizer_vocab_size=400,
                      model_config={"d_model": 32, "n_heads": 2, "n_layers": 1}))


def saved_tokenizer(name):
    from miniformer.data.tokenizer import Tokenizer

    return Tokenizer.load(f"./runs/{name}/checkpoints/best_model")
