"""Specs of models: pydantic data that names components; no torch until a component's options are checked."""
