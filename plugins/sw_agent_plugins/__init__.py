"""The built-in plugins: one file a library."""
