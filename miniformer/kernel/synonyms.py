"""Names that people bring from other tools, and what they are called here.

Each group is one thing under several names, spelt with underscores. A name that is not known is taken for the names of its
group that are: so one table serves options of the command line, fields of files, `--set`, and arguments of Python functions.
"""

from __future__ import annotations

from collections.abc import Iterator

_GROUPS = tuple(group.split() for group in (
    # sizes of a model
    "d_model hidden_size hidden_dim hidden dim d_hidden n_embd n_embed embed_dim embedding_dim embedding_size "
    "emb_dim emb_size model_dim width n_units",
    "n_layers num_layers layers n_layer num_hidden_layers depth n_blocks num_blocks blocks",
    "n_heads num_heads heads n_head num_attention_heads attention_heads",
    "n_kv_heads num_key_value_heads num_kv_heads kv_heads",
    "d_ff ffn_dim ff_dim dim_feedforward intermediate_size d_inner ffn_hidden_size mlp_dim mlp_ratio n_inner "
    "feedforward_dim",
    "max_seq_len context context_length context_size context_window block_size seq_len seq_length seqlen "
    "sequence_length max_length max_len n_ctx ctx n_positions max_position_embeddings max_sequence_length tokens",
    "vocab_size tokenizer_vocab_size vocab n_vocab vocabulary vocabulary_size num_embeddings",
    "dropout drop dropout_rate dropout_prob drop_rate p_dropout resid_pdrop hidden_dropout_prob attn_pdrop "
    "attention_dropout",
    "causal is_decoder decoder autoregressive is_causal",
    "position pos position_encoding positional_encoding position_embedding pos_emb pe",
    "attention attn self_attention attn_type attn_implementation",
    "ffn ff mlp feed_forward feedforward activation act hidden_act activation_function act_fn nonlinearity",
    "norm normalization normalisation layer_norm norm_type",
    "norm_placement pre_norm prenorm norm_first",
    "input_dim n_features num_features input_size in_features",
    "output_dim n_classes num_classes num_labels n_labels output_size n_outputs out_features",
    "share_embeddings tie_word_embeddings tie_weights weight_tying tie_embeddings tied",
    "activation_checkpointing gradient_checkpointing grad_checkpoint checkpointing remat",
    # a run
    "lr learning_rate learningrate max_lr peak_lr base_lr eta step_size",
    "max_epochs epochs epoch n_epochs num_epochs num_train_epochs nb_epochs passes",
    "max_steps steps step n_steps num_steps train_steps training_steps num_train_steps max_iters iters iterations "
    "n_iters max_iterations updates",
    "batch_size batch bs batchsize batch_sz train_batch_size per_device_train_batch_size per_device_batch_size "
    "micro_batch_size global_batch_size minibatch mb",
    "accumulate_grad_batches gradient_accumulation_steps grad_accum grad_accumulation accumulate "
    "gradient_accumulation accum",
    "gradient_clip_val grad_clip gradient_clip clip clip_grad max_grad_norm grad_norm clip_norm clipping",
    "weight_decay wd decay l2 adam_weight_decay regularization",
    "warmup_steps warmup warmup_iters num_warmup_steps warmup_ratio lr_warmup warmup_epochs",
    "val_every eval_every eval_steps eval_interval eval_iters val_interval val_check_interval evaluation_strategy "
    "eval_strategy validate_every save_every save_steps checkpoint_every log_every",
    "val_fraction val_split validation_split val_ratio val_size validation_fraction eval_fraction split test_size",
    "early_stopping_patience patience early_stopping early_stop",
    "checkpoint_metric metric monitor metric_for_best_model best_metric",
    "precision fp16 bf16 fp32 half float16 bfloat16 float32 dtype amp mixed_precision use_amp torch_dtype",
    "gpus device devices gpu cuda cpu n_gpus num_gpus n_gpu gpu_ids accelerator ngpu",
    "num_workers workers n_workers dataloader_num_workers num_proc loader_workers",
    "seed random_seed random_state rng manual_seed",
    "compile torch_compile jit compiled use_compile",
    "optimizer optim opt optimiser optim_type",
    "scheduler lr_scheduler lr_schedule schedule lr_scheduler_type decay_schedule sched lr_decay",
    "logger log report_to wandb tensorboard csv logging use_wandb",
    "tokenizer tokenizer_path tokenizer_file tokenizer_name tok bpe",
    "train_path data dataset file input train train_data train_file training_data data_path data_dir data_file "
    "dataset_path dataset_name input_file train_dataset corpus text_file text jsonl train_jsonl path files datasets",
    "val_path val valid validation val_data val_file validation_file eval_file eval_data dev dev_path "
    "validation_data eval_path",
    "test_path test test_data test_file",
    "work_dir experiment_name out output output_dir out_dir outdir save_dir save_path run_dir log_dir logdir save "
    "checkpoint_dir ckpt_dir results_dir root_dir save_to folder",
    "experiment_name name run_name exp_name run_id run experiment exp project",
    "model architecture arch model_type model_name",
    "task objective loss head_type problem_type",
    # what models write and read
    "max_new_tokens max_tokens tokens n_tokens num_tokens max_length max_len length n_predict max_gen_len "
    "new_tokens",
    "temperature temp t",
    "greedy deterministic no_sample argmax",
    "beams num_beams n_beams beam_size beam_width beam beam_search",
    "n_best num_return_sequences n num_samples best_of",
    "stop stop_strings stop_words stop_sequences eos until stop_token",
    "repetition_penalty rep_penalty repeat_penalty",
    "no_repeat_ngram no_repeat_ngram_size",
    "prompts prompt_file prompts_file prompt_path input_file file input data",
    "prompt text input context question",
    "draft draft_model assistant_model speculative",
    "no_state no_cache no_kv_cache",
    "json_schema schema response_format json",
    "json as_json format output_format",
    "input data file input_path input_file dataset records source infile",
    "data input file dataset input_file records",
    "output out output_path output_file outfile out_file save to",
    # fields of records
    "text content sentence document body input prompt",
    "input text sentence content",
    "label class category target labels y",
    "source input question prompt src instruction",
    "target output answer completion response tgt summary translation",
    # commands
    "train fit finetune fine_tune pretrain learn",
    "evaluate eval test validate score measure",
    "generate sample complete write completion infer inference",
    "predict infer inference classify apply",
    "bench benchmark speed profile perf",
    "list_components list ls components plugins",
    "inspect info summary show model_summary",
    "describe show help doc explain",
    "check verify conformance",
    "import_hf import from_hf convert",
    "export_hf export to_hf convert",
))

_ABSENT = {names: told for group, told in (
    ("lora qlora peft adapter adapters lora_r lora_rank lora_alpha lora_dropout use_lora",
     "there is no LoRA here: a run trains all weights of a new model"),
    ("resume resume_from resume_from_checkpoint checkpoint ckpt ckpt_path from_checkpoint restore continue init_from "
     "auto_resume",
     "a run cannot be continued from a checkpoint: it starts anew"),
    ("pretrained pretrained_model from_pretrained model_name_or_path base_model finetune_from load weights init_weights",
     "a run cannot start from the weights of another: it trains a new model"),
    ("threads num_threads n_threads cpu_threads nthreads",
     "the environment variable OMP_NUM_THREADS sets the number of threads"),
    ("device devices gpu gpus cuda cpu accelerator", "a GPU is used where there is one; CUDA_VISIBLE_DEVICES= hides it"),
) for names in group.split()}


def meant_by(name: str) -> Iterator[str]:
    """What a name that other tools use is called here, likeliest first; each may or may not be known where the name stood."""
    for group in _GROUPS:
        if name in group:
            yield from (other for other in group if other != name)


def why_absent(name: str) -> str:
    """What to say of a name that other tools use for something which is not here; "" for any other name."""
    return _ABSENT.get(name, "")
