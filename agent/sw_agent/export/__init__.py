"""The pipeline behind the provider: from a span's end to the bytes that left, or to the count of what was dropped."""
