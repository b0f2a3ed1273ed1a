"""The public names, for type checkers and for the lazy loading in `__init__.py`."""

from .bert_parts import BertEmbeddings as BertEmbeddings
from .bert_parts import MaskedLanguageModelHead as MaskedLanguageModelHead
from .bert_parts import PooledHead as PooledHead
from .convert import export_folder as export_folder
from .convert import export_model as export_model
from .convert import import_folder as import_folder
from .convert import import_model as import_model
