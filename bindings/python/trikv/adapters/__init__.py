"""Adapters that let inference engines keep pages of their KV cache in trikvd."""
