"""What each kind of component promises, one file a kind; each promise is a function that the kit runs on drawn cases."""
