"""Text in: sources of documents, token ids, shards on disk, batches and contexts out of them."""
