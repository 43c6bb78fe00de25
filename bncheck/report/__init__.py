"""Report → bytes a person or a machine reads: one canonical document, then one file per output format."""
