"""Faults in what is saved and read again."""

from ..fault import Fault

STORE, ATOMIC = "tests/checkpoint/test_store.py", "tests/checkpoint/test_atomic.py"

FAULTS = (
    Fault("a-manifest-is-not-checked", "miniformer/checkpoint/store.py", "if digest(file) != expected:", "if False:", STORE,
          "a damaged model is used"),
    Fault("a-digest-of-nothing", "miniformer/checkpoint/store.py", 'hashlib.file_digest(file, "sha256").hexdigest()',
          'hashlib.sha256().hexdigest()', STORE, "a damaged model is used"),
    Fault("providers-are-not-saved", "miniformer/checkpoint/store.py", "{**config, **provenance(config)}", "dict(config)",
          STORE, "a saved model does not say which packages it needs"),
    Fault("weights-need-not-fit", "miniformer/checkpoint/store.py", "    if problems:\n", "    if False:\n", STORE,
          "a model is loaded with some of its weights left at random"),
    Fault("a-model-keeps-its-own-float-type", "miniformer/checkpoint/store.py", "module.to(dtype=dtypes.pop())", "pass", STORE,
          "a float64 model is loaded with rounded weights"),
    Fault("a-loaded-model-lacks-what-extensions-add", "miniformer/checkpoint/store.py", "hooks.model_assembled(model=module)",
          "pass", f"{STORE}::test_what_an_extension_adds_to_a_model_is_loaded_with_it",
          "a model that was trained with an extension cannot be loaded"),
    Fault("extensions-do-not-see-a-loaded-model", "miniformer/checkpoint/store.py",
          "hooks.checkpoint_loaded(folder=saved.folder, model=module)", "pass",
          f"{STORE}::test_what_an_extension_adds_to_a_model_is_loaded_with_it",
          "what an extension does with loaded weights is left out"),
    Fault("a-best-model-is-looked-for-beside-the-run", "miniformer/checkpoint/store.py",
          "best if best.parent.is_dir() else path", "path", STORE, "a run folder is not a model any more"),
    Fault("the-old-folder-is-removed-first", "miniformer/checkpoint/atomic.py", "os.rename(path, _previous(path))",
          "shutil.rmtree(path)", ATOMIC, "a run that is killed while it saves has lost its best model"),
    Fault("files-are-for-their-owner", "miniformer/checkpoint/atomic.py", "& 0o666", "& 0o600",
          f"{STORE}::test_files_are_as_readable_as_any_new_file", "colleagues cannot read a model"),
    Fault("json-has-nan", "miniformer/checkpoint/atomic.py", "allow_nan=False", "allow_nan=True", ATOMIC,
          "other programs cannot read run.json"),
    Fault("an-unfinished-file-stays", "miniformer/checkpoint/atomic.py", "temporary.unlink(missing_ok=True)", "pass",
          ATOMIC, "failed writes fill the disk"),
    Fault("other-versions-are-not-noted", "miniformer/checkpoint/provenance.py", "if now[name] != then[name]]",
          "if now[name] is None]", "tests/inference/test_load.py",
          "a model is used with another version than it was made with, and nothing says so"),
    Fault("providers-in-lists-are-missed", "miniformer/checkpoint/provenance.py", "isinstance(spec, (list, tuple))",
          "isinstance(spec, tuple)", "tests/checkpoint/test_provenance.py",
          "a package that one layer needs is not saved with the model"),
)
