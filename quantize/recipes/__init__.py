"""Recipes: rules that give each weight matrix a scheme; built in, or read from TOML."""
