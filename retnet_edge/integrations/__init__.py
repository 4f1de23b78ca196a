"""Our checkpoints and bundles behind other libraries' interfaces."""
