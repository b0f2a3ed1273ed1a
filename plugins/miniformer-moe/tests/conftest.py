"""How many examples properties are checked on: few, or more with `pytest --hypothesis-profile=thorough`."""

from hypothesis import settings

settings.register_profile("quick", derandomize=True, deadline=None, database=None, max_examples=10)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=30)
settings.load_profile("quick")
