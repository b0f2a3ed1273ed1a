"""The promises of each kind of component, one file a kind; each promise is a function that the kit runs on drawn cases."""
