"""The vocabulary: frozen dataclasses and enums, no input or output."""
