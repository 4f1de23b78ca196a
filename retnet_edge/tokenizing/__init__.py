"""What stands under `retnet_edge.tokenizer`: what its file may hold, texts to ids, long runs."""
