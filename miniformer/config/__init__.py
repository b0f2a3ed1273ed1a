"""Specs of models: pydantic data that names components. Imports no torch until the options of a component are checked."""
