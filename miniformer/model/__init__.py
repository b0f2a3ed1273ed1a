"""The built-in components, one file per kind, and the assemblies made of them."""
