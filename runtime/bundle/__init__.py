"""The bundle on disk: manifest, a reader that trusts nothing, a writer of whole bundles."""
